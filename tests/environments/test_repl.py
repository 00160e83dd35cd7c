"""The life of a REPL: started, cancelled, closed, its worker and its fork server killed."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest

from arlm.environments import base, forkserver, process, repl
from arlm.environments.base import Exit
from arlm.environments.process import ProcessREPL, link_or_copy
from arlm.environments.report import OUTPUT_CHARS, Streamed, read_report
from arlm.errors import ConfigError, SandboxError
from arlm.server.peer import CallError
from arlm.testing.conformance import Bench, Subject, alive_here, open_bench


@pytest.fixture
def subject(process_subject: Subject) -> Subject:
    """What this file says is said of processes."""
    return process_subject


async def worker_pid(bench: Bench) -> int:
    return int(await bench.out("import os\nprint(os.getpid())"))


async def gone(*pids: int) -> None:
    with anyio.fail_after(10):
        while any(map(alive_here, pids)):
            await asyncio.sleep(0.01)


async def test_starting_twice_keeps_the_worker(bench: Bench) -> None:
    first = await worker_pid(bench)
    await bench.repl.start()
    assert await worker_pid(bench) == first


async def test_a_closed_repl_starts_a_fresh_worker_when_asked_again(bench: Bench) -> None:
    await bench.context("kept")
    first = await worker_pid(bench)
    await bench.repl.close()
    await bench.repl.close()
    assert not alive_here(first)
    assert await worker_pid(bench) != first
    assert await bench.out("context") == "'kept'\n"


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21])
async def test_a_start_cancelled_at_any_point_leaves_no_worker(subject: Subject, turns: int) -> None:
    async with open_bench(subject) as bench:
        starting = asyncio.ensure_future(bench.repl.start())
        for _ in range(turns):
            await asyncio.sleep(0.001 if turns > 8 else 0)
        starting.cancel()
        await asyncio.wait({starting})
        await bench.repl.close()
        supervisor = bench.place._control
        with anyio.fail_after(10):
            while not supervisor.idle:
                await asyncio.sleep(0.001)
        assert await bench.out("'starts again'") == "'starts again'\n"


async def test_a_cancelled_cell_is_killed_by_closing(bench: Bench) -> None:
    pid = await worker_pid(bench)
    cell = asyncio.ensure_future(bench.cell("print('busy')\nwhile True: pass"))
    await bench.until_streamed("busy")
    cell.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cell
    await bench.repl.close()
    assert not alive_here(pid)


async def test_a_close_that_is_cancelled_still_kills(bench: Bench) -> None:
    pid = await worker_pid(bench)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await bench.repl.close()
    await gone(pid)


async def test_leaving_the_place_kills_all_its_workers(subject: Subject) -> None:
    async with open_bench(subject) as bench:
        others = [bench.another() for _ in range(3)]
        pids = [int((await other.run_cell("import os\nprint(os.getpid())", 1)).output) for other in others]
        pids.append(await worker_pid(bench))
        assert all(map(alive_here, pids))
    assert not any(map(alive_here, pids))


async def test_leaving_the_place_by_cancellation_kills_all_its_workers(subject: Subject) -> None:
    pids = []

    async def use() -> None:
        async with open_bench(subject) as bench:
            pids.append(await worker_pid(bench))
            pids.append(int(await bench.out("import subprocess\nprint(subprocess.Popen(['sleep', '600'], start_new_session=True).pid)")))
            ready.set()
            await bench.cell("while True: pass")

    ready = asyncio.Event()
    user = asyncio.create_task(use())
    await ready.wait()
    user.cancel()
    await asyncio.sleep(0)
    user.cancel()  # a second cancel during clean-up changes nothing
    with pytest.raises(asyncio.CancelledError):
        await user
    await gone(*pids)


async def test_a_fork_server_killed_in_a_cell_is_replaced(bench: Bench) -> None:
    await bench.context("the text")
    await bench.out("precious = 1")
    supervisor = await forkserver.current()
    async with bench.running("print('busy')\nwhile True: pass") as cell:
        await bench.until_streamed("busy")
        supervisor.process.kill()
    result = cell.result()
    assert (result.stopped, result.output) == ("exited", "busy\n")
    assert "precious" in result.lost
    assert await bench.out("context, llm_query('goes on')") == "('the text', 'goes on')\n"
    assert (await forkserver.current()) is not supervisor
    assert not supervisor.alive


async def test_a_fork_server_killed_between_cells_is_replaced(bench: Bench) -> None:
    await bench.out("precious = 1")
    supervisor = await forkserver.current()
    supervisor.process.kill()
    await bench.repl._worker.exited
    with anyio.fail_after(10):
        await bench.repl._peer.wait_lost()
    result = await bench.cell("'goes on'")
    assert (result.output, result.lost) == ("'goes on'\n", ("precious",))


async def test_a_call_that_arrives_as_the_run_ends_is_refused(bench: Bench) -> None:
    await bench.repl.start()
    bench.repl.stop_serving()
    with pytest.raises(CallError, match="llm_query: no run is active"):
        await bench.repl._counted("llm_query", {"prompt": "x", "model": None})
    bench.repl.serve(bench.tasks, bench.script.answer)
    assert await bench.out("llm_query('goes on')") == "'goes on'\n"


async def test_closing_while_a_cell_runs_ends_the_cell_and_cancels_nobody(bench: Bench) -> None:
    async with bench.running("print('busy')\nwhile True: pass") as cell:
        await bench.until_streamed("busy")
        await bench.repl.close()
    assert cell.result().stopped == "exited"


async def test_a_cancelled_cell_can_be_ended_without_losing_the_worker(bench: Bench) -> None:
    await bench.out("kept = 1")
    cell = asyncio.ensure_future(bench.cell("print('busy')\nwhile True: pass"))
    await bench.until_streamed("busy")
    cell.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cell
    await bench.repl.end_cell()
    assert await bench.out("kept") == "1\n"


async def test_a_piped_supervisor_that_was_killed_is_a_sandbox_error(tmp_path: Path) -> None:
    subject = Subject(name="piped", environment=lambda: ProcessREPL(transport="stdio"))
    async with open_bench(subject) as bench:
        supervisor = int(await bench.out("import os\nprint(os.getppid())"))
        async with bench.running("print('busy')\nwhile True: pass") as cell:
            await bench.until_streamed("busy")
            os.kill(supervisor, signal.SIGKILL)
        assert cell.result().stopped == "exited"
        assert "the place it ran in was lost" in cell.result().error
        with pytest.raises(SandboxError, match="could not be started"):
            await bench.cell("'no place left'")


async def test_a_piped_supervisor_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "STOP_SECONDS", 0.05)
    async with open_bench(Subject(name="piped", environment=lambda: ProcessREPL(transport="stdio"))) as bench:
        supervisor = int(await bench.out("import os\nprint(os.getppid())"))
        await bench.repl.close()
        os.kill(supervisor, signal.SIGSTOP)
    assert not alive_here(supervisor)


async def test_a_worker_that_never_connects_is_a_sandbox_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repl, "START_SECONDS", 0.05)
    real = bench.place.start_worker

    async def start_elsewhere(ticket: object, **options: object) -> base.Worker:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_unix_server(silent, str(bench.scratch / "silent"))
        monkeypatch.setattr(bench.place, "_address", {"unix": str(bench.scratch / "silent")})
        worker = await real(ticket, **options)
        worker.exited.add_done_callback(lambda _: server.close())
        return worker

    with monkeypatch.context() as patch:
        patch.setattr(bench.place, "start_worker", start_elsewhere)
        with pytest.raises(SandboxError, match="did not connect within"):
            await bench.repl.start()
        pid = bench.repl._worker
        assert pid.exited.done()


async def test_a_worker_that_ends_while_starting_says_why(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.place, "_address", {"unix": str(bench.scratch / "nobody-listens")})
    with pytest.raises(SandboxError, match="the worker ended while starting: it exited with status 1") as caught:
        await bench.repl.start()
    assert "FileNotFoundError" in str(caught.value)


async def test_a_context_that_vanished_is_a_sandbox_error(bench: Bench) -> None:
    await bench.context("the text")
    (bench.scratch / "contexts" / "context_0").unlink()
    with pytest.raises(SandboxError, match="context_0 could not be loaded: FileNotFoundError"):
        await bench.repl.start()


async def test_a_context_larger_than_the_memory_limit_is_a_sandbox_error(subject: Subject) -> None:
    async with open_bench(subject, memory_limit=64 * 1024**2) as bench:
        await bench.context("x" * 100_000_000)
        with pytest.raises(SandboxError, match="memory_limit is 67,108,864 bytes"):
            await bench.repl.start()


@pytest.mark.parametrize(
    "lie",
    [None, [], "text", {}, {"output": 5, "error": [], "variables": "x", "notes": {}, "output_chars": "many", "ready": "yes"}],
    ids=repr,
)
def test_a_report_of_wrong_shapes_is_an_empty_one(lie: Any) -> None:
    result = read_report(lie, {"known": "int"})
    assert (result.output, result.error, result.answer_ready, result.variables) == ("", None, False, {"known": "int"})


def test_a_report_that_is_too_long_is_cut() -> None:
    lie = {"output": "x" * 10**6, "error": "e" * 10**6, "variables": {"v" * 10**5: "t" * 10**5}, "notes": ["n" * 10**6] * 1000}
    result = read_report(lie, {})
    assert len(result.output) < 50_000
    assert len(result.error or "") == 1000
    assert result.variables == {"v" * 200: "t" * 200}


def test_output_notes_that_lie_do_not_grow_the_host() -> None:
    streamed = Streamed()
    for lie in ("", 5, None):
        assert streamed.take({"note": "output", "text": lie}) == ""
    assert streamed.take({"note": "something else", "text": "x"}) == ""
    taken = [streamed.take({"note": "output", "text": "x" * 10_000}) for _ in range(100)]
    assert sum(map(len, taken)) == len(str(streamed)) == OUTPUT_CHARS
    assert Streamed().take({"note": "output", "text": "x" * 10**6}) == "x" * OUTPUT_CHARS


async def test_the_scratch_folder_of_a_worker_is_gone_with_the_place(subject: Subject) -> None:
    async with open_bench(subject) as bench:
        await bench.out("open('file', 'w').close()")
        assert any(bench.scratch.glob("w*/file"))
        scratch = bench.scratch
    assert not scratch.exists()


async def test_two_hundred_repls_live_in_one_place(bench: Bench) -> None:
    others = [bench.another() for _ in range(200)]

    async def use(number: int) -> str:
        return (await others[number].run_cell(f"llm_query('{number}')", 1)).output

    try:
        assert await asyncio.gather(*map(use, range(200))) == [f"'{number}'\n" for number in range(200)]
    finally:
        await asyncio.gather(*(other.close() for other in others))


def test_an_unknown_transport_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="'unix', 'tcp' or 'stdio'"):
        ProcessREPL(transport="carrier pigeon")


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (None, "the place it ran in was lost"),
        (-9, "killed"),
        (70, "lost its connection"),
        (71, "connection thread"),
        (-11, "signal 11"),
        (3, "status 3"),
    ],
)
def test_an_exit_says_how(status: int | None, text: str) -> None:
    assert text in str(Exit(status=status))


async def test_workers_killed_while_they_talk_leave_the_place_whole(subject: Subject) -> None:
    async with open_bench(subject) as bench:
        for turns in range(30):
            repl_ = bench.another()
            cell = asyncio.ensure_future(repl_.run_cell("while True: print('x' * 10_000)", 1))
            for _ in range(turns):
                await asyncio.sleep(0.0005)
            cell.cancel()
            await asyncio.wait({cell})
            await repl_.close()
        assert await bench.out("'the place lives'") == "'the place lives'\n"


def test_a_second_name_never_takes_the_place_of_a_file(tmp_path: Path) -> None:
    for name in ("mine", "other"):
        (tmp_path / name).write_text(name)
    link_or_copy(tmp_path / "mine", tmp_path / "inside")
    with pytest.raises(FileExistsError):
        link_or_copy(tmp_path / "other", tmp_path / "inside")
    assert (tmp_path / "mine").read_text() == "mine"
