"""A streamed run may be left in any task and in any way; and what an on_event may do to a run."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator

import anyio
import pytest

import arlm
from arlm import listeners, streaming
from arlm.events import AnyEvent, Emit
from arlm.streaming import open_stream
from arlm.testing.scripted import ScriptedLM
from arlm.types import Result


def cell(code: str) -> str:
    return f"```repl\n{code}\n```"


FINAL = cell("answer['content'] = 'done'; answer['ready'] = True")


class Work:
    """A run that emits one event and then hangs until it is ended."""

    def __init__(self) -> None:
        self.cancels = 0
        self.ended = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self, emit: Emit) -> Result:
        emit("event")  # type: ignore[arg-type]
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancels += 1
            await self.may_end.wait()
            self.ended.set()
            raise
        raise AssertionError


async def events(work: Work) -> AsyncIterator[AnyEvent]:
    async with open_stream(work) as run:
        async for event in run:
            yield event


async def test_a_generator_over_a_stream_may_be_closed_in_another_task():
    work = Work()
    generator = events(work)
    await anext(generator)
    await asyncio.create_task(generator.aclose())
    assert work.ended.is_set()
    assert work.cancels == 1


async def test_a_generator_that_a_cancelled_task_abandons_ends_its_run_and_no_other():
    work, reached = Work(), asyncio.Event()
    complaints: list = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))

    async def response() -> None:
        async for _ in events(work):
            reached.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(response())
    await reached.wait()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    del task
    gc.collect()
    await asyncio.wait_for(work.ended.wait(), 10)
    result = await arlm.run("q", context="c", model=ScriptedLM([FINAL]))
    assert result.answer == "done"
    assert complaints == []


async def test_a_stream_may_be_entered_in_one_task_and_left_in_another():
    lm = ScriptedLM([cell("print(1)"), FINAL])
    stream = arlm.stream("q", context="c", model=lm)
    run = await asyncio.create_task(stream.__aenter__())
    assert [event.type async for event in run][-1] == "run_ended"
    await asyncio.create_task(stream.__aexit__(None, None, None))
    assert run.result.answer == "done"


async def test_leaving_waits_for_the_end_of_the_run_also_when_cancelled_twice():
    work, left = Work(), asyncio.Event()
    work.may_end.clear()

    async def use() -> None:
        async with open_stream(work) as run:
            await anext(run)
            left.set()

    task = asyncio.create_task(use())
    await left.wait()
    for _ in range(2):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    work.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended.is_set()
    assert work.cancels == 1


async def test_a_scope_around_the_block_ends_the_run_and_catches_its_cancel():
    work = Work()
    with anyio.move_on_after(0.01) as scope:
        async for _ in events(work):
            pass
    assert scope.cancelled_caught
    gc.collect()
    await asyncio.wait_for(work.ended.wait(), 10)
    assert work.cancels == 1


async def test_a_run_that_swallows_its_cancel_is_told_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streaming, "AGAIN_SECONDS", 0.01)
    cancels = 0

    async def stubborn(_emit: Emit) -> Result:
        nonlocal cancels
        while cancels < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancels += 1
        raise asyncio.CancelledError

    async with open_stream(stubborn):
        await asyncio.sleep(0)
    assert cancels == 3


async def test_a_stream_left_at_once_ends_its_run():
    work = Work()
    async with open_stream(work) as run:
        pass
    assert work.ended.is_set()
    with pytest.raises(RuntimeError, match="not over"):
        _ = run.result


async def test_a_run_that_raises_a_cancelled_error_of_its_own_says_so_to_who_iterates():
    async def odd(_emit: Emit) -> Result:
        raise asyncio.CancelledError

    async with open_stream(odd) as run:
        with pytest.raises(asyncio.CancelledError):
            await anext(run)
        with pytest.raises(asyncio.CancelledError):
            _ = run.result


# -- on_event ---------------------------------------------------------------------------------------------------------


async def test_a_slow_on_event_does_not_hold_up_a_cancelled_run(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(listeners, "CANCELLED_SECONDS", 0.01)
    monkeypatch.setattr(listeners, "LISTENER_SECONDS", 600.0)
    reached = asyncio.Event()

    async def slow(event: AnyEvent) -> None:
        if event.type == "messages_added":
            await asyncio.Event().wait()

    async def model(_messages: list[arlm.Message]) -> str:
        reached.set()
        await asyncio.Event().wait()
        return ""

    task = asyncio.create_task(arlm.run("q", context="c", model=model, on_event=slow))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "on_event did not take all events" in caplog.text
    gc.collect()  # a coroutine that was never awaited would be a warning, and a warning an error


async def test_a_slow_on_event_does_not_hold_up_a_run_that_ran_out_of_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listeners, "CANCELLED_SECONDS", 0.01)
    monkeypatch.setattr(listeners, "LISTENER_SECONDS", 600.0)

    async def model(_messages: list[arlm.Message]) -> str:
        await asyncio.Event().wait()
        return ""

    async def slow(_event: AnyEvent) -> None:
        await asyncio.Event().wait()

    with pytest.raises(arlm.RunTimeout):
        await arlm.run("q", context="c", model=model, on_event=slow, timeout=0.05)


async def test_an_on_event_that_raises_a_cancelled_error_ends_nothing(caplog: pytest.LogCaptureFixture):
    def at_once(_event: AnyEvent) -> None:
        raise asyncio.CancelledError

    async def later(_event: AnyEvent) -> None:
        raise asyncio.CancelledError

    for on_event in (at_once, later):
        caplog.clear()
        result = await arlm.run("q", context="c", model=ScriptedLM([FINAL]), on_event=on_event)
        assert result.answer == "done"
        assert caplog.records[-1].levelno == logging.ERROR
        assert len([record for record in caplog.records if "on_event failed" in record.message]) > 3
