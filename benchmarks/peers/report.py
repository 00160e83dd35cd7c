"""The figures as Markdown: a table for each scene, and below it what went wrong, in the frameworks' own words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]

COLUMNS = {
    "import_s": "import, s",
    "first_ms": "first run, ms",
    "later_ms": "later run, ms",
    "later_cpu_ms": "CPU of a later run, ms",
    "wall_s": "run, s",
    "cell_s": "cell, s",
    "call_ms": "each, ms",
    "cpu_s": "CPU, s",
    "peak_mib": "peak, MiB",
    "right": "right",
    "in_flight": "calls in flight",
}


def markdown(result: Mapping[str, Any]) -> str:
    """The whole report."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    faults = f" Provider told to misbehave: {result['faults']}." if result["faults"] else ""
    rounds = "one fresh process a row" if result["rounds"] == 1 else f"{result['rounds']} fresh processes a row, medians [spread]"
    head = (
        f"{result['machine']}; {versions}; {rounds}. The provider carries {result['ceiling']:,.0f} calls/s for a client that only asks; "
        f"no row asked for more than {_fastest(result):,.0f}.{faults}"
    )
    return "\n\n".join([head, *(_scene(scene) for scene in result["scenes"].values())]) + "\n"


def _fastest(result: Mapping[str, Any]) -> float:
    """The most calls a second that any row made, over the time of its cell."""
    rows = [row["figures"] for scene in result["scenes"].values() for row in scene["rows"] if row["scale"] == 1]
    return max((figures["calls"]["high"] / figures["cell_s"]["low"] for figures in rows if "cell_s" in figures), default=0.0)


def _scene(scene: Mapping[str, Any]) -> str:
    rows = [_with_each(row, scene) for row in scene["rows"]]
    metrics = [name for name in COLUMNS if any(name in row["figures"] for row in rows) and _worth(name, rows)]
    lead = _lead(rows)
    ideal = any(row["ideal_s"] and "cell_s" in row["figures"] for row in rows)
    heads = [*(COLUMNS[name] for name in metrics), *(["times ideal"] if ideal else []), f"times arlm, {lead[1]}", "times arlm, CPU"]
    lines = [f"### {scene['title']}", "", "| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for row in rows:
        cells = [_metric(row, name) for name in metrics]
        if ideal:
            cells.append(_times(_median(row, "cell_s"), row["ideal_s"]))
        cells.append(_times(_median(row, lead[0]), _of_arlm(rows, row, lead[0]), over=row))
        cells.append(_times(_median(row, lead[2]), _of_arlm(rows, row, lead[2])))
        lines.append(f"| {row['peer']}, {row['setting']} | " + " | ".join(cells) + " |")
    wrong = [f"- {row['peer']}, {row['setting']}: {_said(row['wrong'])}" for row in rows if row["wrong"]]
    return "\n".join([*lines, *(["", *wrong] if wrong else [])])


def _said(wrong: str) -> str:
    return "`" + " ".join(wrong.replace("`", "'").split())[:220] + "`"


def _lead(rows: list[Row]) -> tuple[str, str, str]:
    """What is compared: the figure, its name, its CPU."""
    if any("later_ms" in row["figures"] for row in rows):
        return "later_ms", "later run", "later_cpu_ms"
    if any("call_ms" in row["figures"] for row in rows):
        return "call_ms", "each", "cpu_s"
    return "wall_s", "run", "cpu_s"


def _worth(name: str, rows: list[Row]) -> bool:
    if name == "import_s":
        return any("later_ms" in row["figures"] for row in rows)
    return name != "in_flight" or any(row["figures"].get(name, {"high": 0})["high"] > 1 for row in rows)


def _with_each(row: Row, scene: Mapping[str, Any]) -> Row:
    """Where calls were made one after the other: what one took."""
    if "one after the other" not in scene["title"] or "cell_s" not in row["figures"]:
        return row
    count = row["figures"]["of"]["median"]
    each = {name: value / count * 1000 for name, value in row["figures"]["cell_s"].items()}
    return {**row, "figures": {**row["figures"], "call_ms": each}}


def _of_arlm(rows: list[Row], row: Row, metric: str) -> float | None:
    """What arlm's row of the same group took; a peer's row only."""
    if row["peer"] == "arlm":
        return None
    return next((_median(one, metric) for one in rows if one["peer"] == "arlm" and one["group"] == row["group"]), None)


def _median(row: Row, metric: str) -> float | None:
    return row["figures"][metric]["median"] if metric in row["figures"] else None


def _times(value: float | None, base: float | None, over: Row | None = None) -> str:
    if base and value is None and over is not None and over["failed"]:
        return f"> {_number(over['limit_s'] / base)}" if "not done after" in (over["wrong"] or "") else ""
    return f"{_number(value / base)} x" if value is not None and base else ""


def _metric(row: Row, name: str) -> str:
    if name == "wall_s" and row["failed"] and name not in row["figures"]:
        return f"**> {row['limit_s']:g}**" if "not done after" in (row["wrong"] or "") else "**failed**"
    if name not in row["figures"]:
        return ""
    low, median, high = (row["figures"][name][part] for part in ("low", "median", "high"))
    if name == "right":
        of = row["figures"]["of"]["median"]
        text = f"{median:,.0f} of {of:,.0f}" if low == high else f"{median:,.0f} [{low:,.0f}-{high:,.0f}] of {of:,.0f}"
        return text if low == of else f"**{text}**"
    return _number(median) if low == high else f"{_number(median)} [{_number(low)}-{_number(high)}]"


def _number(value: float) -> str:
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
