"""A provider in a storm: every call ends, and arlm's count of what was used is the provider's own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import arlm
from arlm.calls import Account, Caller
from arlm.clients.openai import TIMEOUT_S, OpenAILM
from arlm.clients.retry import RetryPolicy
from arlm.clients.tally import Tally
from arlm.errors import ProviderError
from arlm.ledger import Ledger
from arlm.testing import Script, ScriptedProvider

if TYPE_CHECKING:
    from arlm.types import Completion

STORM = {"429": 0.3, "500": 0.05, "503": 0.05, "reset": 0.05, "stall": 0.05}
QUICK = RetryPolicy(first_wait=0.01, max_wait=0.05)
TIMEOUT = 3.0  # seconds; ends the stalled calls, and no others, on a machine that has much else to do too


def storm(**changes: Any) -> Script:
    return Script(**{"error_rates": STORM, "faults_for": "sub", "retry_after": None, "seed": 4, **changes})


async def ask_all(
    provider: ScriptedProvider, calls: int, policy: RetryPolicy = QUICK, *, timeout: float = TIMEOUT
) -> tuple[list[Completion | BaseException], Tally]:
    lm = OpenAILM("small", base_url=provider.url, api_key="none", timeout=timeout)
    caller = Caller(Ledger(), max_concurrency=64, policy=policy)
    account = Account(tally=Tally(), on_retry=lambda _lm, _error, _wait: None)

    async def ask(number: int) -> Completion:
        return await caller.complete(lm, [{"role": "user", "content": f"question {number}"}], sampling={}, account=account)

    return await asyncio.gather(*map(ask, range(calls)), return_exceptions=True), account.tally


async def test_in_a_storm_every_call_ends_and_nearly_all_end_well() -> None:
    calls = 160
    async with ScriptedProvider(storm()) as provider:
        outcomes, tally = await ask_all(provider, calls)
        stats = await provider.stats()
    failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert all(isinstance(outcome, ProviderError) for outcome in failed), failed
    assert len(failed) <= calls // 20  # six tries of which each fails with 45 %: 1 % on average
    texts = {number: outcome.text for number, outcome in enumerate(outcomes) if not isinstance(outcome, BaseException)}
    assert texts == {number: f"question {number}" for number in texts}
    total = tally.summary().total
    assert (total.calls, total.calls - total.failed) == (stats["calls"], stats["answered"])
    assert (total.input_tokens, total.output_tokens) == (stats["prompt_tokens"], stats["completion_tokens"])
    assert {"429", "500", "503", "reset", "stall"} <= stats["faults"].keys()


async def test_in_a_storm_a_whole_run_counts_what_the_provider_counts() -> None:
    batch = '```repl\nanswer["content"] = str(sum(len(r) > 0 for r in llm_query_batched(["x"] * 60))); answer["ready"] = True\n```'
    async with ScriptedProvider(storm(turns=[batch], error_rates={**STORM, "429": 0.1})) as provider:
        lm = OpenAILM("small", base_url=provider.url, api_key="none", timeout=TIMEOUT)
        result = await arlm.run("count", model=lm)
        stats = await provider.stats()
    assert result.answer == "60"
    total = result.usage.total
    assert (total.calls, total.calls - total.failed) == (stats["calls"], stats["answered"])
    assert (total.input_tokens, total.output_tokens) == (stats["prompt_tokens"], stats["completion_tokens"])


async def test_a_provider_that_is_down_is_not_asked_again_and_again() -> None:
    calls = 1_500
    async with ScriptedProvider(storm(error_rates={"500": 1.0})) as provider:
        outcomes, _ = await ask_all(provider, calls, RetryPolicy(first_wait=0.0, max_wait=0.0), timeout=60.0)
        stats = await provider.stats()
    assert all(isinstance(outcome, ProviderError) for outcome in outcomes)
    assert sum("used up its retries" in str(outcome) for outcome in outcomes) >= calls // 2
    assert stats["calls"] == calls + 1_000


def test_a_call_has_a_time_limit_that_leaves_room_for_thinking() -> None:
    assert 60 <= OpenAILM("small", api_key="none").timeout == TIMEOUT_S <= 600
