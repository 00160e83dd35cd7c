"""Cases about calls that are cancelled: the connection is closed, nothing stays behind, the others go on."""

# ruff: noqa: D103 - the name of a case is its claim

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio

from .lm_case import Cases

if TYPE_CHECKING:
    from .lm_bench import Bench

CASES = Cases()
case = CASES.case

LONG_S = 60.0  # a reply that nobody waits for


async def _is_left(bench: Bench, calls: int = 1) -> None:
    """The provider has seen all calls leave, and the client counts them as cancelled and answers the next one."""
    await bench.until(lambda stats: stats["aborted"] == calls and stats["in_flight"] == 0 and stats["open_connections"] == 0)
    total = bench.lm.get_usage_summary().total
    assert (total.calls, total.cancelled, total.failed) == (calls, calls, 0)
    await bench.play()
    assert (await bench.ask("after")).text == "after"


@case()
async def a_cancelled_call_is_left(bench: Bench) -> None:
    await bench.play(faults=["stall"])
    task = asyncio.create_task(bench.ask())
    await bench.until(lambda stats: stats["in_flight"] == 1)
    task.cancel()
    [outcome] = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError)
    await _is_left(bench)


@case()
async def a_call_cancelled_twice_is_left(bench: Bench) -> None:
    await bench.play(faults=["stall"])
    task = asyncio.create_task(bench.ask())
    await bench.until(lambda stats: stats["in_flight"] == 1)
    task.cancel()
    asyncio.get_running_loop().call_soon(task.cancel)
    [outcome] = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError)
    await _is_left(bench)


@case()
async def a_call_in_a_scope_that_is_cancelled_is_left(bench: Bench) -> None:
    await bench.play(faults=["stall"])
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.ask)
            await bench.until(lambda stats: stats["in_flight"] == 1)
            scope.cancel()
    assert scope.cancelled_caught
    await _is_left(bench)


@case()
async def a_call_under_a_timeout_that_ends_is_left(bench: Bench) -> None:
    await bench.play(faults=["stall"])
    timed_out = False
    try:
        async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as tasks:
            tasks.create_task(bench.ask())
            await bench.until(lambda stats: stats["in_flight"] == 1)
            limit.reschedule(0)
            await asyncio.Event().wait()
    except TimeoutError:
        timed_out = True
    assert timed_out
    await _is_left(bench)


@case("server")
async def a_call_cancelled_while_its_reply_is_coming_is_left(bench: Bench) -> None:
    await bench.play(faults=["stall_body"])
    task = asyncio.create_task(bench.ask())
    await bench.until(lambda stats: stats["faults"].get("stall_body") == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    await _is_left(bench)


@case()
async def a_crowd_that_is_cancelled_is_left(bench: Bench) -> None:
    await bench.play(latency=LONG_S)
    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(bench.ask)
        await bench.until(lambda stats: stats["in_flight"] == 50)
        tasks.cancel_scope.cancel()
    await _is_left(bench, 50)


@case()
async def a_cancel_before_anything_is_sent_leaves_the_others_alone(bench: Bench) -> None:
    tasks = [asyncio.create_task(bench.ask(str(number))) for number in range(10)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    first, *others = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, asyncio.CancelledError)
    assert [getattr(other, "text", other) for other in others] == [str(number) for number in range(1, 10)]


@case()
async def a_call_cancelled_beside_others_leaves_them_alone(bench: Bench) -> None:
    await bench.play(hold=10)
    leaving = asyncio.create_task(bench.ask("leaving"))
    others = [asyncio.create_task(bench.ask(str(number))) for number in range(8)]
    await bench.until(lambda stats: stats["in_flight"] == 9)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await bench.until(lambda stats: stats["aborted"] == 1)
    last = [asyncio.create_task(bench.ask(str(number))) for number in range(8, 10)]
    completions = await asyncio.gather(*others, *last)
    assert [completion.text for completion in completions] == [str(number) for number in range(10)]


@case()
async def every_moment_of_a_call_may_be_cancelled(bench: Bench) -> None:
    await bench.ask("first")  # what is imported and opened once is there
    moments = 1  # a task cancelled before its first step has made no call
    while True:
        task = asyncio.create_task(bench.ask("cut short"))
        for _ in range(moments):
            await asyncio.sleep(0)
        if task.done():
            break
        task.cancel()
        [outcome] = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(outcome, asyncio.CancelledError)
        assert moments < 10_000, "the call does not end by itself"
        moments += 1
    assert moments > 1
    await bench.until(lambda stats: stats["in_flight"] == 0)
    assert (await bench.ask("after")).text == "after"
    total = bench.lm.get_usage_summary().total
    assert (total.calls, total.cancelled, total.failed) == (moments + 2, moments - 1, 0)
