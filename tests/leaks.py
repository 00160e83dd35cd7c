"""A pytest plugin that fails a test which leaves something behind.

Looked for: asyncio tasks, threads, child processes (theirs too), file descriptors, temporary files. What ends by itself within
SETTLE_S is no leak. What may stay: what stood before the test, executor threads, and what the fork server has parked on purpose.
`@pytest.mark.may_leak("reason")` exempts a test.
"""

import asyncio
import gc
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

SETTLE_S = 2.0  # teardown by the operating system and by watcher threads takes milliseconds; a loaded machine is given more
SHARED_THREADS = ("asyncio_", "AnyIO worker thread")  # executors: one pool per loop, ended with it, not by a test
SHARED_FILES = {"/dev/null", "/dev/random", "/dev/urandom"}  # opened once by whoever asks first, and kept

Held = tuple[str, object]  # what kind of thing, and which


def held() -> set[Held]:
    """Everything this process holds now, apart from tasks."""
    return {("thread", it) for it in threads()} | {("process", it) for it in processes()} | descriptors() | files()


def threads() -> Iterator[threading.Thread]:
    return (it for it in threading.enumerate() if not it.name.startswith(SHARED_THREADS))


def processes() -> Iterator[psutil.Process]:
    parked = set(parked_by_fork_server("parked_pids"))
    return (it for it in psutil.Process().children(recursive=True) if it.pid not in parked)


def descriptors() -> set[Held]:
    """Open descriptors with what they point to, so that a number used again for something else is seen."""
    parked = set(parked_by_fork_server("parked_fds"))
    found: set[Held] = set()
    for number in open_numbers():
        with suppress(OSError):  # closed in between, as the listing's own is
            target = os.readlink(f"/proc/self/fd/{number}")
            if number not in parked and target not in SHARED_FILES:
                found.add(("descriptor", (number, target)))
    return found


def open_numbers() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except FileNotFoundError:  # no /proc: macOS
        return []


def files() -> set[Held]:
    parked = {os.fspath(path) for path in parked_by_fork_server("parked_paths")}
    return {("file", entry.path) for entry in os.scandir(tempfile.gettempdir()) if entry.path not in parked}


def parked_by_fork_server(what: str) -> set:
    """What the idle fork server keeps for the next loop. A module that nobody has imported has parked nothing."""
    module = sys.modules.get("arlm.environments.forkserver")
    ask: Callable[[], set] = getattr(module, what, set)
    return ask()


def left_since(before: set[Held], settle: float) -> set[Held]:
    """What is held beyond `before` and does not go away within `settle` seconds."""
    if not held() - before:
        return set()
    gc.collect()  # an object in a cycle closes its descriptor here, and complains by a ResourceWarning if nobody else did
    deadline, pause = time.monotonic() + settle, 0.001
    while (left := held() - before) and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return left


def describe(thing: Held) -> str:
    match thing:
        case "thread", threading.Thread() as thread:
            return f"thread {thread.name!r}"
        case "process", psutil.Process() as process:
            with suppress(psutil.NoSuchProcess):
                facts = process.as_dict(["status", "name", "cmdline"])
                return f"process {process.pid} ({facts['status']}): {' '.join(facts['cmdline'] or [facts['name']])}"
        case "descriptor", (number, target):
            peers = [it for it in psutil.Process().net_connections(kind="all") if it.fd == number]
            return f"descriptor {number}: {target}" + "".join(f" {it.laddr or '-'} -> {it.raddr or '-'} {it.status}" for it in peers)
    return f"{thing[0]} {thing[1]}"


def complain(left: set[Held] | set[asyncio.Task], description: Callable[..., str]) -> None:
    if left:
        lines = sorted(description(it) for it in left)
        pytest.fail("the test left behind:\n  " + "\n  ".join(lines), pytrace=False)


def exempt(request: pytest.FixtureRequest) -> bool:
    mark = request.node.get_closest_marker("may_leak")
    if mark is None:
        return False
    if not (mark.args and isinstance(mark.args[0], str) and mark.args[0].strip()):
        pytest.fail('may_leak needs a reason: @pytest.mark.may_leak("...")', pytrace=False)
    return True


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set up before the test's other fixtures and its loop, and so checked after all of them are gone."""
    if exempt(request):
        yield
        return
    before = held()
    yield
    complain(left_since(before, SETTLE_S), describe)


@pytest_asyncio.fixture(loop_scope="function")
async def no_task_left_behind(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """The loop's end would cancel what still runs, and so hide it: this looks before, after the test's own async fixtures."""
    yield
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others and not exempt(request):
        _, pending = await asyncio.wait(others, timeout=SETTLE_S)
        complain(pending, repr)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if pytest_asyncio.is_async_test(item) and nothing_left_behind.name in item.fixturenames:
            place = item.fixturenames.index(nothing_left_behind.name) + 1
            item.fixturenames.insert(place, no_task_left_behind.name)


def pytest_configure(config: pytest.Config) -> None:
    """Give the session a temporary directory of its own, so that what others do on the machine is not taken for a leak."""
    config.addinivalue_line("markers", "may_leak(reason): the test may leave threads, processes, descriptors, files or tasks behind")
    outer, outer_variable = tempfile.tempdir, os.environ.get("TMPDIR")
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # tmp_path stays where people look for it
    own = tempfile.mkdtemp(prefix="at-")  # short: Unix socket paths live below it
    tempfile.tempdir = os.environ["TMPDIR"] = own
    config.add_cleanup(partial(restore_temporary_directory, own, outer, outer_variable))


def restore_temporary_directory(own: str, outer: str | None, outer_variable: str | None) -> None:
    tempfile.tempdir = outer
    os.environ.pop("TMPDIR", None)
    if outer_variable is not None:
        os.environ["TMPDIR"] = outer_variable
    shutil.rmtree(Path(own), ignore_errors=True)
