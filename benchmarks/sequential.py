"""300 `llm_query` one after the other at 0 ms: what one call costs, beside the transport alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from fanout import Opened, aiohttp_alone, client_alone, openai_model, sdk_alone
from measure import Benchmark, Figures, Spent, spending

import arlm
from arlm.clients.resolve import ModelSpec
from arlm.types import Message

CALLS = 300
LOOP = f"""```repl
replies = [llm_query(f"question {{i}}") for i in range({CALLS})]
answer["content"] = str(sum(reply == f"question {{i}}" for i, reply in enumerate(replies)))
answer["ready"] = True
```"""
WARM = '```repl\nanswer["content"] = llm_query("warm"); answer["ready"] = True\n```'


async def plain(messages: list[Message]) -> str:
    """A model without HTTP, which answers at once."""
    await asyncio.sleep(0)
    if messages[0]["role"] != "system":
        return messages[-1]["content"]
    return WARM if "warm up" in messages[1]["content"] else LOOP


def per_call(spent: Spent) -> Figures:
    return {
        "call_ms": spent.wall / CALLS * 1000,
        "host_cpu_ms": spent.host_cpu / CALLS * 1000,
        "tree_cpu_ms": spent.tree_cpu / CALLS * 1000,
    }


async def framework(model: Callable[[], ModelSpec]) -> Figures:
    """The whole of arlm; what a run with one call takes is taken off."""
    rlm = arlm.RLM(model=model())
    await rlm.run("warm up")
    with spending() as one:
        await rlm.run("warm up")
    with spending() as spent:
        result = await rlm.run("one by one")
    assert result.answer == str(CALLS), result
    return per_call(Spent(spent.wall - one.wall, spent.host_cpu - one.host_cpu, spent.tree_cpu - one.tree_cpu))


async def bare(opened: Opened) -> Figures:
    ask, close = await opened()
    await ask("warm")
    with spending() as spent:
        for number in range(CALLS):
            assert await ask(f"question {number}") == f"question {number}"
    await close()
    return per_call(spent)


BENCHMARK = Benchmark(
    claim=f"{CALLS} sub-calls one after the other, 0 ms each, in one cell",
    cases={
        "arlm, OpenAI client": partial(framework, openai_model),
        "arlm, plain function": partial(framework, lambda: plain),
        "arlm's OpenAI client alone": partial(bare, client_alone),
        "bare aiohttp": partial(bare, aiohttp_alone),
        "openai SDK on aiohttp alone": partial(bare, sdk_alone),
    },
    provider={"turns": [LOOP], "roots": [{"contains": "warm up", "turns": [WARM]}]},
    derive=lambda medians: (
        {name: {"times_bare": figures["call_ms"] / medians["bare aiohttp"]["call_ms"]} for name, figures in medians.items()}
        if "bare aiohttp" in medians
        else {}
    ),
    target="at most 0.35 ms a call",
    sampled=False,
)

if __name__ == "__main__":
    BENCHMARK.main()
