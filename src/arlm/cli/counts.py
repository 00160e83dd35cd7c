"""What is known of a run while it goes on, folded from its events."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ..events import (
    AnyEvent,
    CallRetried,
    CellEnded,
    CellOutput,
    CellStarted,
    ChildEnded,
    ChildStarted,
    EnvironmentProgress,
    LimitReached,
    MessagesAdded,
    RunEnded,
    RunStarted,
    SubcallEnded,
    SubcallStarted,
    TurnAnswered,
    TurnStarted,
)
from ..types import JSON
from .text import count, dollars, one_line, seconds, short, usage_words

ROOT = "root"
FENCE = "```"
GIST_CHARS = 64  # so that a turn with its counts fits a line


@dataclass(slots=True, kw_only=True)
class Turn:
    """One root turn.

    Attributes:
        number, of: which, and how many there may be.
        gist: its reply in a few words.
    """

    number: int = 0
    of: int = 0
    gist: str = ""
    cells: int = 0
    printed: int = 0
    error: str = ""
    subcalls: int = 0
    failed: int = 0
    began: float = field(default_factory=time.monotonic)

    def words(self) -> str:
        """The turn in one line."""
        facts = [self.gist or "(no reply)"]
        if self.cells == 0:
            facts.append("no code")
        if self.subcalls:
            facts.append(count(self.subcalls, "sub-call") + (f" ({self.failed:,} failed)" if self.failed else ""))
        if self.error:
            facts.append(one_line(self.error, 80))
        facts.append(seconds(time.monotonic() - self.began))
        return f"[{self.number}/{self.of}] {' · '.join(facts)}"


@dataclass(slots=True, kw_only=True)
class Counts:
    """The counts of a run.

    Attributes:
        turn: the root turn under way, and ``over`` the one that just ended, until somebody takes it.
        started, done, failed: sub-calls at every depth; ``failed`` is a part of ``done``.
        children, children_done: those of them that became child runs.
        retries: calls that failed and were tried again.
        usage: the final sums, once the run has ended.
        activity: what happens now, in a few words.
    """

    turn: Turn = field(default_factory=Turn)
    over: Turn | None = None
    cells: int = 0
    started: int = 0
    done: int = 0
    failed: int = 0
    children: int = 0
    children_done: int = 0
    retries: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float | None = 0.0
    usage: JSON = None
    activity: str = "starting"
    began: float = field(default_factory=time.monotonic)

    @property
    def open(self) -> int:
        """Sub-calls that were asked for and have no answer; `max_concurrency` of them at most are in flight."""
        return self.started - self.done

    def take(self, event: AnyEvent) -> None:
        """Fold one event in."""
        self.over = None
        if event.node != ROOT:
            self._take_of_child(event)
            return
        match event:
            case EnvironmentProgress():
                self.activity = event.text
            case RunStarted():
                self.activity = "loading the context"
            case TurnStarted():
                self._end_turn()
                self.turn = Turn(number=event.iteration, of=event.max_iterations)
                self.activity = "the root model thinks"
            case MessagesAdded(messages=[{"role": "assistant", "content": text}]):
                self.turn.gist = gist(text)
            case TurnAnswered():
                self._used(event.usage)
            case CellStarted():
                self.cells += 1
                self.turn.cells += 1
                self.activity = f"runs {gist(f'{FENCE}repl{chr(10)}{event.code}')}"
            case CellOutput():
                self.activity = f"printed {one_line(event.text.strip()[-300:], 70)}" if event.text.strip() else self.activity
            case CellEnded():
                self.turn.printed += event.output_chars
                self.turn.error = event.error or self.turn.error
            case SubcallStarted():
                self.started += 1
                self.turn.subcalls += 1
            case SubcallEnded():
                self._subcall_ended(event)
            case CallRetried():
                self.retries += 1
                self.activity = f"tries again in {seconds(event.wait_s)}: {one_line(event.error, 160)}"
            case LimitReached():
                self.activity = f"{event.limit} is reached"
            case RunEnded():
                self._end_turn()
                self.usage = event.usage

    def _take_of_child(self, event: AnyEvent) -> None:
        """Of what happens inside children the sums are kept, and who is at work."""
        match event:
            case ChildStarted():
                self.children += 1
                self.activity = f"a child begins: {one_line(event.prompt, 80)}"
            case ChildEnded():
                self.children_done += 1
            case TurnAnswered():
                self._used(event.usage)
            case SubcallStarted():
                self.started += 1
            case SubcallEnded():
                self._subcall_ended(event)
            case CallRetried():
                self.retries += 1

    def _subcall_ended(self, event: SubcallEnded) -> None:
        self.done += 1
        if event.error is None:
            self.activity = f"a model answers: {one_line(event.text or '', 80)}"
        elif event.error != "cancelled":
            self.failed += 1
            self.turn.failed += event.node == ROOT
            self.activity = f"a sub-call failed: {one_line(event.error, 160)}"
        self._used(event.usage)

    def _end_turn(self) -> None:
        if self.turn.number and self.usage is None:
            self.over = self.turn

    def _used(self, usage: JSON) -> None:
        self.tokens_in += usage.get("input_tokens") or 0
        self.tokens_out += usage.get("output_tokens") or 0
        cost = usage.get("cost_usd")
        self.cost = None if self.cost is None or cost is None else self.cost + cost

    def words(self) -> str:
        """The counts in one line."""
        parts = [f"turn {self.turn.number}/{self.turn.of}" if self.turn.number else "starting"]
        if self.started:
            failed = f", {self.failed:,} failed" if self.failed else ""
            parts.append(f"sub-calls: {self.done:,} done, {self.open:,} open{failed}")
        if self.children:
            parts.append(f"children: {self.children_done:,} done, {self.children - self.children_done:,} at work")
        if self.retries:
            parts.append(count(self.retries, "retry").replace("retrys", "retries"))
        parts += [f"{short(self.tokens_in)} tokens in, {short(self.tokens_out)} out", dollars(self.cost)]
        return " · ".join([*parts, seconds(time.monotonic() - self.began)])

    def used(self) -> str:
        """What was used, as far as is known."""
        return usage_words(self.usage)


def gist(reply: str) -> str:
    """A reply in one short line: the first line of its prose, else the first line of its code."""
    prose, _, code = reply.partition(FENCE)
    lines = [line.strip() for line in prose.splitlines() if line.strip()] or [line for line in code.splitlines()[1:] if line.strip()]
    return one_line(lines[0].strip().lstrip("#").strip(), GIST_CHARS) if lines else ""
