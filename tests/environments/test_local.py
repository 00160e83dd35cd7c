"""Threads of the host: what they leave alone, how they end, what becomes of one that does not."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

import arlm
from arlm.environments import LocalREPL, local, repl
from arlm.environments.local import ThreadLink
from arlm.errors import ConfigError, SandboxError
from arlm.guest.capture import Capture
from arlm.server import peer
from arlm.server.handler import LMHandler
from arlm.testing.conformance import Bench, Subject, open_bench
from arlm.testing.scripted import ScriptedLM
from arlm.types import CellResult, Message
from held import held

pytestmark = pytest.mark.unmeasured


SUBJECT = Subject(name="local", environment=LocalREPL)


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """A Bench on a thread of this process."""
    monkeypatch.setattr(repl, "LIMIT_SECONDS", 0.05)
    monkeypatch.setattr(repl, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(local, "PATIENCE_SECONDS", 0.1)
    async with held(open_bench(SUBJECT)) as bench:
        yield bench


async def stopped(bench: Bench, code: str) -> CellResult:
    """Run a cell that a limit of the run stops once it has begun."""
    async with bench.running(f"print('begun')\n{code}") as cell:
        await bench.until_streamed("begun\n")
        bench.repl.end_cell_soon()
    assert cell.result().stopped == "limit"
    return cell.result()


def cell_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("arlm-local-")]


async def until_no_thread() -> None:
    with anyio.fail_after(10):
        while cell_threads():
            await asyncio.sleep(0.005)


# -- many at once, and the host as it was -------------------------------------------------------------------------------


async def model(messages: list[Message]) -> str:
    """Looks at its context in one turn, and answers in the next with what a sub-call made of it."""
    text = str(messages[-1]["content"])
    if len(messages) == 1:
        return text.removeprefix("twice ") * 2
    if len(messages) == 2:
        return "```repl\nimport sys\nprint('seen', context)\nsys.stderr.write(context * 500)\n```"
    (seen,) = set(re.findall(r"seen (<\d+>)", text))
    assert text.count(seen) == 501
    return f"```repl\nassert context == {seen!r}\nanswer.update(content=llm_query('twice ' + context), ready=True)\n```"


async def test_a_hundred_runs_at_once_answer_right_and_leave_the_host_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    def host() -> list[object]:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD)]
        modules = [sys.modules["__main__"], builtins.print, builtins.__import__, contextlib.redirect_stdout, traceback.print_exc]
        streams = [sys.stdin, sys.stdout, sys.stderr, sys.displayhook, sys.excepthook, threading.excepthook]
        return [os.getcwd(), os._exit, dict(os.environ), list(sys.path), *handlers, *modules, *streams]

    before = host()
    results = await asyncio.gather(
        *(arlm.run("What is it twice?", context=f"<{number}>", model=model, environment="local") for number in range(100))
    )
    assert [result.answer for result in results] == [f"<{number}><{number}>" for number in range(100)]
    assert host() == before
    assert capfd.readouterr() == ("", "")
    assert cell_threads() == []


async def test_a_session_keeps_its_namespace_between_questions() -> None:
    async def counts(messages: list[Message]) -> str:
        return "```repl\nn = globals().get('n', 0) + 1\nanswer.update(content=str(n), ready=True)\n```"

    async with arlm.RLM(model=counts, environment="local").session() as session:
        assert [(await session.run("How often?")).answer for _ in range(3)] == ["1", "2", "3"]
    assert cell_threads() == []


async def test_a_memory_limit_is_a_config_error() -> None:
    lm = ScriptedLM([])
    with pytest.raises(ConfigError, match="memory_limit"):
        await arlm.run("What?", model=lm, environment="local", memory_limit=10**9)
    assert lm.calls == []


async def test_workers_share_a_text_and_not_a_list(bench: Bench) -> None:
    await bench.context("the text" * 1000)
    await bench.context(["a list"])
    other = bench.another()
    try:
        for context in bench.contexts:
            await other.load(context)
        code = "context.append(1)\nid(context_0), len(context)"
        assert (await other.run_cell(code, 1)).output == await bench.out(code)
    finally:
        await other.close()


# -- output -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("import sys\nprint('a', file=sys.stderr)\n_ = sys.stdout.write('b')\nprint('c', flush=True)", "a\nbc\n"),
        ("from sys import stdout as out\nout.writelines(['a', 'b'])", "ab"),
        ("import sys\n_ = sys.stdout.buffer.write(b'a\\xffb')\nsys.stdout.flush()", "a\ufffdb"),
        ("import builtins\nbuiltins.print('through the module')", "through the module\n"),
        ("import builtins\nbuiltins.print = None\nprint('b')", "b\n"),
        ("import pprint\nfrom pprint import pp\npprint.pprint([1])\npp({'k': 2})", "[1]\n{'k': 2}\n"),
        ("import io, pprint\nfile = io.StringIO()\npprint.pprint([1], file)\nfile.getvalue()", "'[1]\\n'\n"),
        ("import traceback\ntry: 1 / 0\nexcept Exception: traceback.print_exc(limit=0)", "ZeroDivisionError: division by zero\n"),
        ("exec('print(1)')\nexec('print(2)', {})\neval('print(3)')", "1\n2\n3\n"),
        ("import threading\nthread = threading.Thread(target=print, args=['t'])\nthread.start()\nthread.join()", "t\n"),
        ("print('a', 'b', sep='', end='!')\nprint('c', sep=None, end=None)\nprint()", "ab!c\n\n"),
        ("print('\\ud800 \\U0001f600')", "\\ud800 \U0001f600\n"),
        ("import sys\nsys.stdout = None\nprint('nowhere')\n5", ""),
        ("import contextlib, io\nwith contextlib.redirect_stderr(io.StringIO()) as file: print('x')\nfile.getvalue()", "x\n''\n"),
    ],
)
async def test_what_a_cell_prints_is_its_own_output(bench: Bench, capfd: pytest.CaptureFixture[str], code: str, output: str) -> None:
    assert await bench.out(code) == output
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("code", ["input()", "breakpoint()", "help()"])
async def test_nobody_is_there_to_ask(bench: Bench, code: str) -> None:
    await bench.fails(code, "EOFError")


@pytest.mark.parametrize("code", ["exit()", "quit(1)", "import sys\nsys.exit(2)", "raise SystemExit"])
async def test_exiting_ends_the_cell_and_leaves_stdin_open(bench: Bench, code: str) -> None:
    result = await bench.cell(code)
    assert (result.error, result.stopped) == (None, None)
    assert "the cell ended by sys.exit" in result.output
    assert sys.stdin is None or not sys.stdin.closed
    assert await bench.out("'goes on'") == "'goes on'\n"


async def test_a_stream_refuses_what_is_no_text(bench: Bench) -> None:
    await bench.fails("import sys\nsys.stdout.write(b'bytes')", "TypeError")
    await bench.fails("import subprocess, sys\nsubprocess.run(['true'], stdout=sys.stdout)", "io.UnsupportedOperation")


async def test_a_view_of_a_module_is_that_module_but_for_a_few_names(bench: Bench) -> None:
    code = "from time import *\nimport sys, time, types\nisinstance(monotonic(), float), sys.path is __import__('importlib').sys.path"
    assert await bench.out(code) == "(True, True)\n"
    assert await bench.out("isinstance(sys, types.ModuleType), sys.__name__, 'maxsize' in dir(sys)") == "(True, 'sys', True)\n"
    await bench.fails("sys.no_such_name", "AttributeError")
    await bench.fails("time.sleep(-1)", "ValueError")


async def test_each_session_shows_its_own_source_in_tracebacks(bench: Bench) -> None:
    other = bench.another()
    try:
        ours, theirs = await asyncio.gather(bench.cell("mine = 1 / 0"), other.run_cell("yours = {}['k']", 1))
        syntax = await bench.cell("def f(:")
    finally:
        await other.close()
    assert "    mine = 1 / 0\n" in ours.output
    assert "    yours = {}['k']\n" in theirs.output
    assert {'File "<cell 1>"'} == set(re.findall(r'File "[^"]*"', ours.output + theirs.output))
    assert 'File "<cell 2>", line 1' in syntax.output


async def test_a_task_that_fails_unseen_is_told_in_the_output(bench: Bench) -> None:
    code = (
        "import asyncio, gc\nasync def fail(): raise LookupError('unseen')\n"
        "task = asyncio.create_task(fail())\nawait asyncio.sleep(0.01)\ndel task\n_ = gc.collect()"
    )
    assert "LookupError: unseen" in await bench.out(code)


# -- stopping -----------------------------------------------------------------------------------------------------------


async def test_an_idle_thread_ends_at_once(bench: Bench) -> None:
    await bench.out("import asyncio\nleft = asyncio.create_task(asyncio.sleep(600))\nawait asyncio.sleep(0)")
    assert len(cell_threads()) == 1
    await bench.repl.close()
    assert cell_threads() == []


async def test_closing_stops_a_cell_that_computes(bench: Bench) -> None:
    async with bench.running("print('busy')\nwhile True: pass") as cell:
        await bench.until_streamed("busy")
        await bench.repl.close()
        assert cell_threads() == []
    assert cell.result().stopped == "exited"


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5])
async def test_a_start_cancelled_at_any_point_leaves_no_thread(turns: int) -> None:
    async with open_bench(SUBJECT) as bench:
        starting = asyncio.ensure_future(bench.repl.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait({starting})
        await bench.repl.close()
        assert cell_threads() == []
        assert await bench.out("'starts again'") == "'starts again'\n"


async def test_a_thread_that_cannot_be_stopped_is_left_behind_and_the_loss_is_said_by_name(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)  # open() of it waits, in C, for a writer; an interrupt that comes before that is swallowed
    waits = f"for _ in range(50):\n    try: open({str(gate)!r}).close(); break\n    except BaseException: pass"
    await bench.context("the text")
    await bench.out("precious = 1")
    with caplog.at_level(logging.WARNING, "arlm.environments"):
        result = await stopped(bench, waits)
    assert result.lost == ("precious",)
    assert "did not react to the interrupt" in result.error
    assert result.output == f"begun\n{local.ABANDONED}"
    assert "left behind" in caplog.text
    assert await bench.out("'precious' in globals(), context, llm_query('goes on')") == "(False, 'the text', 'goes on')\n"
    assert len(cell_threads()) == 2
    writer = os.open(gate, os.O_RDWR)
    try:
        await bench.repl.close()
        await until_no_thread()
    finally:
        os.close(writer)


async def test_a_thread_left_behind_has_no_calls_and_no_output(bench: Bench, tmp_path: Path) -> None:
    code = f"""
import pathlib, time
gate, said = pathlib.Path({str(tmp_path / "gate")!r}), pathlib.Path({str(tmp_path / "said")!r})
for question in (lambda: time.sleep(0.01), lambda: llm_query('late')):
    while True:
        try: question()
        except RuntimeError as error:
            said.write_text(str(error))
            break
        except BaseException: pass
        if gate.exists(): break
print('late')
"""
    assert (await stopped(bench, code)).lost == ()
    assert await bench.out("'goes on'") == "'goes on'\n"
    (tmp_path / "gate").touch()
    await bench.repl.close()
    await until_no_thread()
    assert (tmp_path / "said").read_text() == "llm_query: the REPL was closed"
    assert bench.script.prompts == []
    assert "late" not in "".join(bench.streamed)


async def test_closing_ends_a_thread_that_waits_for_a_call(bench: Bench) -> None:
    async with bench.running("try: llm_query('hang')\nexcept RuntimeError: pass") as cell:
        await bench.script.until(lambda: bench.script.in_flight == 1)
        await bench.repl.close()
    assert cell.result().stopped == "exited"
    assert cell_threads() == []
    assert bench.script.cancelled == ["hang"]


async def test_computing_beside_a_call_that_hangs_is_stopped() -> None:
    code = """
import threading
def ask():
    try: llm_query('hang')
    except RuntimeError: pass
threading.Thread(target=ask).start()
while True: pass
"""
    async with open_bench(SUBJECT, cell_timeout=0.4) as bench:
        result = await bench.cell(code)
        assert (result.stopped, result.lost) == ("timeout", None)
        await bench.script.until(lambda: bench.script.cancelled == ["hang"])


async def test_interrupts_at_any_moment_stop_cells_and_nothing_else(bench: Bench) -> None:
    await bench.repl.start()
    interrupter = bench.repl._worker._interrupter
    over = threading.Event()

    def storm() -> None:
        while not over.is_set():
            interrupter.interrupt("now")

    storming = threading.Thread(target=storm)
    storming.start()
    try:
        results = [await bench.cell("for n in range(10): print(n)") for _ in range(200)]
    finally:
        over.set()
        storming.join()
    assert {result.stopped for result in results} == {None}
    assert {(result.error or "").split(":")[0] for result in results} <= {"", "CellStopped", "KeyboardInterrupt"}
    assert await bench.out("'goes on'") == "'goes on'\n"


# -- the road between thread and loop -----------------------------------------------------------------------------------


async def test_what_a_paused_host_was_sent_is_delivered_afterwards(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "MAX_CALL_BYTES", 2_000)
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool: replies = list(pool.map(llm_query, [f'hold {n}' + 'x' * 1_500 for n in range(8)]))
[reply[:6] for reply in replies]
"""
    async with bench.running(code) as cell:
        await bench.script.until(lambda: bench.script.in_flight == 2)
        bench.script.release.set()
    assert cell.result().output == repr([f"hold {n}" for n in range(8)]) + "\n"
    assert bench.script.most_in_flight == 2


async def test_a_worker_whose_token_is_not_wanted_is_a_sandbox_error(tmp_path: Path) -> None:
    async with LMHandler(directory=tmp_path) as handler, LocalREPL().open(handler, tmp_path) as place:
        ticket = handler.expect("one", [])
        ticket.give_up("not wanted")
        with pytest.raises(SandboxError, match="refused"):
            await place.start_worker(ticket, memory_limit=None)
    assert cell_threads() == []


async def test_the_end_of_the_handler_ends_the_thread(bench: Bench) -> None:
    await bench.repl.start()
    for connection in list(bench.handler._connections):
        connection.close()
    await until_no_thread()
    result = await bench.cell("'a fresh one'")
    assert result.output == "'a fresh one'\n"


def test_a_loop_that_is_gone_is_told_nothing() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    link = ThreadLink(loop, None, Capture(100), lambda message: None)
    link.output.write("nobody reads this")
    link.fail(1, ValueError("nobody hears this"))


FORKS = """
import arlm, os, sys

async def forks(messages):
    if len(messages) > 2: return "```repl\\nanswer.update(content=str(os.waitpid(child, 0)[0] == child), ready=True)\\n```"
    return '''```repl
import os
child = os.fork()
if child == 0:
    try: llm_query('x')
    except RuntimeError as error: os.write(2, str(error).encode())
```'''

print(arlm.run_sync("What?", model=forks, environment="local").answer)
"""


def test_a_forked_child_makes_no_calls_and_ends_with_its_cell() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKS], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"
    assert "a forked process has no connection" in done.stderr
