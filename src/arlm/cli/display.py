"""Progress on stderr: a line that keeps itself up to date on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ..events import (
    AnyEvent,
    CallRetried,
    CellEnded,
    CellStarted,
    EnvironmentProgress,
    LimitReached,
    MessagesAdded,
    RunStarted,
    TurnStarted,
)
from .counts import FENCE, ROOT, Counts
from .output import say
from .text import one_line, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

REFRESH_S = 0.1
PLAIN_S = 3.0  # between two plain lines of counts
SHOWN_LINES = 60  # of a cell's code or output under --verbose


class Display:
    """Shows a run's events; the base shows nothing but keeps the counts.

    Attributes:
        counts: what is known of the run.
    """

    def __init__(self, *, verbose: bool = False) -> None:
        self.counts = Counts()
        self.verbose = verbose

    def take(self, event: AnyEvent) -> None:
        """``on_event``."""
        self.counts.take(event)
        for line, style in self._lines(event):
            self.line(line, style)

    def line(self, text: str, style: str = "") -> None:
        """Show a line that stays."""

    async def keep_up(self) -> None:
        """Runs beside the work, until cancelled."""

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The time in which something is shown."""
        yield

    def _lines(self, event: AnyEvent) -> Iterator[tuple[str, str]]:
        if self.counts.over is not None:
            yield self.counts.over.words(), "turn"
        if event.node != ROOT:
            return
        match event:
            case RunStarted():
                if event.model_reason:
                    yield f"model: {event.model} ({event.model_reason}; name another with --model)", "head"
                sub = f", sub-calls by {event.sub_model}" if event.sub_model != event.model else ""
                yield f"{event.model}{sub}; context: {event.context}; environment: {event.environment}", "head"
            case EnvironmentProgress():
                yield event.text, "head"
            case TurnStarted() if self.verbose:
                yield f"── turn {event.iteration} of {event.max_iterations}", "head"
            case MessagesAdded(messages=[{"role": "assistant", "content": text}]) if self.verbose:
                yield text.partition(FENCE)[0].strip() or "(no words)", ""
            case CellStarted() if self.verbose:
                yield _indented(event.code), "code"
            case CellEnded() if self.verbose:
                yield _indented(event.output.rstrip("\n") or "(no output)"), "output"
            case LimitReached():
                yield f"{event.limit} is reached: {event.used:,.10g} of {event.allowed:,.10g} used", "warning"
            case CallRetried() if self.counts.retries == 1:
                yield f"tries again in {event.wait_s:.1f} s: {event.error}", "warning"


class Plain(Display):
    """Lines without colours: one a turn, and one of counts now and then while sub-calls run."""

    def __init__(self, *, verbose: bool = False) -> None:
        super().__init__(verbose=verbose)
        self._said = ""
        self._said_at = time.monotonic()

    def line(self, text: str, style: str = "") -> None:
        """Show a line that stays."""
        self._said_at = time.monotonic()
        say(text)

    async def keep_up(self) -> None:
        """Runs beside the work, until cancelled."""
        while True:
            await asyncio.sleep(PLAIN_S / 4)
            counts = self.counts
            said = f"{counts.started} {counts.done} {counts.children_done} {counts.retries} {counts.turn.number}"
            if said != self._said and time.monotonic() - self._said_at >= PLAIN_S:
                self._said = said
                again = f" · {counts.activity}" if counts.activity.startswith("tries again") else ""
                self.line(f"  … {counts.words()}{again}")


class OnTerminal(Display):
    """Lines with colours, and below them the counts and what happens now, ten times a second."""

    def __init__(self, *, verbose: bool = False) -> None:
        from rich.console import Console

        super().__init__(verbose=verbose)
        self._console: Console = Console(stderr=True, highlight=False)
        self._live: Live | None = None

    def line(self, text: str, style: str = "") -> None:
        """Show a line that stays."""
        from rich.text import Text

        if style == "code":
            self._console.print(self._code(text))
            return
        shown = Text(printable(text), style=STYLES.get(style, ""))
        if style == "turn":
            number, _, rest = printable(text).partition("] ")
            shown = Text.assemble((f"{number}] ", "bold cyan"), rest)
        self._console.print(shown)

    async def keep_up(self) -> None:
        """Runs beside the work, until cancelled."""
        while True:
            if self._live is not None:
                self._live.update(self._status(), refresh=True)
            await asyncio.sleep(REFRESH_S)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The time in which the live lines stand at the bottom."""
        from rich.live import Live

        with Live(self._status(), console=self._console, transient=True, auto_refresh=False, redirect_stdout=False) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def _status(self) -> Any:
        from rich.text import Text

        counts = self.counts
        width = max(20, self._console.width - 4)
        frame = FRAMES[int(time.monotonic() / REFRESH_S) % len(FRAMES)]
        return Text.assemble(
            (f"{frame} ", "bold cyan"), (one_line(counts.words(), width), "bold"), "\n  ", (one_line(counts.activity, width), "dim")
        )

    def _code(self, code: str) -> Any:
        from rich.syntax import Syntax

        return Syntax(printable(code), "python", background_color="default", word_wrap=True)


FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
STYLES = {"head": "dim", "output": "dim", "warning": "yellow"}


def display_for(*, quiet: bool, verbose: bool) -> Display:
    """What fits stderr."""
    if quiet:
        return Display()
    return OnTerminal(verbose=verbose) if sys.stderr.isatty() else Plain(verbose=verbose)


@asynccontextmanager
async def showing(display: Display) -> AsyncIterator[None]:
    """Show a run for as long as the block lasts; log records of arlm are lines among the others."""
    handler = _Lines(display)
    logger = logging.getLogger("arlm")
    logger.addHandler(handler)
    try:
        with display.shown():
            ticking = asyncio.ensure_future(display.keep_up())
            try:
                yield
            finally:
                ticking.cancel()
    finally:
        logger.removeHandler(handler)


class _Lines(logging.Handler):
    def __init__(self, display: Display) -> None:
        super().__init__(logging.WARNING)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        self._display.line(f"{record.levelname.lower()}: {self.format(record)}", "warning")


def _indented(text: str) -> str:
    lines = text.splitlines()
    more = [f"… {len(lines) - SHOWN_LINES:,} more lines"] if len(lines) > SHOWN_LINES else []
    return "\n".join(f"    {line}" for line in [*lines[:SHOWN_LINES], *more])
