"""Claim: a process that runs for long does not grow: 2,000 runs with 20 sub-calls each, 16 at once; memory, descriptors, tasks.

    python benchmarks/soak.py [--runs 2000] [--model plain]

The slope is the least-squares line through this process's memory (RSS) from run 500 on, in MiB per 1,000 runs; the fork server's beside it.
Exit status 1 when a run was wrong, or a descriptor, task, thread or process more was there at the end than after the first runs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import AsyncIterator

import psutil
from measure import MIB, machine

import arlm
from arlm.clients.resolve import ModelSpec
from arlm.testing.provider import start_provider
from arlm.types import Message

SUBCALLS = 20
AT_ONCE = 16
SETTLED = 500  # runs after which memory counts: pools are full, caches warm
EVERY = 100  # runs between two looks
CELL = f"""```repl
replies = llm_query_batched([f"{{context}}: {{number}}" for number in range({SUBCALLS})])
answer["content"] = str(sum(reply == f"{{context}}: {{number}}" for number, reply in enumerate(replies)))
answer["ready"] = True
```"""


async def plain(messages: list[Message]) -> str:
    """A model without HTTP."""
    await asyncio.sleep(0)
    return CELL if messages[0]["role"] == "system" else messages[-1]["content"]


@contextlib.asynccontextmanager
async def opened(name: str) -> AsyncIterator[ModelSpec]:
    """The model asked: over HTTP from a provider in its own process, or a plain function."""
    if name == "plain":
        yield plain
        return
    async with start_provider({"turns": [CELL]}) as provider:
        os.environ |= {"OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "none"}
        yield "openai/bench"


def held() -> dict[str, int]:
    """What a run may leave behind, counted; connections kept open to the provider are the client's, for the next run."""
    process = psutil.Process()
    return {
        "descriptors": process.num_fds() - len(process.net_connections("tcp")),
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "processes": len(process.children(recursive=True)),
    }


def memory() -> dict[str, float]:
    process = psutil.Process()
    below = sum(_rss(child) for child in process.children())
    return {"host_mib": process.memory_info().rss / MIB, "children_mib": below}


def _rss(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        return process.memory_info().rss / MIB
    return 0.0


async def soak(rlm: arlm.RLM, runs: int) -> dict[str, object]:
    """All the runs, AT_ONCE of them at any time."""
    numbers = iter(range(runs))
    done = wrong = 0
    looks: list[tuple[int, dict[str, float]]] = []

    async def work() -> None:
        nonlocal done, wrong
        for number in numbers:
            result = await rlm.run("how many?", context=f"run {number}")
            wrong += result.answer != str(SUBCALLS) or result.usage.total.calls != SUBCALLS + 1
            done += 1
            if done % EVERY == 0:
                looks.append((done, memory()))
                print(f"{done} runs: {looks[-1][1]}", file=sys.stderr, flush=True)

    await asyncio.gather(*[rlm.run("how many?", context="warm up") for _ in range(AT_ONCE)])
    gc.collect()
    before, began = held(), time.perf_counter()
    await asyncio.gather(*[work() for _ in range(AT_ONCE)])
    took = time.perf_counter() - began
    gc.collect()
    after = held()
    return {"runs": runs, "wrong": wrong, "seconds": took, "before": before, "after": after, "looks": looks, **slopes(looks)}


def slopes(looks: list[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """MiB per 1,000 runs, by least squares over the looks from SETTLED on."""
    late = [look for look in looks if look[0] >= SETTLED]
    if len(late) < 2:
        return {}
    runs = [done for done, _ in late]
    return {f"{name}_per_1000": 1_000 * statistics.linear_regression(runs, [look[name] for _, look in late]).slope for name in late[0][1]}


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2_000)
    parser.add_argument("--model", choices=("openai", "plain"), default="openai")
    options = parser.parse_args()
    async with opened(options.model) as model:
        told = await soak(arlm.RLM(model=model), options.runs)
    print(json.dumps({"machine": machine(), "model": options.model, **told}))
    before, after = told["before"], told["after"]
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    grown = {name: after[name] - before[name] for name in before if after[name] > before[name]}
    print(f"{told['wrong']} wrong; more than before: {grown or 'nothing'}", file=sys.stderr)
    return 1 if told["wrong"] or grown else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
