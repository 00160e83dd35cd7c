"""One run of the command line: shown on stderr, ended by signals, told in words."""

from __future__ import annotations

from typing import Any

from ..rlm import run
from ..types import Result
from .display import Display, showing
from .output import result_json, say, write, write_json
from .signals import signals
from .text import count, seconds


def run_shown(prompt: str, options: dict[str, Any], display: Display) -> Result:
    """A run whose progress ``display`` shows. Raises what ``arlm.run`` raises, and Interrupted."""

    async def work() -> Result:
        async with showing(display):
            return await run(prompt, **options, on_event=display.take)

    return signals.run(work)


def tell(result: Result, display: Display, *, as_json: bool, quiet: bool) -> None:
    """The answer on stdout; on stderr what it took, and whether it is less than an answer."""
    if result.stop_reason != "answered":
        say(f"arlm: {_unfinished(result, display)}")
    if not quiet:
        turns = count(result.iterations, "turn")
        say(f"{turns}, {display.counts.used()}, {seconds(result.duration_s)}")
    if as_json:
        write_json(result_json(result))
    else:
        write(result.answer)


def _unfinished(result: Result, display: Display) -> str:
    why = "all turns were used" if result.stop_reason == "iterations" else f"{result.stop_reason} was reached"
    if display.counts.cells == 0:
        return f"{why} and the model never wrote code: its answer comes from the question alone. Try another model, or see with --verbose."
    return f"{why} before the model had finished; this is its best answer from what it had seen."
