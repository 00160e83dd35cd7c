"""Contexts that a place holds once: workers share the memory, whatever is killed leaves the rest standing, and cells reach none of it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import psutil
import pytest

from arlm.environments import forkserver, holders
from arlm.environments.control import Control
from arlm.environments.process import ProcessREPL, Road
from arlm.environments.repl import REPL
from arlm.environments.supervised import SupervisedPlace
from arlm.errors import SandboxError
from arlm.guest.bounds import THREAD_BYTES
from arlm.guest.confine import grade
from arlm.testing.bench import PATIENCE_SECONDS, Bench, Subject, alive_here, open_bench

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are handed over on Linux")

SUBJECT = Subject(name="process", environment=ProcessREPL, alive=alive_here)
MIB = 2**20
SIZE = 48 * MIB
LONG = [f"{number:0{MIB}}" for number in range(16)]
SMALL = [f"{number:0999}" for number in range(SIZE // 1000)]


@pytest.fixture
def no_parked_supervisor() -> None:
    forkserver.stop_parked()


@pytest.fixture
async def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "HOLD_BYTES", 1)


async def below() -> list[psutil.Process]:
    """The processes of the place: workers and holders."""
    found: list[psutil.Process] = psutil.Process((await forkserver.current()).process.pid).children()
    return found


def memory(processes: list[psutil.Process]) -> int:
    return sum(process.memory_full_info().pss for process in processes)


async def cell(repl: REPL, code: str) -> str:
    result = await repl.run_cell(code, 1)
    assert result.error is None, result
    return result.output


async def another(bench: Bench) -> REPL:
    """A second worker with the same contexts."""
    repl = bench.another()
    for context in bench.contexts:
        await repl.load(context)
    await repl.start()
    return repl


async def holder_of(bench: Bench) -> psutil.Process:
    """The one process below the supervisor that is no worker: it has no folder of its own."""
    (holder,) = [process for process in await below() if not process.cwd().startswith(str(bench.scratch))]
    return holder


@asynccontextmanager
async def stopped(process: psutil.Process) -> AsyncIterator[None]:
    process.suspend()
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.resume()


@pytest.mark.unmeasured  # coverage has memory of its own in each worker
@pytest.mark.usefixtures("no_parked_supervisor")
@pytest.mark.parametrize("context", ["x" * SIZE, LONG * (SIZE // len(LONG) // MIB)], ids=["text", "long strings"])
async def test_ten_workers_with_the_same_context_hold_it_once(context: object) -> None:
    async with open_bench(SUBJECT) as bench:
        await bench.context(context)
        assert await bench.out("print(len(context), context.count('y'))") == f"{len(context)} 0\n"  # type: ignore[arg-type]
        repls = [await another(bench) for _ in range(9)]
        for repl in repls:
            await cell(repl, "total = len(context) if isinstance(context, str) else sum(map(len, context))")
        assert len(await below()) == 11
        assert memory(await below()) < 2.5 * SIZE
        for repl in repls:
            await repl.close()


@pytest.mark.unmeasured  # coverage has memory of its own in each worker
@pytest.mark.usefixtures("no_parked_supervisor")
async def test_small_values_are_loaded_by_a_worker_that_is_alone_and_held_for_a_second() -> None:
    async with open_bench(SUBJECT) as bench:
        await bench.context(SMALL)
        await bench.repl.start()
        assert len(await below()) == 1
        repls = [await another(bench) for _ in range(3)]
        assert len(await below()) == 5
        assert memory(await below()) < 3.5 * SIZE  # the first worker's, the holder's, and what five processes need by themselves
        assert await cell(repls[2], "print(context[7] == f'{7:0999}')") == "True\n"
        for repl in repls:
            await repl.close()


async def test_what_a_worker_changes_is_its_own() -> None:
    async with open_bench(SUBJECT) as bench:
        await bench.context(LONG)
        await bench.out("context.clear()")
        other = await another(bench)
        assert await cell(other, "print(len(context))") == "16\n"
        await other.close()


@pytest.mark.usefixtures("small_is_large")
async def test_one_file_under_two_names_is_two_values() -> None:
    async with open_bench(SUBJECT) as bench:
        await bench.context(["a" * 20_000])
        first = bench.contexts[0]
        await bench.repl.load(type(first)(name="other", aliases=(), path=first.path, kind=first.kind))
        assert await bench.out("context.clear()\nprint(len(other))") == "1\n"


@pytest.mark.parametrize("transport", ["unix", "tcp", "stdio"])
@pytest.mark.usefixtures("small_is_large")
async def test_a_held_context_arrives_by_every_road(transport: Road) -> None:
    subject = Subject(name="process", environment=lambda: ProcessREPL(transport=transport))
    async with open_bench(subject) as bench:
        await bench.context("\ud83e\udd23 \N{ROLLING ON THE FLOOR LAUGHING} \x00")
        await bench.context(b"\xff\x00")
        code = "print([ord(c) for c in context_0], context, llm_query('echo'), flush=True)\nimport os\nos.write(1, b'end')"
        assert (await bench.out(code)).startswith("[55358, 56611, 32, 129315, 32, 0] b'\\xff\\x00' ")


@pytest.mark.parametrize("confined", [True, False], ids=["confined", "open"])
@pytest.mark.usefixtures("small_is_large")
async def test_a_cell_has_no_descriptor_of_its_holder(confined: bool) -> None:
    subject = Subject(name="process", environment=lambda: ProcessREPL(confine="auto" if confined else "off"))
    list_them = """
        import os
        for name in sorted(os.listdir("/proc/self/fd"), key=int):
            try:
                print(os.path.basename(os.readlink(f"/proc/self/fd/{name}").partition(":")[0]))
            except OSError:
                pass
    """.replace("\n        ", "\n")
    async with open_bench(subject) as bench:
        bare = sorted((await bench.out(list_them)).split())
        await bench.repl.close()
        await bench.context("held")
        assert sorted((await bench.out(list_them)).split()) == bare


@pytest.mark.usefixtures("small_is_large")
async def test_a_confined_cell_can_neither_signal_nor_read_its_holder() -> None:
    if not grade()["signals"]:
        pytest.skip("this kernel cannot keep signals in")
    async with open_bench(SUBJECT) as bench:
        await bench.context("held")
        await bench.repl.start()
        pid = (await holder_of(bench)).pid
        await bench.fails(f"import os, signal\nos.kill({pid}, signal.SIGTERM)", "PermissionError")
        await bench.fails(f"open('/proc/{pid}/mem', 'rb')", "PermissionError")
        assert alive_here(pid)


@pytest.mark.usefixtures("small_is_large")
async def test_workers_survive_their_holder_and_the_next_has_the_context_too() -> None:
    async with open_bench(SUBJECT) as bench:
        await bench.context("held")
        await bench.out("x = 1")
        first = await holder_of(bench)
        assert isinstance(bench.place, SupervisedPlace)
        (known,) = bench.place._holders._known.values()
        first.kill()
        await known.worker.exited  # told by the supervisor, later than it is gone; a worker that is asked for before loads by itself
        assert await bench.out("print(x, context)") == "1 held\n"
        other = await another(bench)
        assert await cell(other, "print(context)") == "held\n"
        assert (await holder_of(bench)).pid != first.pid
        await other.close()


@pytest.mark.usefixtures("small_is_large")
async def test_a_holder_that_is_killed_while_it_loads_costs_its_worker_only_time(monkeypatch: pytest.MonkeyPatch) -> None:
    hold = Control.hold

    def hold_and_kill(self: Control, *args: object) -> object:
        worker, loading = hold(self, *args)  # type: ignore[arg-type]
        worker.order_kill()
        return worker, loading

    monkeypatch.setattr(Control, "hold", hold_and_kill)
    async with open_bench(SUBJECT) as bench:
        await bench.context("held")
        assert await bench.out("print(context)") == "held\n"
        assert len(await below()) == 1


@pytest.mark.usefixtures("small_is_large")
async def test_a_holder_that_is_killed_with_a_worker_asked_for_costs_it_only_time() -> None:
    async with open_bench(SUBJECT) as bench:
        await bench.context("held")
        await bench.repl.start()
        holder = await holder_of(bench)
        async with stopped(holder):
            starting = [asyncio.ensure_future(another(bench)) for _ in range(3)]
            await answered(bench)
            holder.kill()
        for repl in await asyncio.gather(*starting):
            assert await cell(repl, "print(context)") == "held\n"
            await repl.close()


@pytest.mark.usefixtures("small_is_large")
async def test_a_cancelled_start_from_a_holder_leaves_no_worker() -> None:
    async with open_bench(SUBJECT) as bench:
        await bench.context("held")
        await bench.repl.start()
        known = {process.pid for process in await below()}
        async with stopped(await holder_of(bench)):
            starting = [asyncio.ensure_future(another(bench)) for _ in range(3)]
            await answered(bench)
            for task in starting:
                task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait(starting)
        assert all(task.cancelled() for task in starting)
        assert {process.pid for process in await below() if alive_here(process.pid)} == known
        other = await another(bench)
        await other.close()


@pytest.mark.usefixtures("small_is_large")
async def test_a_start_that_is_cancelled_while_its_holder_loads_leaves_it_to_the_next() -> None:
    async with open_bench(SUBJECT) as bench:
        await bench.context("held")
        starting = asyncio.ensure_future(bench.repl.start())
        await asyncio.sleep(0)
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        assert await bench.out("print(context)") == "held\n"
        assert len(await below()) == 2


@pytest.mark.usefixtures("small_is_large")
async def test_the_holders_of_a_place_end_with_it() -> None:
    async with open_bench(SUBJECT) as bench:
        await bench.context("held")
        await bench.repl.start()
        assert len(await below()) == 2
    assert await below() == []


@pytest.mark.usefixtures("small_is_large")
async def test_holders_that_nobody_uses_do_not_add_up() -> None:
    async with open_bench(SUBJECT) as bench:
        for _ in range(4):
            await bench.context("held")
            await bench.repl.close()
            await bench.repl.start()
        await bench.repl.close()
        with anyio.fail_after(PATIENCE_SECONDS):
            while len(await below()) > 1:
                await asyncio.sleep(0.01)


@pytest.mark.usefixtures("no_parked_supervisor", "small_is_large")
async def test_a_holder_ends_with_its_supervisor() -> None:
    async with open_bench(SUBJECT) as bench:
        await bench.context("held")
        await bench.repl.start()
        holder = await holder_of(bench)
        os.kill((await forkserver.current()).process.pid, signal.SIGKILL)
        await bench.gone(holder.pid)


async def test_a_held_context_counts_for_the_memory_limit() -> None:
    async with open_bench(SUBJECT, memory_limit=SIZE + 64 * MIB) as bench:
        await bench.context("x" * SIZE)
        assert await bench.out(f"y = bytes({32 * MIB})\nprint(len(y))") == f"{32 * MIB}\n"
        assert len(await below()) == 2
        await bench.fails(f"z = bytes({56 * MIB + THREAD_BYTES})", "MemoryError")
    async with open_bench(SUBJECT, memory_limit=SIZE // 2) as bench:
        await bench.context("x" * SIZE)
        with pytest.raises(SandboxError, match=f"memory_limit is {SIZE // 2:,} bytes"):
            await bench.repl.start()


async def answered(bench: Bench) -> None:
    """Return when the supervisor has taken all that was asked of it so far."""
    server = await forkserver.current()
    await asyncio.sleep(0)
    assert server.peer is not None
    await server.peer.call("cpu", {"worker": "nobody"})
