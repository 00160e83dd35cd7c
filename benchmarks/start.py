"""A run that answers at once: the first of a process, later ones, 200 at once; and a worker alone beside a fresh interpreter."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from functools import partial
from pathlib import Path

import psutil
from fanout import openai_model
from measure import Benchmark, Figures, memory_mib, spending

import arlm
from arlm import functions
from arlm.clients.resolve import ModelSpec
from arlm.environments import ProcessREPL
from arlm.environments.repl import REPL
from arlm.server import LMHandler
from arlm.types import Message

RUNS = 200
WARM_RUNS = 50
AT_ONCE = '```repl\nanswer["content"] = context; answer["ready"] = True\n```'


async def plain(_messages: list[Message]) -> str:
    """A root model that has the context returned in its first turn."""
    return AT_ONCE


async def first(model: ModelSpec) -> Figures:
    """The first run of a process: everything that is loaded or started on first use counts, `import arlm` does not."""
    with spending() as spent:
        assert (await arlm.run("first", context="x", model=model)).answer == "x"
    return _each(spent.wall, spent.host_cpu, spent.tree_cpu, 1)


async def one_by_one() -> Figures:
    await arlm.run("first", context="x", model=plain)
    with spending() as spent:
        for number in range(WARM_RUNS):
            assert (await arlm.run("again", context=str(number), model=plain)).answer == str(number)
    return _each(spent.wall, spent.host_cpu, spent.tree_cpu, WARM_RUNS)


async def at_once() -> Figures:
    await arlm.run("first", context="x", model=plain)
    with spending() as spent:
        results = await asyncio.gather(*[arlm.run("again", context=str(number), model=plain) for number in range(RUNS)])
    right = sum(result.answer == str(number) for number, result in enumerate(results))
    return {"all_s": spent.wall, "right": right} | _each(spent.wall, spent.host_cpu, spent.tree_cpu, RUNS)


async def workers() -> Figures:
    """Workers alone, all in one place: started at once, then one small cell each."""
    environment = ProcessREPL()
    with tempfile.TemporaryDirectory(prefix="arlm-") as folder:
        scratch = Path(folder)
        async with LMHandler(transport=environment.transport, directory=scratch) as handler, environment.open(handler, scratch) as place:
            repls = [
                REPL(place, handler, name=str(number), functions=functions.specs(), cell_timeout=60, memory_limit=None)
                for number in range(RUNS + 1)
            ]
            await repls.pop().start()
            with spending() as spent:
                await asyncio.gather(*[repl.start() for repl in repls])
            fresh = _worker_mib()
            results = await asyncio.gather(*[repl.run_cell("x = list(range(10)); x", 1) for repl in repls])
            assert all(result.error is None for result in results), results
            used = _worker_mib()
            await asyncio.gather(*[repl.close() for repl in repls])
    return (
        {"all_s": spent.wall}
        | _each(spent.wall, spent.host_cpu, spent.tree_cpu, RUNS)
        | {"pss_each_mib": fresh, "pss_after_a_cell_mib": used}
    )


def _worker_mib() -> float:
    (supervisor,) = psutil.Process().children()
    alive = supervisor.children()
    return memory_mib(alive) / len(alive)


async def interpreters() -> Figures:
    """What a worker would cost as a process of its own Python."""

    async def start() -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-c", "pass")
        assert await process.wait() == 0

    await start()
    with spending() as spent:
        await asyncio.gather(*[start() for _ in range(RUNS)])
    return {"all_s": spent.wall} | _each(spent.wall, spent.host_cpu, spent.tree_cpu, RUNS)


def _each(wall: float, host_cpu: float, tree_cpu: float, count: int) -> Figures:
    return {"each_ms": wall / count * 1000, "host_cpu_ms": host_cpu / count * 1000, "tree_cpu_ms": tree_cpu / count * 1000}


BENCHMARK = Benchmark(
    claim="a run that answers at once",
    cases={
        "the first of a process, plain function": partial(first, plain),
        "the first of a process, OpenAI client": lambda: first(openai_model()),
        "later ones, one after the other": one_by_one,
        f"{RUNS} at once": at_once,
        f"{RUNS} workers alone at once": workers,
        f"{RUNS} fresh interpreters at once, `python -I -c pass`": interpreters,
    },
    provider={"turns": [AT_ONCE]},
    target="a later run at most 4 ms; 200 at once at most 0.5 s, all right",
)

if __name__ == "__main__":
    BENCHMARK.main()
