"""Dollars from the shipped list; what it does not know stays unknown."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from genai_prices import Usage, calc_price

from arlm.clients.prices import is_priced, prepare, price
from arlm.types import TokenUsage

USED = TokenUsage(input_tokens=10_000, output_tokens=500, cached_tokens=4_000)


@pytest.mark.parametrize(
    ("model", "provider", "ref"),
    [
        ("openai/gpt-5-mini", "openai", "gpt-5-mini"),
        ("azure/gpt-4o", "azure", "gpt-4o"),
        ("openrouter/openai/gpt-5-mini", "openrouter", "openai/gpt-5-mini"),
        ("gemini/gemini-2.5-pro", "google", "gemini-2.5-pro"),
        ("vercel/openai/gpt-5", "openai", "gpt-5"),
    ],
)
@pytest.mark.parametrize("scale", [1, 3, 1_000])
def test_the_price_is_the_lists(model: str, provider: str, ref: str, scale: int) -> None:
    usage = TokenUsage(input_tokens=10_000 * scale, output_tokens=500 * scale, cached_tokens=4_000 * scale)
    listed = calc_price(
        Usage(input_tokens=10_000 * scale, output_tokens=500 * scale, cache_read_tokens=4_000 * scale), ref, provider_id=provider
    )
    assert price(model, usage) == pytest.approx(float(listed.total_price))
    assert is_priced(model)


@pytest.mark.parametrize(
    "model", ["openai/no-such-model", "ollama/llama3", "vllm/gpt-5", "demo/rules", "function/f", "gpt-5", "", "vercel/x"]
)
def test_an_unknown_model_has_no_price_rather_than_none_to_pay(model: str) -> None:
    assert price(model, USED) is None
    assert not is_priced(model)


def test_a_call_without_token_counts_has_no_price() -> None:
    assert price("openai/gpt-5-mini", TokenUsage()) is None
    assert price("openai/gpt-5-mini", TokenUsage(input_tokens=5)) is None


def test_the_providers_own_figure_wins() -> None:
    assert price("ollama/llama3", TokenUsage(cost_usd=0.25)) == 0.25


def test_counts_that_contradict_each_other_never_give_a_negative_price() -> None:
    cost = price("openai/gpt-5-mini", TokenUsage(input_tokens=10, output_tokens=1, cached_tokens=1_000))
    assert cost is None or cost >= 0


async def test_preparing_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    await prepare(["openai/gpt-5-nano", "openai/unknown-model"])
    assert price("openai/gpt-5-nano", USED) is not None
