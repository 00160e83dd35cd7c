"""A provider in a storm, and one that enforces a rate: every call ends, the counts agree, the permitted rate is used.

``storm``: 30 % 429, 10 % 5xx, 5 % resets, 5 % stalls, which the client's time limit ends. ``rate``: 100 calls a second are let in, ten at
once; ``used`` is what was answered of what would have been let in from the first answer on, from the 10th second on ``used later``.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from measure import Benchmark, Case, Figures, spending

import arlm
from arlm.clients.openai import OpenAILM
from arlm.testing import ProviderProcess

CALLS = 2_000
LATENCY = 0.2
TIME_LIMIT = 2.0  # seconds a call
RATE = 100.0
SETTLED_S = 10.0
STORM = {"429": 0.3, "500": 0.05, "503": 0.05, "reset": 0.05, "stall": 0.05}
BATCH = f"""```repl
prompts = [f"question {{i}}" for i in range({CALLS})]
replies = llm_query_batched(prompts)
answer["content"] = [sum(map(str.__eq__, prompts, replies)), sum(reply.startswith("Error:") for reply in replies)]
answer["ready"] = True
```"""
SCRIPT = {"turns": [BATCH], "latency": LATENCY, "faults_for": "sub", "retry_after": None}


class Watch:
    """Looks at the provider's counters every now and then."""

    def __init__(self, provider: ProviderProcess) -> None:
        self._provider = provider
        self.seen: list[tuple[float, int, int]] = []  # when; answered, refused

    async def run(self) -> None:
        while True:
            stats = await self._provider.stats()
            self.seen.append((time.perf_counter(), stats["answered"], stats["limited"]))
            await asyncio.sleep(0.25)

    def used(self, *, after: float) -> float:
        """The part of the rate that was used from ``after`` seconds after the first look until nearly all was answered."""
        began = self.seen[0][0]
        part = [(when, answered) for when, answered, _ in self.seen if when - began >= after and answered < 0.95 * CALLS]
        (first, before), (last, then) = part[0], part[-1]
        return (then - before) / (RATE * (last - first))


async def case(changes: Mapping[str, Any], *, limited: bool = False) -> Figures:
    provider = ProviderProcess(os.environ["OPENAI_BASE_URL"], pid=0)
    await provider.configure({**SCRIPT, **changes})
    await provider.reset()
    lm = OpenAILM("bench", timeout=TIME_LIMIT)
    watch = Watch(provider)
    watching = asyncio.create_task(watch.run())
    with spending() as spent:
        result = await arlm.run("fan out", model=lm, output_type=list, max_calls=20 * CALLS)
    watching.cancel()
    stats, total = await provider.stats(), result.usage.total
    right, failed = result.answer
    assert right + failed == CALLS, result.answer
    assert (total.calls, total.calls - total.failed) == (stats["calls"], stats["answered"]), (total, stats)
    assert (total.input_tokens, total.output_tokens) == (stats["prompt_tokens"], stats["completion_tokens"]), (total, stats)
    figures = {"right": right, "failed": failed, "requests": stats["calls"], "run_s": spent.wall, "host_cpu_s": spent.host_cpu}
    if not limited:
        return figures
    return {**figures, "refused": stats["limited"], "used": watch.used(after=0.0), "used_later": watch.used(after=SETTLED_S)}


CASES: dict[str, Case] = {
    "calm": partial(case, {}),
    "storm": partial(case, {"error_rates": STORM}),
    "rate": partial(case, {"rate": RATE, "burst": 10}, limited=True),
    "rate, Retry-After": partial(case, {"rate": RATE, "burst": 10, "retry_after": "1"}, limited=True),
}

BENCHMARK = Benchmark(
    claim=f"{CALLS:,} sub-calls of {LATENCY * 1000:.0f} ms at 256 in flight, against a provider in trouble",
    cases=CASES,
    provider={},
    rounds=3,
    target="every call ends; usage is the provider's own count; at least 80 % of the rate is used",
    sampled=False,
)

if __name__ == "__main__":
    BENCHMARK.main()
