"""10,000 sub-calls in flight at once, from one cell.

Two cores send and read some 2,000 calls a second, so calls of 2 s are never all in flight; calls of 10 s are.

``lag``: by how much a task that sleeps 5 ms at a time is late, as any other task on the loop would be. ``held``: the CPU time that the
loop's thread spent between two of its ticks, which is what arlm itself is to blame for: on a machine that others use too, the rest of the
lag is their turn on the CPU. ``ideal``: one round of calls, and the root turn before it.
"""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial

from measure import Benchmark, Case, Figures, peak_mib, reset_peak, spending

import arlm
from arlm.clients.openai import OpenAILM
from arlm.events import AnyEvent, CellEnded
from arlm.testing import ProviderProcess

TICK = 0.005
BATCH = """```repl
replies = llm_query_batched([f"question {i}" for i in range({calls})])
answer["content"] = str(sum(reply == f"question {i}" for i, reply in enumerate(replies)))
answer["ready"] = True
```"""
WARM = '```repl\nanswer["content"] = llm_query("warm"); answer["ready"] = True\n```'
SIZES = ((1_000, 2), (10_000, 2), (10_000, 10))  # calls, seconds each


class Ticker:
    """Looks at the loop every TICK seconds."""

    def __init__(self) -> None:
        self.lags: list[float] = []
        self.held: list[float] = []

    async def run(self) -> None:
        while True:
            wall, cpu = time.perf_counter(), time.thread_time()
            await asyncio.sleep(TICK)
            self.lags.append(time.perf_counter() - wall - TICK)
            self.held.append(time.thread_time() - cpu)

    def figures(self) -> Figures:
        return {**_quantiles("lag", self.lags), **_quantiles("held", self.held)}


def _quantiles(name: str, seconds: list[float]) -> Figures:
    ordered = sorted(seconds)
    quantiles = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {f"{name}_{what}_ms": 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * part))] for what, part in quantiles.items()}


async def crowd(calls: int, latency: float) -> Figures:
    cells: list[float] = []
    provider = ProviderProcess(os.environ["OPENAI_BASE_URL"], pid=0)  # the parent started it
    roots = [{"contains": "warm up", "turns": [WARM]}]
    await provider.configure({"turns": [BATCH.replace("{calls}", str(calls))], "roots": roots})

    def on_event(event: AnyEvent) -> None:
        if isinstance(event, CellEnded):
            cells.append(event.duration_s)

    rlm = arlm.RLM(model=OpenAILM("bench"), max_concurrency=calls, max_calls=2 * calls, on_event=on_event)
    await rlm.run("warm up")
    await provider.configure({"turns": [BATCH.replace("{calls}", str(calls))], "latency": latency})
    await provider.reset()
    reset_peak()
    before = peak_mib()
    ticker = Ticker()
    ticking = asyncio.create_task(ticker.run())
    with spending() as spent:
        result = await rlm.run("fan out")
    ticking.cancel()
    assert result.answer == str(calls), result
    memory = {"peak_mib": peak_mib(), "kib_a_call": (peak_mib() - before) * 1024 / calls}
    most = (await provider.stats())["max_in_flight"]
    wall = {"cell_s": cells[-1], "times_ideal": cells[-1] / latency, "host_cpu_s": spent.host_cpu}
    return {"in_flight": most, **wall, **memory, **ticker.figures()}


CASES: dict[str, Case] = {f"{calls:,} calls of {latency} s": partial(crowd, calls, latency) for calls, latency in SIZES}

BENCHMARK = Benchmark(
    claim="one batch of one cell, all calls in flight at once",
    cases=CASES,
    provider={},
    rounds=3,
    target="p99 of the lag below 50 ms",
    sampled=False,
)

if __name__ == "__main__":
    BENCHMARK.main()
