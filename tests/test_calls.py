"""What a run makes sure of for every call of a model: options that the model has, a time limit, a price."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import arlm
from arlm.clients.anthropic import AnthropicLM
from arlm.clients.openai import OpenAILM
from arlm.clients.prices import Prices
from arlm.errors import ConfigError, ConnectionFailed
from arlm.testing import ScriptedProvider
from arlm.types import Completion, TokenUsage

DONE = '```repl\nanswer.update(content="done", ready=True)\n```'
ASK = '```repl\nanswer.update(content=llm_query("x"), ready=True)\n```'
PRICE = {"input": 1.0, "output": 10.0, "cached": 0.5, "cache_write": 2.0}


async def done(_messages: list[Any]) -> str:
    return DONE


async def never(_messages: list[Any]) -> str:
    await asyncio.Event().wait()
    raise AssertionError("nothing ends this wait but a cancel")


async def test_an_option_that_the_model_does_not_have_ends_a_run_before_it_begins() -> None:
    events: list[Any] = []
    lm = AnthropicLM("claude-haiku-4-5", base_url="http://127.0.0.1:9", api_key="none")
    for options in ({"sampling": {"seed": 1}}, {"sub_sampling": {"seed": 1}}):
        with pytest.raises(ConfigError, match="'anthropic' has no sampling option 'seed'"):
            await arlm.run("q", model=lm, on_event=events.append, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="takes no sampling options"):
        await arlm.run("q", model=done, sub_sampling={"temperature": 1})
    assert events == []


async def test_options_of_sub_calls_are_no_business_of_a_root_that_has_others() -> None:
    async with ScriptedProvider() as provider:
        sub = OpenAILM("small", base_url=provider.url, api_key="none")

        async def root(_messages: list[Any]) -> str:
            return ASK

        result = await arlm.run("q", model=root, sub_model=sub, sub_sampling={"seed": 7})
        assert result.answer == "x"
        assert (await provider.requests())[0]["body"]["seed"] == 7


async def test_call_timeout_ends_a_call_of_any_model_and_the_run_says_so() -> None:
    with pytest.raises(ConnectionFailed, match=r"function/never: no reply within 0.05 s \(call_timeout\)"):
        await arlm.run("q", model=never, call_timeout=0.05)


async def test_a_sub_call_that_takes_too_long_is_data_and_its_connection_is_closed() -> None:
    async with ScriptedProvider() as provider:
        await provider.configure({"faults": ["stall"] * 10})
        sub = OpenAILM("small", base_url=provider.url, api_key="none")

        async def root(_messages: list[Any]) -> str:
            return ASK

        result = await arlm.run("q", model=root, sub_model=sub, call_timeout=0.1)
        assert "no reply within 0.1 s (call_timeout)" in result.answer
        await provider.until(lambda stats: stats["aborted"] == stats["calls"])


async def test_a_call_timeout_above_the_clients_own_limit_counts_instead_of_it() -> None:
    async with ScriptedProvider() as provider:
        await provider.configure({"turns": [DONE], "latency": 0.3})
        lm = OpenAILM("small", base_url=provider.url, api_key="none", timeout=0.05)
        result = await arlm.run("q", model=lm, call_timeout=60)
        assert result.answer == "done"
        assert (await provider.stats())["calls"] == 1


async def test_a_price_that_is_given_is_the_price() -> None:
    class Metered(arlm.BaseLM):
        provider = "lab"

        async def acompletion(self, prompt: Any, *, model: str | None = None, sampling: Any = None) -> Completion:
            usage = TokenUsage(input_tokens=1_000, output_tokens=100, cached_tokens=400, cache_write_tokens=100, cost_usd=99.0)
            return Completion(text=DONE, usage=usage)

    result = await arlm.run("q", model=Metered("m"), prices={"lab/m": PRICE}, max_cost_usd=1.0)
    assert result.cost_usd == pytest.approx((500 * 1.0 + 400 * 0.5 + 100 * 2.0 + 100 * 10.0) / 1e6)


async def test_what_a_refused_call_cost_is_in_the_cost_of_the_run() -> None:
    class Free(arlm.BaseLM):
        async def acompletion(self, prompt: Any, *, model: str | None = None, sampling: Any = None) -> Completion:
            return Completion(text=ASK, usage=TokenUsage(input_tokens=0, output_tokens=0, cost_usd=0.0))

    async with ScriptedProvider() as provider:
        await provider.configure({"refusal": "no"})
        sub = OpenAILM("small", base_url=provider.url, api_key="none")
        result = await arlm.run("q", model=Free("free"), sub_model=sub, prices={"openai/small": PRICE})
    assert "declined to answer" in result.answer
    used = result.usage.models["openai/small"]
    assert used.failed == 1
    assert result.cost_usd == pytest.approx(((used.input_tokens or 0) * 1.0 + (used.output_tokens or 0) * 10.0) / 1e6)
    assert result.cost_usd


@pytest.mark.parametrize(
    "own",
    [
        {"m": {"input": 1.0}},
        {"m": {"input": 1.0, "output": -1}},
        {"m": {"input": 1.0, "output": 1.0, "per_call": 1.0}},
        {"m": {"input": True, "output": 1.0}},
        {"m": {"input": float("nan"), "output": 1.0}},
        {"m": 3},
    ],
)
def test_a_price_that_is_none_is_refused(own: Any) -> None:
    with pytest.raises(ConfigError, match="price"):
        Prices(own)


async def test_what_is_not_given_is_looked_up_in_the_list() -> None:
    prices = Prices({"lab/m": PRICE})
    await prices.prepare(["lab/m", "openai/gpt-5-mini"])
    usage = TokenUsage(input_tokens=1_000_000, output_tokens=0)
    assert prices.price("lab/m", usage) == 1.0
    assert prices.price("openai/gpt-5-mini", usage)
    assert prices.price("lab/unknown", usage) is None
    assert not prices.is_priced("lab/unknown")
