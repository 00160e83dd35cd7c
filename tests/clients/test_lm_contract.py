"""What every BaseLM inherits from its one method."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import weakref
from typing import Any

import pytest

from arlm.clients import BaseLM
from arlm.errors import ConfigError, RateLimited
from arlm.testing import ScriptedLM
from arlm.types import Completion, TokenUsage


class Echo(BaseLM):
    """Says the last message; its input tokens are the message's length."""

    def __init__(self, model: str = "lab/echo") -> None:
        super().__init__(model)
        self.prompts: list[Any] = []

    async def acompletion(self, prompt, *, model=None, sampling=None):
        self.prompts.append(prompt)
        await asyncio.sleep(0)
        text = prompt[-1]["content"]
        return Completion(text=text, usage=TokenUsage(input_tokens=len(text), output_tokens=1, cost_usd=0.5))


class Shouting(Echo):
    async def acompletion(self, prompt, *, model=None, sampling=None):
        completion = await super().acompletion(prompt, model=model, sampling=sampling)
        return Completion(text=completion.text.upper(), usage=completion.usage)


class Bare(BaseLM):
    async def acompletion(self, prompt, *, model=None, sampling=None):
        return "bare"


async def test_a_str_prompt_reaches_the_method_as_one_user_message() -> None:
    lm = Echo()
    assert (await lm.acompletion("hi")).text == "hi"
    assert lm.prompts == [[{"role": "user", "content": "hi"}]]


async def test_a_str_result_becomes_a_completion_without_token_counts() -> None:
    completion = await Bare("bare").acompletion("hi")
    assert completion == Completion(text="bare", usage=TokenUsage(), model="bare")


async def test_the_model_name_is_filled_in_where_the_method_left_it_out() -> None:
    lm = Echo("lab/echo")
    assert (await lm.acompletion("x")).model == "lab/echo"
    assert (await lm.acompletion("x", model="lab/other")).model == "lab/other"
    assert set(lm.get_usage_summary().models) == {"lab/echo", "lab/other"}


async def test_a_call_through_super_is_counted_once() -> None:
    lm = Shouting()
    assert (await lm.acompletion("hi")).text == "HI"
    assert lm.get_usage_summary().total.calls == 1
    assert lm.get_usage_summary().total.input_tokens == 2


async def test_a_mixin_that_is_no_model_itself_is_counted_once() -> None:
    class Polite:
        async def acompletion(self, prompt, **options):
            completion = await super().acompletion(prompt, **options)  # type: ignore[misc]
            return completion.text + ", please"

    class PoliteEcho(Polite, Echo):
        pass

    lm = PoliteEcho()
    assert (await lm.acompletion("tea")).text == "tea, please"
    assert lm.get_usage_summary().total.calls == 1


async def test_two_hundred_concurrent_calls_are_summed_exactly_and_each_task_sees_its_own_last_usage() -> None:
    lm = Echo()

    async def call(length: int) -> int | None:
        await lm.acompletion("x" * length)
        await asyncio.sleep(0)
        return lm.get_last_usage().input_tokens

    assert await asyncio.gather(*[asyncio.create_task(call(length)) for length in range(200)]) == list(range(200))
    total = lm.get_usage_summary().total
    assert (total.calls, total.input_tokens, total.output_tokens, total.cost_usd) == (200, sum(range(200)), 200, 100.0)


async def test_a_child_task_does_not_take_its_parents_last_call_for_its_own() -> None:
    lm = Echo()
    await lm.acompletion("parent")

    async def child() -> tuple[TokenUsage, TokenUsage]:
        before = lm.get_last_usage()
        await lm.acompletion("a child's")
        return before, lm.get_last_usage()

    before, after = await asyncio.create_task(child())
    assert before == TokenUsage()
    assert after.input_tokens == len("a child's")
    assert lm.get_last_usage().input_tokens == len("parent")


async def test_two_models_in_one_task_keep_their_own_last_usage() -> None:
    one, two = Echo(), Echo()
    await one.acompletion("1")
    await two.acompletion("22")
    assert (one.get_last_usage().input_tokens, two.get_last_usage().input_tokens) == (1, 2)


async def test_a_model_that_was_used_is_freed_with_its_last_reference() -> None:
    lm = Echo()
    await lm.acompletion("x")
    gone = weakref.ref(lm)
    del lm
    gc.collect()
    assert gone() is None


async def test_failed_and_cancelled_calls_are_counted_with_what_was_billed() -> None:
    billed = RateLimited("slow down", usage=TokenUsage(input_tokens=7))
    lm = ScriptedLM([billed, ValueError("bug"), "never"], model="lab/x")
    with pytest.raises(RateLimited):
        await lm.acompletion("a")
    with pytest.raises(ValueError, match="bug"):
        await lm.acompletion("b")
    lm._latency = 60
    task = asyncio.create_task(lm.acompletion("c"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    total = lm.get_usage_summary().models["lab/x"]
    assert (total.calls, total.failed, total.cancelled, total.input_tokens, total.output_tokens) == (3, 2, 1, 7, None)


async def test_a_call_that_was_never_sent_is_not_counted() -> None:
    lm = ScriptedLM([])
    with pytest.raises(ConfigError):
        await lm.acompletion("a")
    assert lm.get_usage_summary().total.calls == 0


async def test_the_cost_is_unknown_as_soon_as_one_answered_call_has_none() -> None:
    lm = ScriptedLM([Completion(text="", usage=TokenUsage(cost_usd=1.0)), "no idea"], model="m")
    await lm.acompletion("a")
    assert lm.get_usage_summary().models["m"].cost_usd == 1.0
    await lm.acompletion("b")
    assert lm.get_usage_summary().models["m"].cost_usd is None


async def test_an_option_that_the_method_does_not_take_is_refused_and_not_dropped() -> None:
    class Narrow(BaseLM):
        async def acompletion(self, prompt):  # type: ignore[override]
            return "ok"

    lm = Narrow("narrow")
    assert (await lm.acompletion("x")).text == "ok"
    with pytest.raises(ConfigError, match="sampling"):
        await lm.acompletion("x", sampling={"temperature": 0})


async def test_a_blocking_method_is_refused() -> None:
    class Blocking(BaseLM):
        def acompletion(self, prompt, *, model=None, sampling=None):  # type: ignore[override]
            return "no"

    with pytest.raises(ConfigError, match="async def"):
        await Blocking("b").acompletion("x")


async def test_a_result_of_another_type_is_refused() -> None:
    class Wrong(BaseLM):
        async def acompletion(self, prompt, *, model=None, sampling=None):
            return {"text": "no"}

    with pytest.raises(ConfigError, match="returned dict"):
        await Wrong("w").acompletion("x")


async def test_a_subclass_that_forgets_super_init_still_works() -> None:
    class Forgetful(Bare):
        def __init__(self) -> None:
            pass

    lm = Forgetful()
    await lm.acompletion("x")
    assert lm.get_usage_summary().models["Forgetful"].calls == 1


def test_a_model_without_its_method_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="acompletion"):
        BaseLM("x")  # type: ignore[abstract]


def test_completion_works_outside_a_loop_and_leaves_the_last_usage() -> None:
    lm = Echo()
    assert lm.completion("hello").text == "hello"
    assert lm.get_last_usage().input_tokens == 5
    assert lm.get_usage_summary().total.calls == 1


async def test_completion_works_inside_a_running_loop() -> None:
    lm = Echo()
    assert lm.completion("hello").text == "hello"
    assert lm.get_last_usage().input_tokens == 5


def test_the_summary_is_exact_over_threads_with_loops_of_their_own() -> None:
    lm = Echo()
    threads = [threading.Thread(target=lambda: [lm.completion("xy") for _ in range(25)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (lm.get_usage_summary().total.calls, lm.get_usage_summary().total.input_tokens) == (200, 400)


def test_ctrl_c_cancels_a_blocking_completion() -> None:
    ended: list[str] = []

    class Slow(BaseLM):
        async def acompletion(self, prompt, *, model=None, sampling=None):
            signal.raise_signal(signal.SIGINT)
            try:
                await asyncio.sleep(60)
            finally:
                ended.append("cleaned up")
            return "never"

    with pytest.raises(KeyboardInterrupt):
        Slow("slow").completion("x")
    assert ended == ["cleaned up"]
