"""What the benchmarks share: fresh processes, medians, CPU time, memory of a process tree, tables.

A benchmark is a script with *cases*. Run as a program it starts each case in a process of its own, several times and in turn, so that
what else the machine does falls on all cases alike; ``--case NAME`` runs one case in this process. A table goes to stderr, JSON to stdout.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import inspect
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

Figures = dict[str, float]
Case = Callable[[], Figures | Awaitable[Figures]]
Derive = Callable[[Mapping[str, Figures]], Mapping[str, Figures]]

ROUNDS = 5
SAMPLE_SECONDS = 0.02  # between two looks at the memory of the tree, in the one round that is measured for memory alone
MIB = 2**20


@dataclass(slots=True)
class Spent:
    """What a block took: seconds of wall clock, CPU seconds of this process, CPU seconds of it and everything below it."""

    wall: float = 0.0
    host_cpu: float = 0.0
    tree_cpu: float = 0.0

    def figures(self, prefix: str = "") -> Figures:
        return {f"{prefix}wall_s": self.wall, f"{prefix}host_cpu_s": self.host_cpu, f"{prefix}tree_cpu_s": self.tree_cpu}


@contextlib.contextmanager
def spending() -> Iterator[Spent]:
    """Measure the block."""
    spent = Spent()
    tree, own, began = _tree_cpu(), _own_cpu(), time.perf_counter()
    yield spent
    spent.wall = time.perf_counter() - began
    spent.host_cpu = _own_cpu() - own
    spent.tree_cpu = spent.host_cpu + max(0.0, _tree_cpu() - tree)


def _own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _tree_cpu() -> float:
    """CPU time of everything below this process, the dead included (their parents have it)."""
    reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = reaped.ru_utime + reaped.ru_stime
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total


def reset_peak() -> None:
    """Let ``peak_mib`` count from here, where the kernel can; elsewhere it goes on from the old peak."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """The most memory that this process has held at once."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def memory_mib(processes: list[psutil.Process]) -> float:
    """Memory of these processes, shared pages counted once where the system can tell (PSS)."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            info = process.memory_full_info()
            total += getattr(info, "pss", info.uss)
    return total / MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One claim and how it is measured.

    Attributes:
        claim: the table's heading.
        cases: by name, in the table's order.
        provider: the script of the provider that all cases call, in a process of its own; None: no provider.
        derive: figures that compare cases, from the medians.
        rounds: processes a case, where the caller does not say.
        target: what was aimed at, for the table.
        sampled: whether the memory of the process tree is measured too, in a further round.
        notes: sentences for below the table.
    """

    claim: str
    cases: Mapping[str, Case]
    provider: Mapping[str, Any] | None = None
    derive: Derive = lambda medians: {}
    rounds: int = ROUNDS
    target: str = ""
    sampled: bool = True
    notes: list[str] = field(default_factory=list)

    def main(self) -> None:
        """The script's command line."""
        parser = argparse.ArgumentParser(description=self.claim)
        parser.add_argument("--rounds", type=int, default=self.rounds, help="fresh processes for each case")
        parser.add_argument("--only", action="append", choices=list(self.cases), help="leave the other cases out; may be repeated")
        parser.add_argument("--case", choices=list(self.cases), help="run this case here and print its figures")
        options = parser.parse_args()
        if options.case:
            outcome = self.cases[options.case]()
            print(json.dumps(asyncio.run(_settled(outcome)) if inspect.isawaitable(outcome) else outcome))
            return
        result = asyncio.run(self.measure(options.only or list(self.cases), options.rounds))
        print(table(result), file=sys.stderr)
        print(json.dumps(result))

    async def measure(self, names: list[str], rounds: int) -> dict[str, Any]:
        """Run the cases in turn, ``rounds`` times each."""
        async with contextlib.AsyncExitStack() as stack:
            variables = {**os.environ, "OPENAI_API_KEY": "none"}
            if self.provider is not None:
                from arlm.testing.provider import start_provider

                provider = await stack.enter_async_context(start_provider(self.provider))
                variables["OPENAI_BASE_URL"] = provider.url
            seen: dict[str, list[Figures]] = {name: [] for name in names}
            for _ in range(rounds):
                for name in names:
                    seen[name].append(await _run(name, variables))
            peaks = {name: await _sampled(name, variables) for name in names} if self.sampled else {}
        cases = {name: _spreads(all_) for name, all_ in seen.items()}
        for name, peak in peaks.items():
            cases[name]["tree_peak_mib"] = _spread([peak])
        medians = {name: {metric: spread["median"] for metric, spread in metrics.items()} for name, metrics in cases.items()}
        for name, figures in self.derive(medians).items():
            cases[name] |= {metric: _spread([value]) for metric, value in figures.items()}
        return {"claim": self.claim, "target": self.target, "rounds": rounds, "cases": cases, "notes": list(self.notes)}


async def _settled(outcome: Awaitable[Figures]) -> Figures:
    return await outcome


def _spreads(rounds: list[Figures]) -> dict[str, dict[str, float]]:
    """Over the rounds that have a figure: some say one only where it means something."""
    metrics = dict.fromkeys(metric for figures in rounds for metric in figures)
    return {metric: _spread([figures[metric] for figures in rounds if metric in figures]) for metric in metrics}


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


async def _run(name: str, variables: Mapping[str, str]) -> Figures:
    process = await _start(name, variables)
    return await _figures(name, process)


async def _start(name: str, variables: Mapping[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, sys.argv[0], "--case", name, env=dict(variables), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )


async def _figures(name: str, process: asyncio.subprocess.Process) -> Figures:
    output, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"case {name!r} ended with status {process.returncode}")
    figures: Figures = json.loads(output.splitlines()[-1])
    return figures


async def _sampled(name: str, variables: Mapping[str, str]) -> float:
    """The most memory that a case's whole process tree held at once."""
    process = await _start(name, variables)
    ending = asyncio.ensure_future(_figures(name, process))
    peak = 0.0
    while not ending.done():
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(process.pid)
            peak = max(peak, memory_mib([root, *root.children(recursive=True)]))
        await asyncio.wait({ending}, timeout=SAMPLE_SECONDS)
    ending.result()
    return peak


def machine() -> str:
    """The kind of machine, without names."""
    gib = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores, {gib:.0f} GiB, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


HEADINGS = {"_s": "s", "_ms": "ms", "_us": "us", "_mib": "MiB"}


def table(result: Mapping[str, Any]) -> str:
    """A result as a Markdown table: a row for each case, a column for each figure, the spread in brackets where there is one."""
    cases = result["cases"]
    metrics = list(dict.fromkeys(metric for figures in cases.values() for metric in figures))
    lines = ["| | " + " | ".join(map(_heading, metrics)) + " |", "|---|" + "---:|" * len(metrics)]
    for name, figures in cases.items():
        lines.append(f"| {name} | " + " | ".join(_cell(figures.get(metric)) for metric in metrics) + " |")
    return "\n".join(lines)


def _heading(metric: str) -> str:
    for ending, unit in HEADINGS.items():
        if metric.endswith(ending):
            return f"{metric.removesuffix(ending).replace('_', ' ')}, {unit}"
    return metric.replace("_", " ")


def _cell(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return ""
    low, middle, high = (_number(spread[name]) for name in ("low", "median", "high"))
    return middle if low == high else f"{middle} [{low}-{high}]"


def _number(value: float) -> str:
    if value == int(value):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
