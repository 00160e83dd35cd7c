"""Thousands of calls in flight: the loop keeps turning, descriptors are enough, the collector is put off and brought back."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from arlm.clients import crowd
from arlm.clients.openai import OpenAILM
from arlm.testing import Script, ScriptedProvider

if TYPE_CHECKING:
    from collections.abc import Callable


async def turns_of(passings: list[asyncio.Task[None]]) -> list[int]:
    """How many were through after each turn of the loop."""
    through = []
    while not all(task.done() for task in passings):
        await asyncio.sleep(0)
        through.append(sum(task.done() for task in passings))
    return through


async def test_a_gate_lets_so_many_pass_in_a_turn() -> None:
    gate = crowd.Gate(5)
    through = await turns_of([asyncio.create_task(gate.passed()) for _ in range(50)])
    steps = [after - before for before, after in zip([0, *through], through, strict=False)]
    assert max(steps) <= 5
    assert len(through) <= 13


async def test_an_empty_gate_holds_nobody_up() -> None:
    gate = crowd.Gate(2)
    passing = gate.passed()
    with pytest.raises(StopIteration):  # it never gave way to the loop
        passing.send(None)


async def test_a_gate_goes_on_when_those_in_line_are_cancelled() -> None:
    gate = crowd.Gate(1)
    tasks = [asyncio.create_task(gate.passed()) for _ in range(20)]
    await asyncio.sleep(0)
    for task in tasks[3:18]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(outcome is None for outcome in outcomes) == 5


def test_full_collections_are_put_off_in_a_crowd_and_brought_back_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "MANY", 4)
    before, stack = gc.get_threshold(), []
    for number in range(6):
        call = crowd.counted()
        call.__enter__()
        stack.append(call)
        assert (gc.get_threshold() == before) is (number < 3)
    while stack:
        stack.pop().__exit__(None, None, None)
    assert gc.get_threshold() == before


def test_a_threshold_that_others_set_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "MANY", 2)
    before = gc.get_threshold()
    try:
        with crowd.counted(), crowd.counted():
            gc.set_threshold(500, 5, 5)
        assert gc.get_threshold() == (500, 5, 5)
    finally:
        gc.set_threshold(*before)


def in_a_process(*limits: int | str, code: str) -> str:
    """What a process prints that has these limits on descriptors."""
    setting = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({', '.join(map(str, limits))}))\n"
    done = subprocess.run([sys.executable, "-c", setting + code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_the_limit_on_descriptors_is_raised_as_far_as_it_may_be() -> None:
    code = "from arlm.clients.crowd import descriptors; print(descriptors(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    assert in_a_process(256, 1024, code=code) == "896 1024 1024"
    assert in_a_process(512, 512, code=code) == "448 512 512"


CALLS = """
import asyncio
from arlm.clients.openai import OpenAILM

async def main():
    lm = OpenAILM("small", base_url="{url}", api_key="none")
    replies = await asyncio.gather(*(lm.acompletion(str(number)) for number in range({calls})))
    print(all(reply.text == str(number) for number, reply in enumerate(replies)))

asyncio.run(main())
"""


async def test_calls_for_which_there_is_no_descriptor_stand_in_line() -> None:
    calls = 150
    async with ScriptedProvider(Script(latency=0.02)) as provider:
        code = CALLS.format(url=provider.url, calls=calls)
        assert await asyncio.to_thread(in_a_process, 100, 100, code=code) == "True"
        stats = await provider.stats()
    assert stats["answered"] == calls
    assert stats["max_in_flight"] <= 88


@pytest.fixture
def turning() -> Callable[[], int]:
    """Counts the turns that the loop takes."""
    turns = [0]

    def turn() -> None:
        turns[0] += 1
        asyncio.get_running_loop().call_soon(turn)

    def count() -> int:
        if not turns[0]:
            turn()
        return turns[0]

    return count


async def test_a_batch_opens_its_connections_over_many_turns_of_the_loop(turning: Callable[[], int]) -> None:
    calls = 200
    async with ScriptedProvider(Script(hold=calls)) as provider:
        lm = OpenAILM("small", base_url=provider.url, api_key="none")
        asking = [asyncio.create_task(lm.acompletion("x")) for _ in range(calls)]
        before = turning()
        await provider.until(lambda stats: stats["in_flight"] == calls)
        assert turning() - before >= calls // crowd.STARTS_A_TURN
        await asyncio.gather(*asking)
