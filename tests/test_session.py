"""Sessions: one REPL over many questions."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

import arlm
from arlm.testing.scripted import ScriptedLM


def cell(code: str) -> str:
    return f"```repl\n{code}\n```"


def final(expression: str) -> str:
    return cell(f"answer['content'] = {expression}\nanswer['ready'] = True")


def first_message(lm: ScriptedLM) -> str:
    return lm.root_calls[-1].messages[1]["content"]


async def test_variables_live_from_one_question_to_the_next():
    lm = ScriptedLM([cell("kept = context.upper()"), final("kept"), final("kept + '!'")])
    async with arlm.RLM(model=lm).session() as session:
        assert (await session.run("one", context="abc")).answer == "ABC"
        assert (await session.run("two")).answer == "ABC!"
        assert "Q: one" in first_message(lm)
        assert "A: ABC" in first_message(lm)
        assert "Variables from before: kept" in first_message(lm)


async def test_context_is_the_newest_and_older_ones_stay_by_number():
    lm = ScriptedLM([final("context")] * 2 + [final("[context_0, context_1, context]")])
    async with arlm.RLM(model=lm).session() as session:
        await session.run("one", context="first")
        assert (await session.run("two", context="second")).answer == "second"
        assert (await session.run("three", output_type=list)).answer == ["first", "second", "second"]
        assert "a str of 6 characters" in first_message(lm)


async def test_a_long_question_without_a_context_becomes_one():
    lm = ScriptedLM([final("context_0")] * 2 + [final("context")])
    async with arlm.RLM(model=lm).session() as session:
        assert (await session.run("short")).answer == "short"
        assert (await session.run("also short")).answer == "short"
        long = "x" * 3_000
        assert (await session.run(long)).answer == long


async def test_a_context_of_the_rlm_is_loaded_once_for_the_session():
    lm = ScriptedLM([final("context_0")] * 2)
    async with arlm.RLM(model=lm, context="the book").session() as session:
        for _ in range(2):
            assert (await session.run("q")).answer == "the book"


async def test_history_lists_earlier_questions_and_answers():
    lm = ScriptedLM([final("'a1'"), final("[dict(e) for e in history]")])
    async with arlm.RLM(model=lm).session() as session:
        await session.run("q1", context="c")
        assert (await session.run("q2", output_type=list)).answer == [{"prompt": "q1", "answer": "a1"}]


async def test_a_second_question_at_once_is_refused_and_the_first_goes_on():
    gate = asyncio.Event()

    async def wait(_messages: list[arlm.Message]) -> str:
        await gate.wait()
        return "ok"

    lm = ScriptedLM([final("llm_query('x')")], sub=wait)
    async with arlm.RLM(model=lm).session() as session:
        first = asyncio.ensure_future(session.run("one", context="c"))
        while not lm.sub_calls:
            await asyncio.sleep(0.001)
        with pytest.raises(arlm.ConfigError, match="is answering a question"):
            await session.run("two")
        gate.set()
        assert (await first).answer == "ok"


async def test_a_cancelled_question_stops_its_cell_and_leaves_the_session_usable():
    started = asyncio.Event()

    async def hang(_messages: list[arlm.Message]) -> str:
        started.set()
        await asyncio.sleep(60)
        return "never"

    lm = ScriptedLM([cell("kept = 5"), cell("llm_query('x')"), final("str(kept)")], sub=hang)
    async with arlm.RLM(model=lm).session() as session:
        task = asyncio.ensure_future(session.run("one", context="c"))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert lm.in_flight == 0
        assert (await session.run("two")).answer == "5"


async def test_a_cancelled_question_with_a_deaf_cell_costs_the_variables_and_says_so():
    deaf = "import time\nkept = 1\nprint('deaf')\ntry:\n    time.sleep(0.2)\nexcept BaseException: pass\nsum(range(10**12))"
    lm = ScriptedLM([cell(deaf), cell("1"), final("context")])
    printed = asyncio.Event()
    async with arlm.RLM(model=lm, on_event=lambda event: printed.set() if event.type == "cell_output" else None).session() as session:
        task = asyncio.ensure_future(session.run("one", context="c"))
        await printed.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await session.run("two")).answer == "c"
        assert "The REPL was restarted" in lm.root_calls[-1].messages[3]["content"]


async def test_a_worker_killed_between_questions_is_replaced_and_the_loss_is_named():
    lm = ScriptedLM([cell("mine = 1\nimport os"), final("str(os.getpid())"), cell("2"), final("context")])
    async with arlm.RLM(model=lm).session() as session:
        pid = int((await session.run("one", context="the text")).answer)
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.001)
        assert (await session.run("two")).answer == "the text"
        feedback = lm.root_calls[-1].messages[3]["content"]
        assert "Lost: mine, os" in feedback


async def test_calls_between_questions_are_refused_in_the_cell():
    code = (
        "import os, threading, time\nseen = []\n"
        "def late():\n    while not os.path.exists('gate'): time.sleep(0.001)\n"
        "    try:\n        seen.append(llm_query('x'))\n    except RuntimeError as error:\n        seen.append(str(error))\n"
        "    os.mkdir('done')\n"
        "threading.Thread(target=late).start()"
    )
    lm = ScriptedLM([cell(code), final("os.getcwd()"), final("seen[0]")], sub="ok")
    async with arlm.RLM(model=lm).session() as session:
        folder = Path((await session.run("one", context="c")).answer)
        (folder / "gate").touch()
        while not (folder / "done").exists():
            await asyncio.sleep(0.001)
        assert (await session.run("two")).answer == "llm_query: no run is active"
    assert lm.sub_calls == []


async def test_what_belongs_to_the_session_is_refused_in_a_question():
    async with arlm.RLM(model=ScriptedLM([])).session() as session:
        with pytest.raises(arlm.ConfigError, match="memory_limit belongs to the whole session"):
            await session.run("q", memory_limit=2**30)


async def test_a_question_can_be_streamed():
    lm = ScriptedLM([final("'x'")])
    async with arlm.RLM(model=lm).session() as session, session.stream("q", context="c") as run:
        types = [event.type async for event in run]
        assert (types[0], types[-1]) == ("run_started", "run_ended")
        assert run.result.answer == "x"


@pytest_asyncio.fixture
async def living() -> AsyncIterator[arlm.Session]:
    """Entered in one task and left in another, as pytest-asyncio does with a yield fixture."""
    async with arlm.RLM(model=ScriptedLM([final("context")])).session() as session:
        yield session


async def test_a_session_can_be_a_fixture(living):
    assert (await living.run("q", context="from a fixture")).answer == "from a fixture"


async def test_a_session_can_be_entered_and_left_in_different_tasks():
    manager = arlm.RLM(model=ScriptedLM([final("context")])).session()
    session = await asyncio.create_task(manager.__aenter__())
    assert (await session.run("q", context="c")).answer == "c"
    await asyncio.create_task(manager.__aexit__(None, None, None))


async def test_usage_is_that_of_the_question():
    lm = ScriptedLM([final("'1'"), final("'2'")])
    async with arlm.RLM(model=lm).session() as session:
        for _ in range(2):
            assert (await session.run("q", context="c")).usage.total.calls == 1
