"""A node of the run tree: one question, one REPL, its history, its sub-calls."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .calls import Account, Sampling
from .clients.base import BaseLM
from .clients.tally import Tally
from .environments.repl import REPL
from .errors import LimitError, ProviderError, describe
from .events import CallRetried, CellOutput, LimitReached, MessagesAdded
from .options import RunOptions
from .slots import Holder
from .tools import Tools
from .tree import Tree
from .types import JSON, CellResult, Completion, Message, Result, TokenUsage, UsageSummary


@dataclass(slots=True, kw_only=True)
class Node:
    """The state of one run, the root's or a child's. The loop drives it; ``Subcalls`` answers the calls of its cells.

    Attributes:
        name: ``"root"``; the child that came of its third sub-call is ``"root.3"``.
        depth: 0 for the root.
        lm: plays its turns.
        tally: what it and everything below it used.
        slot: its place among ``max_repls``.
        limit: the limit of the tree that refused a call of this node or of one below it, once one did.
        cell: the number of the last cell; counts over the REPL's session.
        subcalls: sub-calls so far; also numbers them.
    """

    tree: Tree
    prompt: str
    context: str
    lm: BaseLM
    repl: REPL
    tools: Tools
    name: str = "root"
    depth: int = 0
    tally: Tally = field(default_factory=Tally)
    slot: Holder = field(default_factory=Holder)
    cell: int = 0
    messages: list[Message] = field(default_factory=list)
    turns: list[dict[str, JSON]] = field(default_factory=list)
    iterations: int = 0
    subcalls: int = 0
    limit: LimitError | None = None
    last_reply: str = ""
    started: float = field(default_factory=time.monotonic)
    _children: dict[int, Result | Node | None] = field(default_factory=dict)
    _cell_calls: int = 0
    _cell_failures: list[str] = field(default_factory=list)

    @property
    def run_id(self) -> str:
        """The run's id, the same for all nodes."""
        return self.tree.run_id

    @property
    def options(self) -> RunOptions:
        """The run's options."""
        return self.tree.options

    @property
    def is_root(self) -> bool:
        """Whether it has no parent."""
        return self.depth == 0

    @property
    def sampling(self) -> Sampling:
        """The sampling options of its turns: those of sub-calls for a child, which stands in a sub-call's place."""
        return self.options["sampling"] if self.is_root else self.options["sub_sampling"]

    # -- history ----------------------------------------------------------------------------------------------------

    def add(self, *messages: Message) -> None:
        """Append to the history."""
        self.messages += messages
        self.tree.emit(MessagesAdded(run_id=self.run_id, node=self.name, messages=messages))

    def usage(self) -> UsageSummary:
        """What it and everything below it has used."""
        return self.tally.summary()

    def result(self, answer: Any, stop_reason: str, error: str | None = None) -> Result:
        """The result as of now."""
        duration = time.monotonic() - self.started
        usage = self.usage()
        children = self.children()
        shown = answer if isinstance(answer, (str, int, float, bool, list, dict, type(None))) else repr(answer)
        trajectory: dict[str, JSON] = {
            "run_id": self.run_id,
            "node": self.name,
            "model": self.lm.name,
            "prompt": self.prompt,
            "context": self.context,
            "messages": [dict(message) for message in self.messages],
            "turns": list(self.turns),
            "answer": shown,
            "stop_reason": stop_reason,
            "error": error,
            "usage": usage.to_dict(),
            "duration_s": duration,
            "children": [child.trajectory() for child in children],
        }
        return Result(
            answer=answer,
            stop_reason=stop_reason,
            usage=usage,
            duration_s=duration,
            iterations=self.iterations,
            children=children,
            run_id=self.run_id,
            error=error,
            _trajectory=trajectory,
        )

    def reach(self, error: LimitError) -> None:
        """A limit refused a call: say it once, and let the running cell end."""
        if self.limit is None:
            self.limit = error
            self.tree.emit(LimitReached(run_id=self.run_id, node=self.name, limit=error.limit, used=error.used, allowed=error.allowed))
        self.repl.end_cell_soon()

    # -- children ---------------------------------------------------------------------------------------------------

    def children(self) -> tuple[Result, ...]:
        """The results of its children, in the order they were started; of one that still runs, as of now."""
        results = []
        for child in self._children.values():
            if isinstance(child, Node):
                results.append(child.result(None, "unfinished", "it had not ended yet"))
            elif child is not None:
                results.append(child)
        return tuple(results)

    def keep_child(self, call: int, child: Result | Node | None) -> None:
        """Keep what is known of the child of a sub-call: nothing yet, its node, its result. The first call sets its place in the order."""
        self._children[call] = child

    # -- cells and their calls --------------------------------------------------------------------------------------

    def account(self) -> Account:
        """For its LM calls."""
        return Account(tally=self.tally, on_retry=self._retried)

    def _retried(self, lm: BaseLM, error: ProviderError, wait: float) -> None:
        self.tree.emit(CallRetried(run_id=self.run_id, node=self.name, model=lm.name, error=describe(error), wait_s=wait))

    def begin_cell(self) -> int:
        """The number of the next cell; its calls are counted from here."""
        self.cell += 1
        self._cell_calls, self._cell_failures = 0, []
        return self.cell

    def begin_call(self) -> tuple[int, list[str]]:
        """The number of a sub-call that begins, and where the running cell's failures are kept."""
        self.subcalls += 1
        self._cell_calls += 1
        return self.subcalls, self._cell_failures

    def cell_calls(self) -> tuple[int, tuple[str, ...]]:
        """Sub-calls of the current cell, and the error texts of those that failed."""
        return self._cell_calls, tuple(self._cell_failures)

    def show_output(self, text: str) -> None:
        """A running cell printed something."""
        self.tree.emit(CellOutput(run_id=self.run_id, node=self.name, cell=self.cell, text=text))

    def record(self, iteration: int, code: str, cell: CellResult) -> None:
        """Keep a cell for the trajectory."""
        if not self.turns or self.turns[-1]["iteration"] != iteration:
            self.turns.append({"iteration": iteration, "cells": []})
        self.turns[-1]["cells"].append({"code": code, **cell_dict(cell)})


def usage_dict(usage: TokenUsage) -> Mapping[str, JSON]:
    """What is known of a call's usage."""
    return {name: value for name in usage.__dataclass_fields__ if (value := getattr(usage, name)) is not None}


def cell_dict(cell: CellResult) -> dict[str, JSON]:
    """A cell's outcome in plain JSON types, without its variables and its answer."""
    return {
        "output": cell.output,
        "output_chars": cell.output_chars,
        "error": cell.error,
        "stopped": cell.stopped,
        "lost": None if cell.lost is None else list(cell.lost),
        "answer_ready": cell.answer_ready,
        "calls": cell.calls,
        "failures": list(cell.failures),
        "duration_s": cell.duration_s,
    }


def without_text(completion: Completion) -> str | None:
    """What is wrong with a reply that has no text; None of one that has."""
    if completion.text:
        return None
    if completion.finish_reason == "length":
        return "the model returned no text: its output limit was used up before any (raise max_tokens in sub_sampling)"
    return f"the model returned no text (finish_reason: {completion.finish_reason})"
