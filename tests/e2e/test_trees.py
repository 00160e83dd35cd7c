"""Trees of runs through the OpenAI client, against a provider that counts for itself."""

import asyncio
import random
from typing import Any

import pytest

import arlm
from arlm.clients.openai import OpenAILM
from arlm.testing import Script, ScriptedProvider

FAULTS = {"429": 0.08, "500": 0.04, "reset": 0.03, "invalid_json": 0.02}


def random_tree(rng: random.Random, name: str, depth: int) -> list[dict[str, Any]]:
    """The scripts of a tree's nodes, parents first: each is found by its name, which only its own prompt and its parent's code have."""
    lines: list[str] = []
    below: list[dict[str, Any]] = []
    lines += [f"llm_query_batched(['leaf of {name}'] * {rng.randint(1, 6)})" for _ in range(rng.randint(1, 3))]
    for group in range(rng.randint(0, 2) if depth else 0):
        children = [f"{name}{group}{number}" for number in range(rng.randint(1, 3))]
        lines.append(f"rlm_query_batched({[f'<{child}>' for child in children]})")
        for child in children:
            below += random_tree(rng, child, depth - 1)
    rng.shuffle(lines)
    code = "\n".join([*lines, f"answer.update(content='{name}', ready=True)"])
    return [{"contains": f"<{name}>", "turns": [f"```repl\n{code}\n```"]}, *below]


def nodes(result: arlm.Result) -> int:
    return 1 + sum(map(nodes, result.children))


@pytest.mark.parametrize("batch", range(4))
async def test_the_usage_of_random_trees_is_the_servers_own_count(batch: int) -> None:
    await asyncio.gather(*[one_tree(5 * batch + number) for number in range(5)])


async def one_tree(seed: int) -> None:
    scripts = random_tree(random.Random(seed), "t", 2)
    script = Script(roots=scripts, error_rates=FAULTS, seed=seed, retry_after=None, retry_after_ms="1", cost=0.001)
    async with ScriptedProvider(script) as provider:
        lm = OpenAILM("small", base_url=provider.url, api_key="sk-none")
        result = await arlm.run("<t>", model=lm, max_depth=4, max_concurrency=20, max_repls=4)
        counted = await provider.stats()
    total = result.usage.total
    assert result.answer == "t"
    assert nodes(result) == len(scripts)
    assert total.calls == counted["calls"]
    assert total.failed == sum(counted["faults"].values())
    assert (total.input_tokens, total.output_tokens) == (counted["prompt_tokens"], counted["completion_tokens"])
    assert total.cost_usd == pytest.approx(0.001 * counted["answered"])
