"""The two streams: the answer on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

from ..types import JSON, Result
from .text import printable


def result_json(result: Result) -> dict[str, JSON]:
    """A result with the keys that ``--json`` promises."""
    return {
        "answer": result.answer,
        "stop_reason": result.stop_reason,
        "usage": result.usage.to_dict(),
        "cost_usd": result.cost_usd,
        "duration_s": result.duration_s,
        "iterations": result.iterations,
        "run_id": result.run_id,
        "children": [{**result_json(child), "error": child.error} for child in result.children],
    }


def write_json(value: JSON) -> None:
    """One JSON object on stdout, whatever its encoding."""
    write(json.dumps(value, ensure_ascii=not _is_utf8(sys.stdout), indent=2 if sys.stdout.isatty() else None, default=str))


def write(text: str) -> None:
    """Text on stdout, with one newline at its end; control characters are kept from a terminal."""
    out = sys.stdout
    if hasattr(out, "reconfigure"):
        out.reconfigure(errors="backslashreplace")  # a lone surrogate, or a letter that the terminal's encoding does not have
    out.write(printable(text) if out.isatty() else text)
    out.write("" if text.endswith("\n") else "\n")
    out.flush()


def say(text: str) -> None:
    """A line on stderr. Where nobody reads it, that is no reason to end the work."""
    with contextlib.suppress(OSError, ValueError):
        print(printable(text), file=sys.stderr, flush=True)


def leave_pipe() -> None:
    """Nobody reads stdout any more: keep the interpreter from complaining when it flushes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _is_utf8(stream: Any) -> bool:
    return (getattr(stream, "encoding", None) or "").lower().replace("-", "") == "utf8"
