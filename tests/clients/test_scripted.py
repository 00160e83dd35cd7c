"""The scripted model that ships with arlm."""

from __future__ import annotations

import asyncio

import pytest

from arlm.errors import ConfigError, Overloaded
from arlm.testing import ScriptedLM
from arlm.types import Completion, Message

ROOT: list[Message] = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]


async def test_root_calls_play_the_script_and_the_others_go_to_sub() -> None:
    lm = ScriptedLM(["one", Completion(text="two")], sub=lambda messages: messages[-1]["content"][::-1])
    assert (await lm.acompletion(ROOT)).text == "one"
    assert (await lm.acompletion("abc")).text == "cba"
    assert (await lm.acompletion(ROOT)).text == "two"
    assert [call.is_root for call in lm.calls] == [True, False, True]
    assert (len(lm.root_calls), len(lm.sub_calls), lm.left) == (2, 1, 0)


async def test_steps_may_be_exceptions_and_async_functions() -> None:
    async def later(messages: list[Message]) -> str:
        await asyncio.sleep(0)
        return f"{len(messages)} messages"

    lm = ScriptedLM([Overloaded("busy"), later])
    with pytest.raises(Overloaded):
        await lm.acompletion(ROOT)
    assert (await lm.acompletion(ROOT)).text == "2 messages"


async def test_without_sub_every_call_takes_from_the_script() -> None:
    lm = ScriptedLM(["one", "two"])
    assert [(await lm.acompletion("x")).text, (await lm.acompletion(ROOT)).text] == ["one", "two"]


async def test_a_script_that_has_run_out_says_so() -> None:
    lm = ScriptedLM(["only"])
    await lm.acompletion(ROOT)
    with pytest.raises(ConfigError, match=r"run out: it has 1 replies and this is call 2.*'q'"):
        await lm.acompletion(ROOT)


async def test_it_counts_what_is_in_flight() -> None:
    lm = ScriptedLM(sub="ok", latency=0.001)
    await asyncio.gather(*[lm.acompletion("x") for _ in range(7)])
    assert (lm.max_in_flight, lm.in_flight) == (7, 0)


async def test_what_it_was_sent_can_be_looked_at() -> None:
    lm = ScriptedLM(["a"])
    await lm.acompletion(ROOT, model="other/m", sampling={"temperature": 0})
    assert (lm.calls[0].messages, lm.calls[0].model, lm.calls[0].sampling) == (ROOT, "other/m", {"temperature": 0})
