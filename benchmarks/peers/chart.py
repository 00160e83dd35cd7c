"""The figures as a picture: a bar for each row on one logarithmic axis of seconds, written as SVG by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

Row = Mapping[str, Any]

COLOURS = {"arlm": "#2f6fde", "rlms": "#e08a1e", "dspy": "#7b8794"}
INK, SOFT, LINE, PAPER, BAD = "#1c2733", "#5b6875", "#dfe5ea", "#ffffff", "#c62f2f"
WIDTH, LEFT, RIGHT = 980, 400, 200  # pixels: all, for names, for figures
TOP, BAR, GAP, TITLE = 66, 13, 5, 30  # pixels: above the first scene, of a bar, below it, of a scene's title
FIRST, LAST = -2.0, 3.2  # powers of ten of seconds at the two ends of the axis


def svg(result: Mapping[str, Any]) -> str:
    """The picture, from what peers.json holds."""
    parts: list[str] = []
    y = TOP
    for scene in result["scenes"].values():
        parts.append(_text(16, y + 19, scene["title"].replace("`", ""), size=13, weight=600))
        y += TITLE
        for row in scene["rows"]:
            parts += _bar(row, y)
            y += BAR + GAP
        y += 10
    height = y + 16
    frame = f'<rect width="{WIDTH}" height="{height}" rx="8" fill="{PAPER}"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="Helvetica, Arial, sans-serif">'
    return "\n".join([head, frame, *_heading(result), *_axis(height), *parts, "</svg>"]) + "\n"


def _heading(result: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    parts = [_text(16, 26, "Seconds a run takes, the lower the better", size=16, weight=700), _text(16, 46, versions, fill=SOFT)]
    x = LEFT + 36
    for name, colour in COLOURS.items():
        parts += [f'<rect x="{x}" y="15" width="12" height="12" rx="2" fill="{colour}"/>', _text(x + 17, 25, name)]
        x += 70
    ideal = f'<line x1="{x + 5}" x2="{x + 5}" y1="13" y2="29" stroke="{INK}" stroke-width="2"/>'
    return [*parts, ideal, _text(x + 13, 25, "ideal: waves of calls in flight x latency")]


def _axis(height: int) -> list[str]:
    parts = []
    for power in range(math.ceil(FIRST), math.floor(LAST) + 1):
        x = _x(10**power)
        parts.append(f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{height - 14}" stroke="{LINE}"/>')
        parts.append(_text(x, TOP - 6, f"{10**power:,g} s", fill=SOFT, anchor="middle"))
    return parts


def _bar(row: Row, y: int) -> list[str]:
    """A row's name, bar, figure, and the mark of its ideal."""
    seconds, told, good = _figure(row)
    end = _x(seconds) if seconds else LEFT
    middle = y + BAR - 3
    colour = COLOURS.get(row["peer"], SOFT)
    fade = "" if good else ' fill-opacity="0.35"'
    parts = [
        _text(LEFT - 8, middle, f"{row['peer']}, {row['setting']}".replace("`", ""), anchor="end"),
        f'<rect x="{LEFT}" y="{y}" width="{max(end - LEFT, 1):.1f}" height="{BAR}" rx="2" fill="{colour}"{fade}/>',
    ]
    if row["ideal_s"]:
        x = _x(row["ideal_s"])
        parts.append(f'<line x1="{x}" x2="{x}" y1="{y - 2}" y2="{y + BAR + 2}" stroke="{INK}" stroke-width="2"/>')
        end = max(end, x)
    return [*parts, _text(end + 7, middle, told, fill=INK if good else BAD)]


def _figure(row: Row) -> tuple[float | None, str, bool]:
    """Seconds, what stands beside the bar, and whether all went well."""
    figures = row["figures"]
    if "later_ms" in figures:
        seconds = figures["later_ms"]["median"] / 1000
    elif "wall_s" in figures:
        seconds = figures["wall_s"]["median"]
    elif "not done after" in (row["wrong"] or ""):
        return row["limit_s"], f"stopped after {row['limit_s']:g} s", False
    else:
        return None, "failed", False
    right, of = figures["right"]["low"], figures["of"]["median"]
    told = f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.3g} s"
    return (seconds, told, True) if right == of else (seconds, f"{told}, {right:.0f} of {of:.0f} right", False)


def _x(seconds: float) -> float:
    part = (math.log10(seconds) - FIRST) / (LAST - FIRST)
    return round(LEFT + min(max(part, 0.0), 1.0) * (WIDTH - LEFT - RIGHT), 1)


def _text(x: float, y: float, text: str, *, size: int = 11, weight: int = 400, fill: str = INK, anchor: str = "start") -> str:
    style = f'font-size="{size}" font-weight="{weight}" fill="{fill}" text-anchor="{anchor}"'
    return f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>'
