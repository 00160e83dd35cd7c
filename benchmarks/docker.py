"""Containers beside processes: start, a call, 100 MB and 1 GB of context, 20 at once. Needs a Docker engine.

The image is $ARLM_BENCH_IMAGE, else the one that DockerREPL takes by itself. A case that the engine cannot run (gVisor) says so and ends.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from measure import Benchmark, Figures

import arlm
from arlm.environments import DockerREPL, Environment, ProcessREPL
from arlm.testing.conformance import Subject, open_bench
from arlm.types import Message

OPENED = 5
AT_ONCE = 20
CALLS = 300
BATCH = 1_000
CONTEXTS = {"100_mb_s": 100_000_000, "1_gb_s": 1_000_000_000}
LINE = b"line of text\n"
AT_ONCE_REPLY = '```repl\nanswer["content"] = context; answer["ready"] = True\n```'

Make = Callable[[], Environment]


def docker(transport: str | None = None, runtime: str | None = None, pool: int = 0) -> Environment:
    image = os.environ.get("ARLM_BENCH_IMAGE")
    options = {} if image is None else {"image": image}
    return DockerREPL(transport=transport, runtime=runtime, pool=pool, **options)


async def measure(make: Make) -> Figures:
    await _opened(make)  # the first of a process loads what is loaded once
    times = [await _opened(make) for _ in range(OPENED)]
    opened, closed = (sum(seconds) / OPENED for seconds in zip(*times, strict=True))
    call, batch = await _calls(make)
    return {
        "first_cell_ms": opened * 1000,
        "close_ms": closed * 1000,
        "call_us": call * 1e6,
        "batch_item_us": batch * 1e6,
        **{name: await _context(make, size) for name, size in CONTEXTS.items()},
        "20_at_once_s": await _at_once(make),
    }


async def _opened(make: Make) -> tuple[float, float]:
    """Seconds from nothing to the end of the first cell, and to leave."""
    began = time.perf_counter()
    async with open_bench(Subject(name="measured", environment=make)) as bench:
        assert await bench.out("1 + 1") == "2\n"
        opened = time.perf_counter()
    return opened - began, time.perf_counter() - opened


async def _calls(make: Make) -> tuple[float, float]:
    """Seconds of one `llm_query`, one after the other and as an item of a batch, answered at once by the host."""
    async with open_bench(Subject(name="measured", environment=make)) as bench:
        code = "import time\nt = time.perf_counter()\n{}\nprint((time.perf_counter() - t) / {})"
        await bench.out("llm_query('warm')")
        one = float(await bench.out(code.format(f"for i in range({CALLS}): llm_query(str(i))", CALLS)))
        batch = float(await bench.out(code.format(f"r = llm_query_batched([str(i) for i in range({BATCH})])", BATCH)))
    return one, batch


async def _context(make: Make, size: int) -> float:
    """Seconds from a file to a cell that has read it to its end."""
    lines = size // len(LINE)
    with tempfile.TemporaryDirectory(prefix="arlm-") as folder:
        path = Path(folder) / "context.txt"
        with path.open("wb") as file:
            for start in range(0, lines, 1_000_000):
                file.write(LINE * min(1_000_000, lines - start))
        async with open_bench(Subject(name="measured", environment=make)) as bench:
            await bench.out("1")
            began = time.perf_counter()
            await bench.context(path)
            assert int(await bench.out("context.count('text')")) == lines
            return time.perf_counter() - began


async def _at_once(make: Make) -> float:
    """Seconds of 20 runs at once, each with a place of its own."""

    async def model(_messages: list[Message]) -> str:
        return AT_ONCE_REPLY

    began = time.perf_counter()
    environment = make()
    results = await asyncio.gather(
        *[arlm.run("again", context=str(number), model=model, environment=environment) for number in range(AT_ONCE)]
    )
    assert [result.answer for result in results] == [str(number) for number in range(AT_ONCE)]
    return time.perf_counter() - began


async def pooled() -> Figures:
    """Runs that find their container started."""
    environment = docker(pool=2)
    async with open_bench(Subject(name="measured", environment=lambda: environment)):
        pass
    times = []
    for _ in range(OPENED):
        await asyncio.sleep(2.0)  # the pool fills
        times.append(await _opened(lambda: environment))
    return {
        "first_cell_ms": sum(opened for opened, _ in times) / OPENED * 1000,
        "close_ms": sum(closed for _, closed in times) / OPENED * 1000,
    }


BENCHMARK = Benchmark(
    claim="a container beside a process",
    cases={
        "process": partial(measure, ProcessREPL),
        "docker, mounted socket": partial(measure, docker),
        "docker, standard streams": partial(measure, partial(docker, "stdio")),
        "docker, gVisor (runsc, ptrace)": partial(measure, partial(docker, None, "runsc")),
        "docker, from a pool": pooled,
    },
    rounds=3,
    sampled=False,
    notes=[
        "*first cell*: from nothing to the end of the first cell; *call*: one `llm_query` that the host answers at once; "
        "*batch item*: one of 1,000 in a batch; *100 mb*, *1 gb*: from a file to a cell that has read it; "
        "*20 at once*: whole runs, each with a place of its own."
    ],
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
