"""One cell asks 1,000 sub-calls of 200 ms in one batch: wall clock and CPU beside the ideal and beside the bare transport.

Every case has made a call before the clock starts (the SDK is imported, the fork server runs); its 1,000 connections are new.
``cell`` is the cell with the batch; ``run`` is the whole run with the one root turn before it, which takes 200 ms too.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from measure import Benchmark, Case, Figures, spending

import arlm
from arlm.clients.openai import OpenAILM
from arlm.clients.resolve import ModelSpec
from arlm.events import AnyEvent, CellEnded
from arlm.types import Message

CALLS = 1_000
LATENCY = 0.2
MODEL = "bench"
Transport = tuple[Callable[[str], Awaitable[str]], Callable[[], Awaitable[None]]]  # asks one prompt; closes
Opened = Callable[[], Awaitable[Transport]]
BATCH = f"""```repl
replies = llm_query_batched([f"question {{i}}" for i in range({CALLS})])
answer["content"] = str(sum(reply == f"question {{i}}" for i, reply in enumerate(replies)))
answer["ready"] = True
```"""
WARM = '```repl\nanswer["content"] = llm_query("warm"); answer["ready"] = True\n```'


async def plain(messages: list[Message]) -> str:
    """A model without HTTP."""
    await asyncio.sleep(LATENCY)
    if messages[0]["role"] != "system":
        return messages[-1]["content"]
    return WARM if "warm up" in messages[1]["content"] else BATCH


async def framework(model: Callable[[], ModelSpec], concurrency: int) -> Figures:
    """The whole of arlm."""
    cells: list[float] = []

    def on_event(event: AnyEvent) -> None:
        if isinstance(event, CellEnded):
            cells.append(event.duration_s)

    rlm = arlm.RLM(model=model(), max_concurrency=concurrency, on_event=on_event)
    await rlm.run("warm up")
    with spending() as spent:
        result = await rlm.run("fan out")
    assert result.answer == str(CALLS), result
    return {"cell_s": cells[-1], "run_s": spent.wall, "host_cpu_s": spent.host_cpu, "tree_cpu_s": spent.tree_cpu}


async def bare(opened: Opened, concurrency: int) -> Figures:
    """``concurrency`` workers that take prompts from one iterator, as plainly as it can be written."""
    ask, close = await opened()
    await ask("warm")
    replies: list[str] = [""] * CALLS
    left = iter(range(CALLS))

    async def work() -> None:
        for number in left:
            replies[number] = await ask(f"question {number}")

    with spending() as spent:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(work())
    assert replies == [f"question {number}" for number in range(CALLS)]
    await close()
    return {"cell_s": spent.wall, "host_cpu_s": spent.host_cpu, "tree_cpu_s": spent.tree_cpu}


async def aiohttp_alone() -> Transport:
    import aiohttp

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"

    async def ask(prompt: str) -> str:
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": prompt}]}).encode()
        async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as response:
            text: str = json.loads(await response.read())["choices"][0]["message"]["content"]
            return text

    return ask, session.close


async def sdk_alone() -> Transport:
    import openai

    client = openai.AsyncOpenAI(http_client=openai.DefaultAioHttpClient(), max_retries=0)

    async def ask(prompt: str) -> str:
        completion = await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": prompt}])
        return completion.choices[0].message.content or ""

    return ask, client.close


async def client_alone() -> Transport:
    lm = OpenAILM(MODEL)

    async def ask(prompt: str) -> str:
        return (await lm.acompletion([{"role": "user", "content": prompt}])).text

    return ask, lm.aclose


def compared(medians: Mapping[str, Figures]) -> dict[str, Figures]:
    """Each case's cell beside the ideal."""
    return {
        name: {"times_ideal": figures["cell_s"] / (math.ceil(CALLS / int(name.rpartition(" ")[2])) * LATENCY)}
        for name, figures in medians.items()
    }


def openai_model() -> OpenAILM:
    return OpenAILM(MODEL)


def plain_model() -> ModelSpec:
    return plain


MODELS = {"arlm, OpenAI client, at": openai_model, "arlm, plain function, at": plain_model}
TRANSPORTS = {
    "arlm's OpenAI client alone, at": client_alone,
    "bare aiohttp, at": aiohttp_alone,
    "openai SDK on aiohttp alone, at": sdk_alone,
}
IN_FLIGHT = (256, 1_000)
CASES: dict[str, Case] = {
    **{f"{name} {most}": partial(framework, model, most) for name, model in MODELS.items() for most in IN_FLIGHT},
    **{f"{name} {most}": partial(bare, opened, most) for name, opened in TRANSPORTS.items() for most in IN_FLIGHT},
}

BENCHMARK = Benchmark(
    claim=f"{CALLS:,} sub-calls of {LATENCY * 1000:.0f} ms in one batch of one cell",
    cases=CASES,
    provider={"turns": [BATCH], "roots": [{"contains": "warm up", "turns": [WARM]}], "latency": LATENCY},
    derive=compared,
    target="at 1,000 in flight: run at most 0.8 s, host CPU at most 0.35 s",
)

if __name__ == "__main__":
    BENCHMARK.main()
