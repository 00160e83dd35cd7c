"""run_blocking and run_sync: one shim, outside and inside a running loop, in any thread, and what Ctrl-C does to it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import signal
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import aiohttp
import psutil
import pytest

import arlm
from arlm import sync
from arlm.sync import run_blocking
from arlm.testing import Script, ScriptedLM, ScriptedProvider
from commandline import clean_environment

END_S = 5.0  # for a process to end after Ctrl-C, on a loaded machine

flavour: contextvars.ContextVar[str] = contextvars.ContextVar("flavour", default="plain")


def press_ctrl_c() -> None:
    """As a terminal does it: the signal comes to the main thread."""
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]


def outside_a_loop(call: Callable[[], object]) -> None:
    call()


def inside_a_loop(call: Callable[[], object]) -> None:
    async def main() -> None:
        call()

    asyncio.run(main())


anywhere = pytest.mark.parametrize("somewhere", [outside_a_loop, inside_a_loop])


async def answer() -> int:
    await asyncio.sleep(0)
    return 42


async def fail() -> None:
    raise LookupError("inside")


class Slow:
    """Hangs, presses Ctrl-C once it does, and takes a while to clean up."""

    def __init__(self, *, presses: int = 1, again: int = 0) -> None:
        self.presses = presses
        self.again = again
        self.begun = threading.Event()
        self.cleaned_up = False

    async def __call__(self) -> None:
        self.begun.set()
        try:
            for _ in range(self.presses):
                asyncio.get_running_loop().call_soon(press_ctrl_c)
            await asyncio.sleep(60)
        finally:
            for _ in range(self.again):
                press_ctrl_c()
                await asyncio.sleep(0.001)
            self.cleaned_up = True


def test_it_runs_outside_a_loop() -> None:
    assert run_blocking(answer) == 42


async def test_it_runs_inside_a_loop_in_another_thread() -> None:
    here = threading.get_ident()

    async def where() -> int:
        return threading.get_ident()

    assert run_blocking(where) != here


async def test_an_exception_comes_out_as_it_is() -> None:
    with pytest.raises(LookupError, match="inside"):
        run_blocking(fail)


def test_an_exception_comes_out_as_it_is_outside_a_loop() -> None:
    with pytest.raises(LookupError, match="inside"):
        run_blocking(fail)


async def test_context_variables_are_visible_inside() -> None:
    async def taste() -> str:
        return flavour.get()

    flavour.set("salty")
    assert run_blocking(taste) == "salty"


async def test_no_thread_is_left_behind() -> None:
    before = set(threading.enumerate())
    run_blocking(answer)
    assert set(threading.enumerate()) == before


async def test_it_works_from_a_thread_that_is_not_the_main_one() -> None:
    async def nested() -> int:
        return run_blocking(answer)

    assert await asyncio.to_thread(run_blocking, nested) == 42


@anywhere
def test_ctrl_c_cancels_waits_for_the_clean_up_and_leaves_the_handler_as_it_was(somewhere: Callable[..., None]) -> None:
    before, slow = signal.getsignal(signal.SIGINT), Slow()
    with pytest.raises(KeyboardInterrupt):
        somewhere(lambda: run_blocking(slow))
    assert slow.cleaned_up
    assert signal.getsignal(signal.SIGINT) is before
    assert run_blocking(answer) == 42


@anywhere
def test_further_ctrl_cs_change_nothing(somewhere: Callable[..., None]) -> None:
    slow = Slow(presses=2, again=10)
    with pytest.raises(KeyboardInterrupt):
        somewhere(lambda: run_blocking(slow))
    assert slow.cleaned_up


@anywhere
def test_ctrl_c_before_the_coroutine_has_begun_is_not_lost(somewhere: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    slow, run = Slow(presses=0), sync._Call.run
    monkeypatch.setattr(sync._Call, "run", lambda call: (press_ctrl_c(), run(call))[1])
    with pytest.raises(KeyboardInterrupt):
        somewhere(lambda: run_blocking(slow))
    assert slow.cleaned_up


def test_ctrl_c_when_all_is_done_is_not_lost() -> None:
    async def just_now() -> None:
        asyncio.get_running_loop().call_soon(press_ctrl_c)

    with pytest.raises(KeyboardInterrupt):
        run_blocking(just_now)


@anywhere
def test_ctrl_c_turns_whatever_the_clean_up_raises_into_an_interrupt(somewhere: Callable[..., None]) -> None:
    async def stumbles() -> None:
        try:
            await Slow()()
        finally:
            await fail()

    with pytest.raises(KeyboardInterrupt):
        somewhere(lambda: run_blocking(stumbles))


@anywhere
def test_a_ctrl_c_that_comes_when_patience_has_ended_stops_the_waiting(
    somewhere: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "PATIENCE_S", -1.0)
    slow = Slow(again=1)
    with pytest.raises(KeyboardInterrupt):
        somewhere(lambda: run_blocking(slow))
    assert not slow.cleaned_up or somewhere is inside_a_loop  # there the helper thread goes on by itself
    for thread in threading.enumerate():
        if thread.name == "arlm-blocking":
            thread.join()


def test_ctrl_c_ends_the_calls_of_all_threads_before_it_is_raised() -> None:
    others, ended = [Slow(presses=0) for _ in range(3)], []

    def in_a_thread(slow: Slow) -> None:
        try:
            run_blocking(slow)
        except KeyboardInterrupt:
            ended.append(slow.cleaned_up)

    threads = [threading.Thread(target=in_a_thread, args=(slow,)) for slow in others]
    for thread in threads:
        thread.start()
    for other in others:
        other.begun.wait()
    with pytest.raises(KeyboardInterrupt):
        run_blocking(Slow())
    assert all(slow.cleaned_up for slow in others)
    for thread in threads:
        thread.join()
    assert ended == [True] * 3


def test_ctrl_c_ends_what_a_call_has_called_in_its_turn() -> None:
    inner = Slow()

    async def outer() -> None:
        run_blocking(inner)

    async def outermost() -> None:
        await asyncio.to_thread(run_blocking, outer)

    with pytest.raises(KeyboardInterrupt):
        run_blocking(outermost)
    assert inner.cleaned_up


def test_a_handler_of_the_programs_own_stays_in_force() -> None:
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(1))
    try:

        async def press() -> int:
            press_ctrl_c()
            return await answer()

        assert run_blocking(press) == 42
    finally:
        signal.signal(signal.SIGINT, before)
    assert pressed == [1]


@anywhere
def test_another_signal_whose_handler_raises_cancels_and_waits_too(somewhere: Callable[..., None]) -> None:
    slow = Slow(presses=0)

    def stop(*_: object) -> None:
        raise SystemExit(3)

    async def told_to_stop() -> None:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)  # type: ignore[arg-type]
        await slow()

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(SystemExit):
            somewhere(lambda: run_blocking(told_to_stop))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert slow.cleaned_up or not slow.begun.is_set()


def final(expression: str) -> str:
    return f"```repl\nanswer['content'] = str({expression})\nanswer['ready'] = True\n```"


def test_runs_in_a_row_answer_each_its_own_question() -> None:
    for n in range(3):
        assert arlm.run_sync("q", context=[n], model=ScriptedLM([final("context[0]")])).answer == str(n)


async def test_runs_inside_a_running_loop_in_a_row() -> None:
    rlm = arlm.RLM(model=ScriptedLM([final("context[0]")] * 3))
    for n in range(3):
        assert rlm.run_sync("q", context=[n]).answer == str(n)


def test_eight_threads_at_once_get_each_its_own_answers() -> None:
    all_here = threading.Barrier(8)

    async def wait_for_all(messages: list[arlm.Message]) -> str:
        await asyncio.to_thread(all_here.wait)
        return f"reply to {messages[-1]['content']}"

    rlm = arlm.RLM(model=ScriptedLM([final("llm_query(context)")] * 16, sub=wait_for_all))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            results = list(pool.map(lambda n: rlm.run_sync("q", context=f"text {n}"), range(8)))
            assert [result.answer for result in results] == [f"reply to text {n}" for n in range(8)]
            assert {result.usage.total.calls for result in results} == {2}


def clients() -> int:
    return sum(isinstance(it, aiohttp.ClientSession) for it in gc.get_objects())


async def test_runs_in_a_row_leave_no_client_and_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedProvider(Script(turns=[final("llm_query('x')")])) as provider:
        monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-scripted")
        rlm = arlm.RLM(model="openai/scripted", context="c")
        before = clients()  # of tests before: a failed one keeps its own
        seen = []
        for _ in range(6):
            assert (await asyncio.to_thread(rlm.run_sync, "q")).answer == "x"
            while provider.board.connections:  # closed by the client when run_sync returned; the provider hears of it on this loop
                await asyncio.sleep(0.001)
            seen.append((psutil.Process().num_fds(), clients()))
        assert seen[1:] == seen[1:2] * 5, "the first run starts the fork server that all share"
        assert seen[-1][1] == before


# What the programs below begin with. What is left when Ctrl-C comes out of run_sync they say themselves.
PROGRAM = """
import asyncio, os, signal, tempfile, threading
import psutil
import arlm

in_flight = 0

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # in one piece, whichever thread it is

def final(expression):
    return f"```repl\\nanswer['content'] = {expression}\\nanswer['ready'] = True\\n```"

async def model(messages):
    global in_flight
    if messages[0]["role"] == "system":
        question = messages[1]["content"]
        return final("llm_query('x')" if "hang" in question else "tool()" if "tool" in question else "'quick'")
    in_flight += 1
    say("asked")
    try:
        await asyncio.sleep(600)
    finally:
        in_flight -= 1

def ask(question, **options):
    return arlm.run_sync(question, context="c", model=model, **options).answer

def left():
    workers = [worker for supervisor in psutil.Process().children() for worker in supervisor.children(recursive=True)]
    return [*workers, *os.listdir(tempfile.gettempdir()), *range(in_flight)]

def interrupted():
    try:
        ask("hang")
    except KeyboardInterrupt:
        say("main: interrupted, left:", left())
        say("main:", ask("quick"))
"""


@asynccontextmanager
async def started(program: str, **variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-c", program], stdout=pipe, stderr=pipe, env=clean_environment(**variables)
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            print(await process.communicate())


PLAIN = "interrupted()"
IN_A_LOOP = "async def main():\n    interrupted()\nasyncio.run(main())"
IN_THREADS = """
def hang(n):
    try:
        ask("hang")
    except KeyboardInterrupt:
        say("thread: interrupted")

for n in range(3):
    threading.Thread(target=hang, args=(n,)).start()
interrupted()
"""
IN_A_TOOL = """
def tool():
    try:
        return ask("hang")
    except KeyboardInterrupt:
        say("tool: interrupted")
        raise

try:
    ask("tool", tools=[tool])
except KeyboardInterrupt:
    say("main: interrupted, left:", left())
    say("main:", ask("quick"))
"""
AGAIN_AND_AGAIN = """
def press(event):
    if event.type in ("subcall_ended", "cell_ended", "run_ended"):  # all of them in the clean-up
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)

try:
    ask("hang", on_event=press)
except KeyboardInterrupt:
    say("main: interrupted, left:", left())
    say("main:", ask("quick"))
"""
MAIN = ["main: interrupted, left: []", "main: quick"]


@pytest.mark.parametrize(
    ("program", "calls", "said"),
    [
        pytest.param(PLAIN, 1, MAIN, id="plain"),
        pytest.param(IN_A_LOOP, 1, MAIN, id="in a running loop"),
        pytest.param(IN_THREADS, 4, [*MAIN, *["thread: interrupted"] * 3], id="beside threads"),
        pytest.param(IN_A_TOOL, 1, ["tool: interrupted", *MAIN], id="in a tool"),
        pytest.param(AGAIN_AND_AGAIN, 1, MAIN, id="again and again"),
        pytest.param("ask('hang')", 1, [], id="not caught"),
    ],
)
async def test_ctrl_c_ends_a_program_soon_leaves_nothing_and_run_sync_works_again(program: str, calls: int, said: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with started(PROGRAM + program, TMPDIR=folder) as process:
            assert process.stdout is not None
            for _ in range(calls):
                assert await process.stdout.readline() == b"asked\n"
            below = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(END_S):
                out, err = await process.communicate()
        assert len(below) >= 2
        assert psutil.wait_procs(below, timeout=END_S)[1] == []
        assert os.listdir(folder) == []
    assert sorted(out.decode().splitlines()) == sorted(said)
    assert process.returncode == (0 if said else -signal.SIGINT)
    assert err.decode().endswith("KeyboardInterrupt\n") if not said else err == b""


IN_A_FORK = """
import asyncio, os
from arlm import sync

async def fork():
    child = os.fork()
    if child == 0:
        os._exit(len(sync._under_way))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

print(sync.run_blocking(fork))
"""


async def test_a_forked_process_waits_for_no_call_of_its_parent() -> None:
    async with started(IN_A_FORK) as process:
        out, _ = await process.communicate()
    assert out == b"0\n"
