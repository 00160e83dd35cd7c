"""Faults at random points: a host that is killed, a run that is cancelled. What is left of it is looked for, not assumed.

A *driver* is what is killed or cancelled: an async function that does as much at once as it can, again and again, until it is stopped.
``python -m arlm.testing.faults DRIVER`` is a host that runs one.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import get_args

import anyio

from ..environments import forkserver
from ..environments.process import ProcessREPL, Road
from ..environments.repl import REPL
from ..guest import processes
from ..rlm import run
from ..scratch import sweep
from ..types import Message
from .bench import Subject, alive_here, open_bench
from .cases_process import DETACHED
from .scripted import ScriptedLM

BEGUN = b"begun\n"
KILL_WITHIN_SECONDS = 0.5  # a driver has been through all its stages by then
CANCEL_WITHIN_SECONDS = 0.15
SETTLE_SECONDS = 2.0  # what is promised: nothing of a killed host runs after it

LAST_CELLS = ("await llm_query_async('hang')", "while True: print('busy')", "import subprocess\nsubprocess.run(['sleep', '600'])")

Driver = Callable[[], Awaitable[None]]


async def _cells(subject: Subject) -> None:
    """REPLs with everything that could stay behind: detached processes, threads, calls that hang, files, output, busy loops."""
    while True:
        async with open_bench(subject) as bench:
            repls = [bench.repl, bench.another(), bench.another()]
            with anyio.move_on_after(1.0):
                async with anyio.create_task_group() as tasks:
                    for number, last in enumerate(LAST_CELLS):
                        tasks.start_soon(_one, repls[number], last)


async def _one(repl: REPL, last: str) -> None:
    for number, code in enumerate(
        (DETACHED, "open('file', 'w').close()", "llm_query_batched([str(n) for n in range(500)])[0]", DETACHED, last)
    ):
        await repl.run_cell(code, number)


def _process(transport: Road) -> Driver:
    subject = Subject(name=f"process-{transport}", environment=lambda: ProcessREPL(transport=transport))
    return lambda: _cells(subject)


async def _runs() -> None:
    """Runs through the public function, with sub-calls that hang, processes that detach themselves, and a cell that never ends."""
    while True:
        with anyio.move_on_after(1.0):
            await asyncio.gather(*(run("q", context="c" * 100_000, model=_model(last)) for last in LAST_CELLS))


def _model(last: str) -> ScriptedLM:
    async def sub(messages: list[Message]) -> str:
        await asyncio.sleep(600 if messages[0]["content"] == "hang" else 0.001)
        return "ok"

    cells = (DETACHED, "open('file', 'w').close()", "llm_query_batched([str(n) for n in range(500)])[0]", DETACHED, last)
    return ScriptedLM([f"```repl\n{code}\n```" for code in cells], sub=sub)


DRIVERS: dict[str, Driver] = {"run": _runs} | {f"process-{road}": _process(road) for road in get_args(Road)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """A host that was killed.

    Attributes:
        after_s: when, in seconds after it had begun.
        processes: how many ran below it at that moment.
        gone_after_s: seconds until none of them ran any more, or None: some still do.
        orphaned: folders that were left; none when its supervisor knew of them. The next run of anybody removes them.
        files: names left after that: none.
    """

    after_s: float
    processes: int
    gone_after_s: float | None
    orphaned: tuple[str, ...]
    files: tuple[str, ...]


def kill_a_host(driver: str, chance: random.Random, *, patience: float = 10.0) -> Killed:
    """Start a host, kill it with SIGKILL at a random point, and look for what is left; kills that too, and says so. Blocks."""
    with tempfile.TemporaryDirectory(prefix="af-", ignore_cleanup_errors=True) as folder:  # short: Unix socket paths live below it
        host = subprocess.Popen([sys.executable, "-m", __name__, driver], stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": folder})
        with host:
            assert host.stdout is not None
            assert host.stdout.readline() == BEGUN
            after = chance.uniform(0, KILL_WITHIN_SECONDS)
            time.sleep(after)
            below = processes.descendants([host.pid])
            host.kill()
        killed_at = time.monotonic()
        while (left := _alive(below) | _in_folder(folder)) and time.monotonic() - killed_at < patience:
            time.sleep(0.005)
        gone_after = None if left else time.monotonic() - killed_at
        processes.kill_trees(left)
        orphaned = tuple(sweep(folder))
        files = tuple(os.listdir(folder))
    return Killed(after_s=after, processes=len(below), gone_after_s=gone_after, orphaned=orphaned, files=files)


def _alive(pids: set[int]) -> set[int]:
    return set(filter(alive_here, pids))


def _in_folder(folder: str) -> set[int]:
    """Processes whose working directory is in a folder, removed or not: workers and what they started, seen or not before the kill."""
    found = set()
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if name.isdigit():
            try:
                if os.readlink(f"/proc/{name}/cwd").startswith(folder):
                    found.add(int(name))
            except OSError:
                continue  # ended meanwhile, or not ours to look at
    return _alive(found)


async def cancel_a_driver(driver: str, chance: random.Random) -> set[str]:
    """Run a driver, cancel it at a random point in a random way, and return what is left of it after SETTLE_SECONDS at most."""
    await forkserver.current()  # belongs to the loop, and stays
    before = await _held()
    task = asyncio.ensure_future(DRIVERS[driver]())
    await asyncio.wait({task}, timeout=chance.uniform(0, CANCEL_WITHIN_SECONDS))
    for _ in range(chance.choice((1, 1, 2, 3))):
        task.cancel()
        await asyncio.wait({task}, timeout=chance.uniform(0, 0.01))
    await asyncio.wait({task})
    deadline = asyncio.get_running_loop().time() + SETTLE_SECONDS
    while (left := await _held() - before) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - what is left tells nobody
        await asyncio.sleep(0.005)
    if not task.cancelled():
        left.add(f"the driver did not end by cancellation but by {task.exception()!r}")
    return left


async def _held() -> set[str]:
    """Processes, descriptors, temporary files and tasks of this process, by name."""
    found = {f"process {pid}" for pid in processes.descendants([os.getpid()])}
    found |= {f"file {name}" for name in os.listdir(tempfile.gettempdir())}
    found |= {f"task {task.get_name()}: {task.get_coro()}" for task in asyncio.all_tasks() - {asyncio.current_task()}}
    for number in os.listdir("/dev/fd"):
        try:
            found.add(f"descriptor {number}: {os.readlink(f'/dev/fd/{number}')}")
        except OSError:
            continue  # the listing's own
    return found


async def _host(driver: str) -> None:
    os.write(1, BEGUN)
    await DRIVERS[driver]()


if __name__ == "__main__":
    asyncio.run(_host(sys.argv[1]))
