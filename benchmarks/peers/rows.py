"""What is measured: scenes, and in each a row for every framework and setting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EQUAL, DEFAULTS = "equal concurrency", "defaults"
NO_CHDIR = "its process-wide `chdir` patched out"
MANY_CALLS = 10**6  # where a framework's own budget of calls would end a run: the scenes are about speed


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One framework in one setting.

    Attributes:
        setting: how it is set up, for the table.
        job: what its driver is told, besides ``play`` and ``size``.
        script: arguments of ``cells.script``.
        group: what it may be compared with: rows of the same group.
        ideal: the seconds that the cell's calls take at least: waves of calls in flight times latency.
        scale: the row was measured with so many times less; the time of its cell and its CPU are multiplied, and the setting says so.
        limit: seconds after which it is stopped.
    """

    peer: str
    setting: str
    play: str
    size: int
    job: Mapping[str, Any]
    script: Mapping[str, Any]
    group: str = DEFAULTS
    ideal: float | None = None
    scale: float = 1.0
    limit: float = 90.0

    @property
    def label(self) -> str:
        return f"{self.peer}, {self.setting}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Rows that do the same work; ``key`` begins with the word that ``--only`` takes."""

    key: str
    title: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    fanout: tuple[tuple[int, float, int], ...] = ((1_000, 0.2, 1_000), (10_000, 1.0, 1_000))  # calls, latency, in flight at equal
    sequential: int = 300
    children: tuple[int, ...] = (50, 200)
    later_runs: int = 20
    at_once: int = 200
    contexts: tuple[int, ...] = (100_000_000, 1_000_000_000)
    waves: int = 10  # of a row that would take too long whole
    patience: float = 15.0  # seconds for a cell that does not end


QUICK = Sizes(
    fanout=((200, 0.2, 200), (500, 0.2, 250)),
    sequential=50,
    children=(10, 20),
    later_runs=5,
    at_once=20,
    contexts=(10_000_000, 50_000_000),
    waves=3,
    patience=6.0,
)
LONGEST = 60.0  # seconds of ideal time; a row beyond is measured with fewer calls
HEAVY = 3_000  # calls of a peer whose CPU, not the latency, is what takes the time: enough to see its rate


def scenes(sizes: Sizes) -> list[Scene]:
    """All of them, in the order of the report."""
    return [
        *(fanout(calls, latency, equal, sizes) for calls, latency, equal in sizes.fanout),
        sequential(sizes.sequential),
        *(children(count) for count in sizes.children),
        start(sizes.later_runs),
        at_once(sizes.at_once),
        *(context(size) for size in sizes.contexts),
        busy(sizes.patience),
    ]


def arlm(**options: Any) -> dict[str, Any]:
    return {"options": {"max_calls": MANY_CALLS, **options}}


def rlms(*, chdir: str = "on", batch: int | None = None, **options: Any) -> dict[str, Any]:
    return {"options": options, "chdir": chdir, **({} if batch is None else {"batch": batch})}


def dspy(*, workers: int | None = None, **more: Any) -> dict[str, Any]:
    return {"options": {"max_llm_calls": MANY_CALLS}, **({} if workers is None else {"workers": workers}), **more}


def fanout(calls: int, latency: float, equal: int, sizes: Sizes) -> Scene:
    def row(peer: str, setting: str, most: int, job: Mapping[str, Any], group: str) -> Row:
        ideal = math.ceil(calls / most) * latency
        size = calls if ideal <= LONGEST else most * sizes.waves
        if peer != "arlm":
            size = min(size, HEAVY)
        said = setting if size == calls else f"{setting}; measured with {size:,}"
        return Row(
            peer=peer,
            setting=said,
            play="cell",
            size=size,
            job=job,
            script={"scene": "fanout", "size": size, "latency": latency},
            group=group,
            ideal=ideal,
            scale=calls / size,
        )

    rows = [
        row("arlm", f"{equal:,} in flight", equal, arlm(max_concurrency=equal), EQUAL),
        row("rlms", f"{equal:,} in flight", equal, rlms(batch=equal), EQUAL),
        row("dspy", f"{equal:,} in flight", equal, dspy(workers=equal), EQUAL),
        row("arlm", "defaults: 256 in flight", 256, arlm(), DEFAULTS),
        row("rlms", "defaults: 16 in flight", 16, rlms(), DEFAULTS),
        row("dspy", "defaults: 8 in flight", 8, dspy(), DEFAULTS),
    ]
    if calls > equal:
        rows.insert(3, row("arlm", f"{calls:,} in flight", calls, arlm(max_concurrency=calls), "all"))
    else:
        rows.insert(3, row("arlm", "16 in flight, like rlms", 16, arlm(max_concurrency=16), "16"))
    return Scene(key=f"fanout-{calls}", title=f"{calls:,} `llm_query` of {_said(latency)} in one batch", rows=rows)


def _said(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"


def sequential(calls: int) -> Scene:
    rows = [
        Row(peer=peer, setting="defaults", play="cell", size=calls, job=job, script={"scene": "sequential", "size": calls})
        for peer, job in (("arlm", arlm()), ("rlms", rlms()), ("dspy", dspy()))
    ]
    return Scene(key="sequential", title=f"{calls} `llm_query` one after the other, 0 ms each", rows=rows)


MANY_CHILDREN = 100  # from here on arlm's row with as few at once as rlms has is left out: it only waits
LATENCY = 0.1  # of each call in the scenes with children and with many runs
TURNS, BATCHES = 3, 1  # of a child: what it waits for at least, in latencies


def children(count: int) -> Scene:
    def row(peer: str, setting: str, at_once: int, job: Mapping[str, Any], group: str, by: str = "batch") -> Row:
        waves = math.ceil(count / at_once)
        ideal = waves * (TURNS + BATCHES) * LATENCY
        size = count if ideal <= LONGEST else count // 10
        return Row(
            peer=peer,
            setting=setting if size == count else f"{setting}; measured with {size}",
            play="cell",
            size=size,
            job=job,
            script={"scene": "children", "size": size, "latency": LATENCY, "by": by},
            group=group,
            ideal=ideal,
            scale=count / size,
        )

    deep = {"max_depth": 2}
    rows = [
        row("arlm", f"{count} at once", count, arlm(**deep, max_concurrency=1_000, max_repls=count), EQUAL),
        row("rlms", f"{count} at once, {NO_CHDIR}", count, rlms(**deep, chdir="off", max_concurrent_subcalls=count), EQUAL),
        row("rlms", f"{count} at once, as it is", count, rlms(**deep, max_concurrent_subcalls=count), EQUAL),
        row("dspy", f"{count} at once, in threads of the cell", count, dspy(workers=1_000), EQUAL, "threads"),
        row("arlm", "defaults: 256 at once", 256, arlm(**deep), DEFAULTS),
        row("rlms", f"defaults: 4 at once, {NO_CHDIR}", 4, rlms(**deep, chdir="off"), DEFAULTS),
        row("rlms", "defaults: 4 at once, as it is", 4, rlms(**deep), DEFAULTS),
        row("dspy", "defaults: one after the other", 1, dspy(), DEFAULTS, "one by one"),
    ]
    if count < MANY_CHILDREN:
        rows.insert(4, row("arlm", "4 at once, like rlms", 4, arlm(**deep, max_repls=4), "4"))
    title = f"{count} children of {TURNS} turns and 5 sub-calls, {_said(LATENCY)} each"
    return Scene(key=f"children-{count}", title=title, rows=rows)


def start(later: int) -> Scene:
    rows = [
        Row(peer=peer, setting="defaults", play="start", size=later + 1, job=job, script={"scene": "answer"})
        for peer, job in (("arlm", arlm()), ("rlms", rlms()), ("dspy", dspy()))
    ]
    return Scene(key="start", title="a run that answers at once", rows=rows)


def at_once(count: int) -> Scene:
    settings = [
        ("arlm", "defaults", arlm()),
        ("rlms", f"in threads, {NO_CHDIR}", rlms(chdir="off")),
        ("rlms", "in threads, as it is", rlms()),
        ("dspy", "in threads", dspy()),
    ]
    rows = [
        Row(peer=peer, setting=setting, play="at_once", size=count, job=job, script={"scene": "answer", "latency": LATENCY}, ideal=LATENCY)
        for peer, setting, job in settings
    ]
    return Scene(key="runs", title=f"{count} runs at once in one process, {_said(LATENCY)} a turn", rows=rows)


def context(size: int) -> Scene:
    rows = [
        Row(peer=peer, setting="defaults", play="context", size=size, job=job, script={"scene": "context"})
        for peer, job in (("arlm", arlm()), ("rlms", rlms()), ("dspy", dspy()))
    ]
    said = f"{size // 1_000_000:,} MB" if size < 1_000_000_000 else f"{size // 1_000_000_000} GB"
    return Scene(key=f"context-{said.replace(' ', '')}", title=f"a context of {said}, one turn that searches it", rows=rows)


def busy(patience: float) -> Scene:
    settings = [
        ("arlm", "`cell_timeout=2`", arlm(cell_timeout=2)),
        ("rlms", "`max_timeout=2`; it has no limit for a cell", rlms(max_timeout=2)),
        ("dspy", "`LocalInterpreter(execution_timeout=2)`", dspy(interpreter={"execution_timeout": 2})),
        ("dspy", "defaults", dspy()),
    ]
    rows = [
        Row(peer=peer, setting=setting, play="busy", size=0, job=job, script={"scene": "busy"}, limit=patience)
        for peer, setting, job in settings
    ]
    return Scene(key="busy", title="a cell that is `while True: pass`: stopped, and the run goes on", rows=rows)
