"""Clocks that jump. The wall clock names moments for people and nothing else; what has to end by time goes by the monotonic clock."""

import ast
import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from host import told_by

import arlm
from arlm.clients import retry
from arlm.clients.failures import retry_after
from arlm.testing.scripted import ScriptedLM

ROOT = Path(arlm.__file__).parent
FINAL = "```repl\nanswer.update(content='done', ready=True)\n```"

WALL = {
    *("time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.ctime", "time.strftime", "time.asctime"),
    *("datetime.now", "datetime.utcnow", "datetime.today", "datetime.datetime.now", "date.today", "email.utils.localtime"),
    "time.CLOCK_REALTIME",
}
MAY = {
    ("events.py", "time.time"): "when an event happened",
    ("log.py", "datetime.now"): "the name of a log",
    ("clients/failures.py", "time.time"): "a Retry-After that is a date, in a reply that does not say its own",
}
NEVER_BACK = {
    *("time.monotonic", "time.perf_counter", "time.process_time", "time.sleep"),
    *("time.clock_gettime", "time.pthread_getcpuclockid"),  # a thread's CPU time
    "time.CLOCK_BOOTTIME",  # as monotonic, the time that the machine slept included: a process's start is told in it
}


def clocks(path: Path) -> set[str]:
    """The functions of ``time`` and ``datetime`` that a file names, by any way of importing them."""
    tree = ast.parse(path.read_text("utf-8"))
    found = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found |= {f"time.{alias.name}" for alias in node.names}
    return {name for name in found if name in WALL or name.startswith("time.")}


def test_only_stamps_for_people_come_from_the_wall_clock() -> None:
    used = {(str(path.relative_to(ROOT)), name) for path in ROOT.rglob("*.py") for name in clocks(path)}
    assert {what for what in used if what[1] in WALL} == set(MAY)
    assert {name for _, name in used} - WALL <= NEVER_BACK


def test_a_run_goes_well_while_the_wall_clock_jumps_by_hours() -> None:
    became = told_by("clock_host.py")
    assert became["answer"] == "".join(map(str, range(20)))
    assert became["calls"] == 22  # one was cut off and tried again
    assert became["looks"] > 20
    assert became["backward"] > 5  # the log says what the clock said
    assert 0 < became["duration_s"] < 60


def test_a_retry_after_that_is_a_date_goes_by_the_replys_own_date(monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}
    assert retry_after(headers) == 30.0
    assert retry_after({**headers, "date": "yesterday"}) == 0.0  # by our own clock it is long over


# -- the monotonic clock: it stands still while Linux and macOS sleep, and may jump where a virtual machine is put aside ------------------


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    real, ahead = time.monotonic, 0.0

    def by(seconds: float) -> None:
        nonlocal ahead
        ahead += seconds
        asyncio.get_running_loop().call_soon(lambda: None)  # a loop that sleeps looks at the clock again

    monkeypatch.setattr(time, "monotonic", lambda: real() + ahead)
    return by


async def test_a_jump_past_a_cells_time_stops_the_cell_and_the_run_goes_on(jump: Callable[[float], None]) -> None:
    def show(event: object) -> None:
        if getattr(event, "text", "") == "begun\n":
            jump(3_600)

    lm = ScriptedLM(["```repl\nkept = 1\nprint('begun')\nwhile True: pass\n```", "```repl\nprint(kept)\n```", FINAL])
    result = await arlm.run("q", context="c", model=lm, on_event=show)
    turns = result.trajectory()["turns"]
    assert result.answer == "done"
    assert turns[0]["cells"][0]["stopped"] == "timeout"
    assert turns[1]["cells"][0]["output"] == "1\n"


async def test_a_jump_while_calls_are_under_way_costs_a_cell_nothing(jump: Callable[[float], None]) -> None:
    async def sub(_messages: list[arlm.Message]) -> str:
        jump(3_600)
        await asyncio.sleep(0.01)
        return "ok"

    lm = ScriptedLM(["```repl\nprint(llm_query_batched(['x'] * 3))\n```", FINAL], sub=sub)
    result = await arlm.run("q", context="c", model=lm)
    cell = result.trajectory()["turns"][0]["cells"][0]
    assert (cell["stopped"], cell["output"]) == (None, "['ok', 'ok', 'ok']\n")
    assert result.answer == "done"


async def test_a_jump_past_the_runs_timeout_is_a_run_timeout_and_the_next_run_is_fine(jump: Callable[[float], None]) -> None:
    async def far(_messages: list[arlm.Message]) -> str:
        jump(3_600)
        await asyncio.Event().wait()
        return ""

    with pytest.raises(arlm.RunTimeout) as caught:
        await arlm.run("q", context="c", model=ScriptedLM([FINAL.replace("answer", "x = dict(); x"), far]), timeout=600)
    assert caught.value.partial is not None
    assert (await arlm.run("q", context="c", model=ScriptedLM([FINAL]), timeout=600)).answer == "done"


async def test_a_jump_ends_the_waits_for_a_retry(jump: Callable[[float], None]) -> None:
    failed = arlm.Overloaded("busy", retry_after=50.0)

    def fail(_messages: list[arlm.Message]) -> str:
        asyncio.get_running_loop().call_later(0.05, jump, 3_600)
        raise failed

    assert retry.RetryPolicy().max_wait >= 50.0
    assert (await arlm.run("q", context="c", model=ScriptedLM(["```repl\nx = 1\n```", fail, FINAL]))).answer == "done"
