"""Groups bound a worker with all that it starts, name the limit that was hit, and are gone afterwards, however it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from arlm.environments import forkserver
from arlm.environments.process import ProcessREPL
from arlm.errors import ConfigError
from arlm.guest import cgroups
from arlm.guest.bounds import Bound
from arlm.guest.cgroups import Root, find
from arlm.testing.bench import PATIENCE_SECONDS, Bench, Subject, alive_here, open_bench
from arlm.testing.escapes import attempt, open_targets
from arlm.testing.payloads import Escape

MB = 1_000_000
LIMIT = 200 * MB
PLACES = cgroups.roots()
needs_memory = pytest.mark.skipif("memory" not in PLACES, reason="no memory group can be made here (see `arlm doctor`)")
needs_pids = pytest.mark.skipif("pids" not in PLACES, reason="no pids group can be made here (see `arlm doctor`)")


def process(**options: Any) -> Subject:
    return Subject(name="process", environment=lambda: ProcessREPL(**options))


def groups_of(supervisor: int) -> set[str]:
    """The groups on this machine that a supervisor's workers have."""
    mark = f"-{supervisor}-"
    return {os.path.join(place.folder, entry) for place in set(PLACES.values()) for entry in os.listdir(place.folder) if mark in entry}


async def supervisor() -> int:
    return (await forkserver.current()).process.pid


async def until_gone(number: int) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while groups_of(number):
            await asyncio.sleep(0.01)


# -- where groups can be made -----------------------------------------------------------------------------------------


def mount(place: Path, kind: str, options: str, root: str = "/") -> str:
    return f"40 31 0:37 {root} {place} rw,relatime shared:9 - {kind} {kind} {options}\n"


def unified(top: Path, /, **folders: dict[str, str]) -> str:
    """A tree of version 2 as the kernel shows it: files by folder, ``__`` standing for a level, ``top`` for the top. Returns its mount."""
    usual = {"cgroup.procs": "", "cgroup.controllers": "cpu memory pids\n", "cgroup.subtree_control": "", "memory.max": "max\n"}
    for name, files in folders.items():
        folder = top.joinpath(*name.split("__")) if name != "top" else top
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in {**usual, **files}.items():
            (folder / file).write_text(text)
    return mount(top, "cgroup2", "rw")


def test_version_1_is_used_below_the_own_group(tmp_path: Path) -> None:
    for folder in ("memory/user/me", "pids"):
        (tmp_path / folder).mkdir(parents=True)
    mounts = (
        mount(tmp_path / "memory", "cgroup", "rw,memory") + mount(tmp_path / "pids", "cgroup", "rw,pids") + mount(tmp_path, "tmpfs", "rw")
    )
    found = find("8:pids:/\n4:memory:/user/me\n1:cpu,cpuacct:/\n0::/\n", mounts)
    assert found == {"memory": Root(str(tmp_path / "memory/user/me"), 1), "pids": Root(str(tmp_path / "pids"), 1)}


def test_a_mount_that_begins_below_the_root_is_reckoned_with_and_one_that_lies_elsewhere_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    escaped = Path(str(tmp_path).replace(" ", r"\040"))
    assert find("4:memory:/box/7/a b\n", mount(escaped, "cgroup", "rw,memory", "/box/7")) == {"memory": Root(str(tmp_path / "a b"), 1)}
    assert find("4:memory:/box/77\n", mount(escaped, "cgroup", "rw,memory", "/box/7")) == {}
    assert find("4:memory:/../other\n", mount(escaped, "cgroup", "rw,memory")) == {}
    assert find("4:memory:/\n", "") == {}


def test_version_2_is_used_where_the_controllers_are_passed_on(tmp_path: Path) -> None:
    mounts = unified(
        tmp_path, top={}, app={"cgroup.subtree_control": "memory pids\n"}, app__scope={"cgroup.procs": "17\n", "cpu.max": "max 100000\n"}
    )
    above = Root(str(tmp_path / "app"), 2)
    assert find("0::/app/scope\n", mounts) == {"memory": above, "pids": above}


def test_a_group_of_version_2_with_a_limit_of_its_own_is_not_left(tmp_path: Path) -> None:
    for limit in ({"memory.max": "1000000000\n"}, {"memory.high": "5000\n"}, {"cpu.max": "50000 100000\n"}):
        mounts = unified(tmp_path, app={"cgroup.subtree_control": "memory pids\n"}, app__scope={"cgroup.procs": "17\n", **limit})
        assert find("0::/app/scope\n", mounts) == {}
        (tmp_path / "app" / "scope" / next(iter(limit))).unlink()


def test_a_delegated_group_of_version_2_without_processes_passes_its_controllers_on(tmp_path: Path) -> None:
    mounts = unified(tmp_path, service={}, service__main={"cgroup.procs": "17\n"})
    own = Root(str(tmp_path / "service"), 2)
    assert find("0::/service/main\n", mounts) == {"memory": own, "pids": own}


def test_version_2_with_one_controller_bounds_one_part(tmp_path: Path) -> None:
    mounts = unified(tmp_path, top={"cgroup.controllers": "pids\n", "cgroup.subtree_control": "pids\n"})
    assert find("0::/\n", mounts) == {"pids": Root(str(tmp_path), 2)}


def test_where_the_version_2_tree_has_no_controllers_nothing_is_bounded(tmp_path: Path) -> None:
    assert find("0::/\n", unified(tmp_path, top={"cgroup.controllers": "", "cgroup.procs": "1\n"})) == {}


def test_limits_of_version_2_are_written_and_controllers_passed_on(tmp_path: Path) -> None:
    unified(tmp_path, top={})
    group = tmp_path / "group"
    group.mkdir()
    for file in ("memory.max", "memory.swap.max", "memory.oom.group"):
        (group / file).touch()
    with pytest.raises(OSError, match=r"pids\.max"):  # a tmpfs makes no such file
        cgroups.make(str(group), {"memory": (5000, 2), "pids": (7, 2)})
    written = {file.name: file.read_text() for file in group.iterdir()}
    assert written == {"memory.max": "5000", "memory.swap.max": "0", "memory.oom.group": "1"}
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+pids"


def test_what_the_system_refuses_is_not_said_to_hold(tmp_path: Path) -> None:
    assert cgroups.prepare("group", {"memory": 5000, "pids": 7}, {"memory": Root(str(tmp_path / "no" / "such"), 1)}) == {}


def test_events_are_read_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text("low 0\nhigh 2\nmax 31\noom 1\noom_kill 3\noom_group_kill 1\n")
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    assert (cgroups.hits(str(tmp_path), "memory", 2), cgroups.hits(str(tmp_path), "memory", 1)) == (3, 4)
    assert cgroups.hits(str(tmp_path), "pids", 2) == 0


def test_only_a_worker_that_was_killed_is_asked_about_memory() -> None:
    assert Bound(None, LIMIT, 512).why(-9) == ""
    assert Bound("arlm-no-such-group", LIMIT, 512).why(1) == ""


# -- what they bound --------------------------------------------------------------------------------------------------

FORKS = """
import os, time
def children(number, size):
    pids = []
    for _ in range(number):
        pid = os.fork()
        if pid == 0:
            held = b"x" * size
            time.sleep(60)
            os._exit(0)
        pids.append(pid)
    return pids
"""


@needs_memory
async def test_a_worker_and_what_it_starts_share_one_memory_limit() -> None:
    async with open_bench(process(), memory_limit=LIMIT) as bench:
        cell = await bench.cell(FORKS + f"pids = children(4, {LIMIT * 3 // 4})\nprint(os.waitpid(-1, 0)[1])")
        assert cell.error is None, cell.error
        assert cell.output == "9\n\n[memory_limit of 200,000,000 bytes was exceeded; the system ended a process that this REPL had started]"
        assert (await bench.out("len(pids)")).startswith("4\n")


@needs_memory
async def test_a_worker_that_is_killed_for_memory_is_told_so_by_name() -> None:
    async with open_bench(process(), memory_limit=LIMIT) as bench:
        cell = await bench.cell(FORKS + f"pids = children(3, {LIMIT // 4})\nheld = b'x' * {LIMIT * 7 // 8}")
        if cell.stopped != "exited":  # the kernel chooses whom it ends; with the others gone it is the worker's turn
            pytest.skip("the kernel ended a child instead")
        assert cell.error == "the REPL ended in this cell: memory_limit of 200,000,000 bytes was exceeded"
        assert await bench.out("1 + 1") == "2\n"


@needs_memory
async def test_one_process_alone_gets_a_memory_error_and_all_that_was_promised() -> None:
    async with open_bench(process(), memory_limit=LIMIT) as bench:
        assert await bench.out(f"len(b'x' * {LIMIT * 9 // 10})") == f"{LIMIT * 9 // 10}\n"
        for _ in range(3):
            await bench.fails("rows = []\nwhile True: rows.append(b'x' * 1_000_000)", "MemoryError")
        assert await bench.out("rows = None\n1 + 1") == "2\n"


@needs_pids
@pytest.mark.parametrize("options", [{"transport": "unix"}, {"transport": "stdio"}, {"confine": "off"}], ids=str)
async def test_no_more_processes_than_were_allowed(options: dict[str, Any]) -> None:
    async with open_bench(process(processes=20, **options)) as bench:
        cell = await bench.cell(FORKS + "pids = children(50, 0)")
        assert cell.error is not None
        assert cell.error.startswith("BlockingIOError")
        assert cell.output.endswith("[the limit of 20 processes and threads was reached; the system started no more]")
        assert await bench.out("1 + 1") == "2\n"


@pytest.mark.parametrize("number", [0, 7, -1, 2.5, "9", True])
def test_a_number_of_processes_that_is_none_is_refused(number: Any) -> None:
    with pytest.raises(ConfigError, match="processes must be a whole number of at least 8"):
        ProcessREPL(processes=number)


LEAVE = """
import glob, os
done = []
known = ["/sys/fs/cgroup/pids/cgroup.procs", "/sys/fs/cgroup/memory/cgroup.procs", "/sys/fs/cgroup/cgroup.procs"]
for path in glob.glob("/sys/fs/cgroup/**/cgroup.procs", recursive=True) + known:
    try:
        with open(path, "w") as file:
            file.write("0")
        done.append(path)
    except OSError:
        pass
return done
"""


@needs_pids
async def test_a_confined_worker_cannot_leave_its_group() -> None:
    escape = Escape(name="leave_the_group", code=LEAVE, proof="true")
    async with open_targets() as targets:
        assert await attempt(process(processes=64), escape, targets, supervisor=await supervisor()) is None
    async with open_bench(process(processes=64)) as bench:
        group = f"-{await supervisor()}-"
        assert group in await bench.out("print(open('/proc/self/cgroup').read())")


# -- what is left: nothing --------------------------------------------------------------------------------------------


@needs_pids
async def test_a_group_lives_as_long_as_its_worker() -> None:
    async with open_bench(process(), memory_limit=LIMIT) as bench:
        await bench.out("1")
        assert len(groups_of(await supervisor())) == len(set(PLACES.values()))
        number = await supervisor()
    await until_gone(number)


DEATHS = {
    "a worker that ends by itself": "import os\nos._exit(3)",
    "a worker that is killed, with processes that detached themselves": FORKS
    + "os.setsid() if os.getpid() != os.getsid(0) else None\nchildren(5, 0)\nos.kill(os.getpid(), 9)",
}


@needs_pids
@pytest.mark.parametrize("code", DEATHS.values(), ids=DEATHS)
async def test_nothing_is_left_of_the_group_of_a_worker_that_died(code: str) -> None:
    async with open_bench(process(), memory_limit=LIMIT) as bench:
        assert (await bench.cell(code)).stopped == "exited"
        await until_gone(await supervisor())


@needs_pids
async def test_what_a_killed_supervisor_left_is_swept_up() -> None:
    async with open_bench(process(), memory_limit=LIMIT) as bench:
        orphan = int(await bench.out(FORKS + "children(1, 0)[0]"))
        worker = int(await bench.out("os.getpid()"))
        killed = await supervisor()
        assert groups_of(killed)
        os.kill(killed, signal.SIGKILL)
        await until_dead(worker)
        await bench.cell("1")
        assert await bench.out("1 + 1") == "2\n"
        assert await supervisor() != killed
        assert not groups_of(killed)
        await until_dead(orphan)


async def until_dead(pid: int) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while alive_here(pid):
            await asyncio.sleep(0.01)


HOST = """
import asyncio, sys
from arlm.environments import forkserver
from arlm.environments.process import ProcessREPL
from arlm.testing.bench import Subject, open_bench
async def main():
    async with open_bench(Subject(name="p", environment=ProcessREPL), memory_limit=200_000_000) as bench:
        await bench.out("import os\\nif os.fork() == 0:\\n    import time; time.sleep(60)")
        print((await forkserver.current()).process.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@needs_pids
async def test_a_killed_host_leaves_no_group() -> None:
    host = await asyncio.create_subprocess_exec(sys.executable, "-c", HOST, stdout=subprocess.PIPE)
    assert host.stdout is not None
    number = int(await host.stdout.readline())
    assert groups_of(number)
    host.kill()
    await host.wait()
    await until_gone(number)


# -- where no group can be made ---------------------------------------------------------------------------------------

WITHOUT_GROUPS = """
import runpy, sys
sys.argv[:] = sys.argv[1:]
import importlib.util, os
here = sys.argv[0]
spec = importlib.util.spec_from_file_location("arlm_guest", os.path.join(here, "__init__.py"), submodule_search_locations=[here])
package = sys.modules["arlm_guest"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from arlm_guest import cgroups, supervisor
cgroups.roots = dict
supervisor.Supervisor(0, 1).run()
"""


@pytest.fixture
def ungrouped(monkeypatch: pytest.MonkeyPatch) -> AbstractAsyncContextManager[Bench]:
    """A bench whose supervisor finds no place for a group."""
    from arlm.environments import process as module

    folder = forkserver.command()[-1]
    monkeypatch.setattr(module, "command", lambda: [sys.executable, "-I", "-c", WITHOUT_GROUPS, folder])
    return open_bench(process(transport="stdio", processes=40))


@pytest.mark.skipif(sys.platform != "linux", reason="processes are counted on Linux")
async def test_where_there_are_no_groups_the_supervisor_counts(ungrouped: AbstractAsyncContextManager[Bench]) -> None:
    async with ungrouped as bench:
        assert await bench.out(FORKS + "pids = children(20, 0)\nlen(pids)") == "20\n"
        cell = await bench.cell("pids += children(60, 0)\ntime.sleep(60)")
        assert cell.stopped == "exited"
        assert cell.error == "the REPL ended in this cell: the limit of 40 processes and threads was reached and passed"
        assert await bench.out("1 + 1") == "2\n"


BOMB = """
import os, time
print(os.getcwd())
made = 0
while made < 9:
    made += 1
    if os.fork() == 0:
        os.setsid()
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are counted on Linux")
async def test_a_tree_that_doubles_in_sessions_of_its_own_is_found_and_dies_whole(ungrouped: AbstractAsyncContextManager[Bench]) -> None:
    async with ungrouped as bench:
        cell = await bench.cell(BOMB)
        assert cell.stopped == "exited"
        assert "the limit of 40 processes and threads was reached and passed" in str(cell.error)
        assert living_in(cell.output.split()[0]) == []
        assert await bench.out("1 + 1") == "2\n"


def living_in(folder: str) -> list[str]:
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.readlink(f"/proc/{name}/cwd").startswith(folder) and alive_here(int(name)):
                found.append(name)
        except OSError:
            continue
    return found
