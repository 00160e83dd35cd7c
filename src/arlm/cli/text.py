"""Small words and numbers for people."""

from __future__ import annotations

import re

from ..types import JSON

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Text that a terminal shows and does not obey: control characters but newline and tab are made visible."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n"))


def one_line(text: str, most: int = 100) -> str:
    """The text in one line of at most ``most`` characters."""
    line = " ".join(printable(text[: most * 8]).split())
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"


def short(number: float) -> str:
    """``1,234``, ``12.3k``, ``4.5M``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if number >= size:
            return f"{number / {'G': 1e9, 'M': 1e6, 'k': 1e3}[unit]:.1f}{unit}"
    return f"{number:,.0f}"


def seconds(value: float) -> str:
    """``0.4 s``, ``42 s``, ``3:05``, ``1:02:03``."""
    if value < 10:
        return f"{value:.1f} s"
    if value < 100:
        return f"{value:.0f} s"
    minutes, rest = divmod(int(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def dollars(cost: float | None) -> str:
    """``$0.0123``, or that nobody knows."""
    if cost is None:
        return "cost unknown"
    return f"${cost:,.4f}" if 0 < cost < 1 else f"${cost:,.2f}"


def count(number: int, noun: str) -> str:
    """``1 turn``, ``2 turns``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def usage_words(usage: JSON) -> str:
    """What a run used, from ``UsageSummary.to_dict()``: ``12 calls, 3.4k tokens, $0.0012``."""
    total = (usage or {}).get("total") or {}
    calls = total.get("calls") or 0
    if not calls:
        return "nothing was sent"
    tokens = [total[name] for name in ("input_tokens", "output_tokens") if total.get(name) is not None]
    return ", ".join([count(calls, "call"), f"{short(sum(tokens))} tokens" if tokens else "tokens unknown", dollars(total.get("cost_usd"))])
