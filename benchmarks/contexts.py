"""Large contexts: from the call of ``run`` to the result of the first cell, and what memory that takes.

The first cell asks for the length, the second searches the whole text. ``host extra`` is the host's peak above what it held when the
run began (a str context itself is held before); ``worker peak`` is after both cells.

The last cases have several workers with the same context: what all of them and what holds it for them take together (PSS), after a cell in
each that has gone through the whole of it.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil
from children import opened, ready, repl
from measure import MIB, Benchmark, Figures, memory_mib, peak_mib, reset_peak, spending

import arlm
from arlm.context import FOLDER, write_context
from arlm.environments.base import Loaded
from arlm.events import AnyEvent, CellEnded
from arlm.types import Message

LINE = "The quick brown fox jumps over the lazy dog, and nothing else happens on this line but for its end.\n"
EMOJI = LINE[:-2] + "\N{ROLLING ON THE FLOOR LAUGHING}\n"
CELLS = [
    "```repl\nprint(len(context))\n```",
    '```repl\nprint(context.count("NEEDLE"))\n```',
    '```repl\nimport resource\nanswer["content"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nanswer["ready"] = True\n```',
]


async def plain(messages: list[Message]) -> str:
    return CELLS[sum(message["role"] == "assistant" for message in messages)]


def text(line: str, size: int) -> str:
    """About ``size`` bytes of UTF-8 with one needle at the end."""
    return line * (size // len(line.encode())) + "NEEDLE"


async def text_case(line: str, size: int) -> Figures:
    return await measured(text(line, size))


async def path_case(line: str, size: int) -> Figures:
    with tempfile.TemporaryDirectory(prefix="arlm-") as folder:
        path = Path(folder) / "context.txt"
        with path.open("w", encoding="utf-8") as file:
            for _ in range(size // MIB):
                file.write(text(line, MIB).removesuffix("NEEDLE"))
            file.write("NEEDLE")
        return await measured(path)


async def measured(context: str | Path) -> Figures:
    await arlm.run("warm up", context="NEEDLE", model=plain, output_type=int)
    ends: list[float] = []
    outputs: list[str] = []

    def on_event(event: AnyEvent) -> None:
        if isinstance(event, CellEnded):
            ends.append(time.perf_counter())
            outputs.append(event.output)

    reset_peak()
    before = peak_mib()
    began = time.perf_counter()
    with spending() as spent:
        result = await arlm.run("how long?", context=context, model=plain, output_type=int, on_event=on_event)
    assert outputs[1].strip() == "1", outputs
    return {
        "first_cell_s": ends[0] - began,
        "second_cell_s": ends[1] - ends[0],
        "host_cpu_s": spent.host_cpu,
        "tree_cpu_s": spent.tree_cpu,
        "host_extra_mib": peak_mib() - before,
        "worker_peak_mib": result.answer / 1024,
    }


async def shared_case(context: str | list[str]) -> Figures:
    """The same context in 1, 2 and 10 workers."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="arlm-") as folder:
        file = await write_context(context, Path(folder) / FOLDER)
        async with opened() as (place, handler):
            loaded = Loaded(name="context_0", aliases=("context",), path=await place.put(file), kind=file.kind)
            (supervisor,) = psutil.Process().children()
            repls = []
            for count in (1, 2, 10):
                while len(repls) < count:
                    repls.append(repl(place, handler, str(len(repls))))
                    await repls[-1].load(loaded)
                    began = time.perf_counter()
                    await ready(repls[-1])
                    figures["last_start_s"] = time.perf_counter() - began
                for one in repls:
                    result = await one.run_cell('n = context.count("NEEDLE") if isinstance(context, str) else sum(map(len, context))', 1)
                    assert result.error is None, result
                figures[f"by_{count}_mib"] = memory_mib(supervisor.children())
            await asyncio.gather(*[one.close() for one in repls])
    return figures


def strings(size: int) -> list[str]:
    """100 MB of them."""
    return [f"{number:0{size}}" for number in range(100_000_000 // size)]


BENCHMARK = Benchmark(
    claim="a large context, one run",
    cases={
        "str, 100 MB of ASCII": partial(text_case, LINE, 100_000_000),
        "Path, 100 MB of ASCII": partial(path_case, LINE, 100_000_000),
        "str, 100 MB with emoji": partial(text_case, EMOJI, 100_000_000),
        "Path, 100 MB with emoji": partial(path_case, EMOJI, 100_000_000),
        "str, 1 GB of ASCII": partial(text_case, LINE, 1_000_000_000),
        "Path, 1 GB of ASCII": partial(path_case, LINE, 1_000_000_000),
        "shared: str, 100 MB": lambda: shared_case(text(LINE, 100_000_000)),
        "shared: 1,000 strings of 100 kB": lambda: shared_case(strings(100_000)),
        "shared: 100,000 strings of 1 kB": lambda: shared_case(strings(1_000)),
    },
    target="100 MB: first cell within 0.3 s; a second worker with the same context costs no second copy",
    rounds=3,
)

if __name__ == "__main__":
    BENCHMARK.main()
