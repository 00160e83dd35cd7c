"""Cases about what a call used, why its reply ended, and refusals."""

# ruff: noqa: D103 - the name of a case is its claim

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ..errors import Refused
from ..types import TokenUsage
from .lm_canned import said
from .lm_case import Cases
from .lm_cases_text import system, user

if TYPE_CHECKING:
    from .lm_bench import Bench

CASES = Cases()
case = CASES.case


async def used(bench: Bench) -> TokenUsage:
    """What the provider has counted, as one call."""
    stats = await bench.stats()
    written = stats["cache_write_tokens"] if "cache_write" not in bench.speech.without else None
    return TokenUsage(
        input_tokens=stats["prompt_tokens"],
        output_tokens=stats["completion_tokens"],
        cached_tokens=stats["cached_tokens"],
        cache_write_tokens=written,
        reasoning_tokens=stats["reasoning_tokens"],
    )


@case("usage")
async def usage_is_what_the_wire_says(bench: Bench) -> None:
    await bench.play(sub={"text": "x" * 8}, cached_tokens=3, cache_write_tokens=2, reasoning_tokens=4)
    completion = await bench.ask("y" * 40)
    expected = TokenUsage(input_tokens=10, output_tokens=6, cached_tokens=3, cache_write_tokens=2, reasoning_tokens=4)
    if "cache_write" in bench.speech.without:
        expected = dataclasses.replace(expected, cache_write_tokens=None)
    assert completion.usage == expected == await used(bench)


@case("usage")
async def usage_of_a_conversation_counts_all_of_it(bench: Bench) -> None:
    await bench.play(turns=["z" * 20], cached_tokens=50, cache_write_tokens=20)
    completion = await bench.ask([system("s" * 200), user("u" * 200)])
    assert (completion.usage.input_tokens, completion.usage.output_tokens, completion.usage.cached_tokens) == (100, 5, 50)


@case("usage")
async def usage_that_is_missing_is_unknown_and_not_zero(bench: Bench) -> None:
    await bench.play(usage=False)
    assert (await bench.ask()).usage == TokenUsage()


@case("server", "usage")
async def usage_that_is_partly_missing_or_no_count_is_unknown_there(bench: Bench) -> None:
    replies = [said({**bench.speech.reply("x"), bench.speech.usage: usage}) for usage, _, _ in bench.speech.counts]
    async with bench.canned(*replies) as (lm, _):
        for usage, tokens_in, tokens_out in bench.speech.counts:
            told = (await lm.acompletion("x")).usage  # type: ignore[union-attr]
            assert (usage, told.input_tokens, told.output_tokens) == (usage, tokens_in, tokens_out)
            assert told.cost_usd is None


@case("cost")
async def the_providers_own_cost_is_told(bench: Bench) -> None:
    await bench.play(cost=0.0125)
    assert (await bench.ask()).usage.cost_usd == 0.0125
    await bench.play(cost=0)
    assert (await bench.ask()).usage.cost_usd == 0
    await bench.play()
    assert (await bench.ask()).usage.cost_usd is None


@case()
async def the_last_usage_and_the_sums_are_what_the_calls_said(bench: Bench) -> None:
    first = await bench.ask("x" * 40)
    assert bench.lm.get_last_usage() == first.usage
    second = await bench.ask("x" * 80)
    assert bench.lm.get_last_usage() == second.usage
    total = bench.lm.get_usage_summary().models[bench.lm.name]
    assert (total.calls, total.failed, total.cancelled) == (2, 0, 0)
    assert total.input_tokens == (None if first.usage.input_tokens is None else 30)


@case("finish")
async def why_a_reply_ended_is_told_in_the_same_words(bench: Bench) -> None:
    for reason in ("stop", "length"):
        await bench.play(finish_reason=reason)
        assert (await bench.ask()).finish_reason == reason


@case("finish")
async def an_empty_reply_that_its_length_ended_is_a_completion(bench: Bench) -> None:
    await bench.play(sub="empty", finish_reason="length", reasoning_tokens=100)
    completion = await bench.ask()
    assert (completion.text, completion.finish_reason) == ("", "length")
    assert completion.usage.output_tokens in (100, None)


@case("finish", "partly_filtered")
async def what_a_filter_left_of_a_reply_is_told_with_the_filters_name(bench: Bench) -> None:
    await bench.play(finish_reason="content_filter")
    completion = await bench.ask("the first half")
    assert (completion.text, completion.finish_reason) == ("the first half", "content_filter")


async def _refused(bench: Bench, **script: Any) -> Refused:
    await bench.play(**script)
    error = await bench.fails(Refused, "x" * 40)
    total = bench.lm.get_usage_summary().total
    assert (total.calls, total.failed) == (1, 1)
    assert total.input_tokens == (None if error.usage is None else error.usage.input_tokens)
    await bench.play()
    assert (await bench.ask("after")).text == "after"
    return error


@case("server")
async def a_refusal_of_the_model_is_an_error_that_says_why_and_what_it_cost(bench: Bench) -> None:
    error = await _refused(bench, refusal="I will not do that.", reasoning_tokens=7)
    assert "I will not do that." in str(error)
    assert error.usage is not None
    assert (error.usage.input_tokens, error.usage.output_tokens) == (10, 12)


@case("server")
async def a_blocked_prompt_is_a_refusal_with_what_it_cost(bench: Bench) -> None:
    error = await _refused(bench, prompt_blocked=True)
    assert error.usage is None or error.usage.input_tokens == 10  # a wire that answers 400 has no usage in it


@case("server")
async def a_reply_of_which_a_filter_left_nothing_is_a_refusal_with_what_it_cost(bench: Bench) -> None:
    error = await _refused(bench, finish_reason="content_filter", sub="empty")
    assert error.usage is not None
    assert error.usage.input_tokens == 10
