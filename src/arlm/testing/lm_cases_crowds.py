"""Cases about many calls at once, and about one object on several event loops."""

# ruff: noqa: D103 - the name of a case is its claim

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

from ..errors import ProviderError
from ..types import Completion
from .lm_case import Cases

if TYPE_CHECKING:
    from .lm_bench import Bench

CASES = Cases()
case = CASES.case

CROWD = 200


def _prompts(count: int = CROWD) -> list[str]:
    return [f"{number} " * (number + 1) for number in range(count)]


@case()
async def two_hundred_calls_at_once_each_get_their_own_answer(bench: Bench) -> None:
    await bench.play(sub="sha256", hold=CROWD, jitter=0.02)
    prompts = _prompts()
    completions = await asyncio.gather(*map(bench.ask, prompts))
    assert [completion.text for completion in completions] == [hashlib.sha256(prompt.encode()).hexdigest() for prompt in prompts]
    stats = await bench.stats()
    assert (stats["calls"], stats["answered"], stats["max_in_flight"]) == (CROWD, CROWD, CROWD)
    assert bench.lm.get_usage_summary().total.calls == CROWD


@case("usage")
async def two_hundred_calls_at_once_each_have_their_own_usage_and_the_sum_is_the_providers(bench: Bench) -> None:
    await bench.play(hold=CROWD, cached_tokens=2, reasoning_tokens=1, jitter=0.02)
    prompts = _prompts()

    async def ask(prompt: str) -> tuple[Completion, bool]:
        completion = await bench.ask(prompt)
        await asyncio.sleep(0)
        return completion, bench.lm.get_last_usage() == completion.usage

    outcomes = await asyncio.gather(*[asyncio.create_task(ask(prompt)) for prompt in prompts])
    assert [outcome.usage.input_tokens for outcome, _ in outcomes] == [-(-len(prompt) // 4) for prompt in prompts]
    assert all(is_own for _, is_own in outcomes)
    stats, total = await bench.stats(), bench.lm.get_usage_summary().total
    counted = (total.input_tokens, total.output_tokens, total.cached_tokens, total.reasoning_tokens)
    assert counted == (stats["prompt_tokens"], stats["completion_tokens"], stats["cached_tokens"], stats["reasoning_tokens"])


@case("models")
async def another_model_of_the_provider_can_be_asked_with_or_without_its_providers_name(bench: Bench) -> None:
    small, large = bench.subject.models
    prefix = f"{bench.lm.provider}/" if bench.lm.provider else ""
    for name in (large, f"{prefix}{large}"):
        assert (await bench.ask("x", model=name)).model == f"{prefix}{large}"
    assert (await bench.ask("x")).model == f"{prefix}{small}" == bench.lm.name
    assert (await bench.stats())["by_model"] == {small: 1, large: 2}
    models = bench.lm.get_usage_summary().models
    assert {name: usage.calls for name, usage in models.items()} == {f"{prefix}{small}": 1, f"{prefix}{large}": 2}


@case("models")
async def calls_of_several_models_at_once_are_kept_apart(bench: Bench) -> None:
    await bench.play(hold=60)
    names = [bench.subject.models[number % 3 == 0] for number in range(60)]
    completions = await asyncio.gather(*[bench.ask(f"{number} {name}", model=name) for number, name in enumerate(names)])
    for number, (completion, name) in enumerate(zip(completions, names, strict=True)):
        assert completion.text == f"{number} {name}"
        assert completion.model.endswith(name)
    counts = {name: usage.calls for name, usage in bench.lm.get_usage_summary().models.items()}
    assert sorted(counts.values()) == sorted((await bench.stats())["by_model"].values()) == [20, 40]


@case("server")
async def failures_among_many_calls_stay_with_their_own(bench: Bench) -> None:
    await bench.play(error_rates={"500": 0.2, "429": 0.1, "reset": 0.1, "invalid_json": 0.1}, seed=7)
    outcomes = await asyncio.gather(*map(bench.ask, _prompts(100)), return_exceptions=True)
    answered = [(prompt, it) for prompt, it in zip(_prompts(100), outcomes, strict=True) if isinstance(it, Completion)]
    failed = [it for it in outcomes if isinstance(it, ProviderError)]
    stats, total = await bench.stats(), bench.lm.get_usage_summary().total
    assert all(completion.text == prompt for prompt, completion in answered)
    assert len(answered) + len(failed) == 100 == stats["calls"] == total.calls
    assert len(failed) == sum(stats["faults"].values()) == total.failed > 20
    assert total.input_tokens == stats["prompt_tokens"]


@case()
async def completion_works_without_a_loop_and_inside_of_a_running_one(bench: Bench) -> None:
    async def inside() -> str:
        return bench.lm.completion("inside").text

    assert (await asyncio.to_thread(bench.lm.completion, "without")).text == "without"
    assert await asyncio.to_thread(asyncio.run, inside()) == "inside"
    assert bench.lm.get_usage_summary().total.calls == 2


@case()
async def one_object_serves_several_loops_one_after_the_other(bench: Bench) -> None:
    assert (await bench.ask("here")).text == "here"

    def elsewhere() -> list[str]:
        async def both() -> list[str]:
            completions = await asyncio.gather(bench.ask("there"), bench.ask("too"))
            return [completion.text for completion in completions]

        return [*asyncio.run(both()), *asyncio.run(both())]

    assert await asyncio.to_thread(elsewhere) == ["there", "too"] * 2
    assert (await bench.ask("here again")).text == "here again"
    assert bench.lm.get_usage_summary().total.calls == 6


@case()
async def one_object_serves_several_loops_at_once(bench: Bench) -> None:
    texts = [f"number {number}" for number in range(4)]
    completions = await asyncio.gather(*[asyncio.to_thread(bench.lm.completion, text) for text in texts])
    assert [completion.text for completion in completions] == texts
    assert bench.lm.get_usage_summary().total.calls == 4


@case()
async def closing_one_object_leaves_the_others_alone_and_may_be_done_twice(bench: Bench) -> None:
    other = bench.another()
    await bench.ask()
    await bench.lm.aclose()
    await bench.lm.aclose()
    assert (await other.acompletion("still here")).text == "still here"  # type: ignore[union-attr]


@case()
async def closing_an_object_that_was_never_used_does_nothing(bench: Bench) -> None:
    await bench.another().aclose()
    assert (await bench.stats())["calls"] == 0
