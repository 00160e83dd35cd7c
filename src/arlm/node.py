"""A node of the run tree: one question, one REPL, its history, its sub-calls."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio

from .calls import Caller, Models
from .clients.base import BaseLM
from .environments.repl import REPL
from .errors import LimitError, describe
from .events import CellOutput, Emit, LimitReached, MessagesAdded, SubcallEnded, SubcallStarted, ToolCalled
from .guest import wire
from .options import RunOptions
from .server.peer import CallError
from .tools import Tools
from .tools import call as call_tool
from .types import JSON, CellResult, Completion, Message, Result, TokenUsage, UsageSummary

ARGUMENT_CHARS = 2_000  # of a tool call's arguments that events show
MODEL_CHARS = 200  # of a model's name that code gave
ERROR_CHARS = 1_000  # of an error's text that code gets in place of a reply


@dataclass(slots=True, kw_only=True)
class Node:
    """The state of one run. The loop drives it; REPL functions call ``subcall`` and ``child``.

    Attributes:
        number: counts runs of the REPL's session, from 0: names ``context_N``.
        deadline: loop time at which ``timeout`` ends the run, or None.
        limit: the limit of the tree that refused a call of this node, once one did.
    """

    run_id: str
    prompt: str
    context: str
    options: RunOptions
    models: Models
    caller: Caller
    repl: REPL
    emit: Emit
    deadline: float | None
    tools: Tools
    tool_threads: anyio.CapacityLimiter
    name: str = "root"
    messages: list[Message] = field(default_factory=list)
    turns: list[dict[str, JSON]] = field(default_factory=list)
    children: list[Result] = field(default_factory=list)
    iterations: int = 0
    subcalls: int = 0
    limit: LimitError | None = None
    last_reply: str = ""
    started: float = field(default_factory=time.monotonic)
    cell: int = 0
    _cell_calls: int = 0
    _cell_failures: list[str] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def max_concurrency(self) -> int:
        """Sub-calls in flight at once."""
        return self.options["max_concurrency"]

    # -- history ----------------------------------------------------------------------------------------------------

    def add(self, *messages: Message) -> None:
        """Append to the history."""
        self.messages += messages
        self.emit(MessagesAdded(run_id=self.run_id, node=self.name, messages=messages))

    def left(self) -> dict[str, float]:
        """What is left of each limit, by option name."""
        left = self.caller.ledger.left()
        if self.deadline is not None:
            left["timeout"] = max(0.0, self.deadline - asyncio.get_running_loop().time())
        return left

    def usage(self) -> UsageSummary:
        """What the tree has used."""
        return self.caller.tally.summary()

    def result(self, answer: Any, stop_reason: str) -> Result:
        """The result as of now."""
        duration = time.monotonic() - self.started
        usage = self.usage()
        shown = answer if isinstance(answer, (str, int, float, bool, list, dict, type(None))) else repr(answer)
        trajectory: dict[str, JSON] = {
            "run_id": self.run_id,
            "prompt": self.prompt,
            "context": self.context,
            "messages": [dict(message) for message in self.messages],
            "turns": list(self.turns),
            "answer": shown,
            "stop_reason": stop_reason,
            "usage": usage.to_dict(),
            "duration_s": duration,
            "children": [child.trajectory() for child in self.children],
        }
        return Result(
            answer=answer,
            stop_reason=stop_reason,
            usage=usage,
            duration_s=duration,
            iterations=self.iterations,
            children=tuple(self.children),
            run_id=self.run_id,
            _trajectory=trajectory,
        )

    def reach(self, error: LimitError) -> None:
        """A limit refused a call: say it once, and let the running cell end."""
        if self.limit is None:
            self.limit = error
            self.emit(LimitReached(run_id=self.run_id, node=self.name, limit=error.limit, used=error.used, allowed=error.allowed))
        self.repl.end_cell_soon()

    # -- cells and their calls --------------------------------------------------------------------------------------

    def begin_cell(self) -> int:
        """The number of the next cell; its calls are counted from here."""
        self.cell += 1
        self._cell_calls, self._cell_failures = 0, []
        return self.cell

    def cell_calls(self) -> tuple[int, tuple[str, ...]]:
        """Sub-calls of the current cell, and the error texts of those that failed."""
        return self._cell_calls, tuple(self._cell_failures)

    def show_output(self, text: str) -> None:
        """A running cell printed something."""
        self.emit(CellOutput(run_id=self.run_id, node=self.name, cell=self.cell, text=text))

    async def subcall(self, function: str, prompt: str, model: str | None) -> JSON:
        """See ``functions.Asking``."""
        number = next(self._numbers)
        self.subcalls += 1
        self._cell_calls += 1
        failures = self._cell_failures
        named = self.models.sub.name if model is None else model[:MODEL_CHARS]
        began = time.monotonic()
        text: str | None = None
        error: str | None = "cancelled"
        usage = TokenUsage()
        try:
            self.emit(SubcallStarted(run_id=self.run_id, node=self.name, call=number, function=function, model=named, prompt=prompt))
            lm = self.models.pick(model)
            completion = await self._complete(lm, prompt)
            usage = completion.usage
            text, error = completion.text, _without_text(completion)
        except LimitError as limit:
            error = str(limit)
            self.reach(limit)
        except Exception as failure:  # a model of the user's own may raise anything: that is a failed call
            error = describe(failure)
        finally:
            self.emit(
                SubcallEnded(
                    run_id=self.run_id,
                    node=self.name,
                    call=number,
                    text=text if error is None else None,
                    error=error,
                    usage=usage_dict(usage),
                    duration_s=time.monotonic() - began,
                )
            )
        if error is None:
            return {"text": text}
        failures.append(error[:ERROR_CHARS])
        return {"failed": f"Error: {error[:ERROR_CHARS]}"}

    async def _complete(self, lm: BaseLM, prompt: str) -> Completion:
        return await self.caller.complete(lm, [{"role": "user", "content": prompt}], sampling=self.options["sub_sampling"])

    async def tool(self, name: str, args: dict[str, Any]) -> JSON:
        """See ``functions.Asking``."""
        found = self.tools.functions.get(name)
        if found is None:
            raise CallError("NameError", f"there is no function {name[:100]!r} in this REPL")
        began = time.monotonic()
        error: str | None = "cancelled"
        try:
            result = await call_tool(name, found, args, self.tool_threads)
            error = None
        except CallError as failure:
            error = f"{failure.kind}: {failure}"
            raise
        finally:
            duration = time.monotonic() - began
            shown = wire.dumps(_cut(args))[:ARGUMENT_CHARS]
            self.emit(ToolCalled(run_id=self.run_id, node=self.name, name=name, arguments=shown, error=error, duration_s=duration))
        return result

    async def child(self, function: str, prompt: str, model: str | None) -> JSON:
        """See ``functions.Asking``: at the deepest level a child is a plain call."""
        return await self.subcall(function, prompt, model)

    def record(self, iteration: int, code: str, cell: CellResult) -> None:
        """Keep a cell for the trajectory."""
        if not self.turns or self.turns[-1]["iteration"] != iteration:
            self.turns.append({"iteration": iteration, "cells": []})
        self.turns[-1]["cells"].append({"code": code, **cell_dict(cell)})


def _cut(value: JSON) -> JSON:
    """A tool's arguments without the bulk of long texts and lists: what an event shows need not be made whole first."""
    match value:
        case str():
            return value[:ARGUMENT_CHARS]
        case list():
            return [_cut(item) for item in value[:ARGUMENT_CHARS]] if len(value) < ARGUMENT_CHARS else [f"{len(value):,} items"]
        case dict():
            return {name: _cut(item) for name, item in list(value.items())[:ARGUMENT_CHARS]}
        case _:
            return value


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


def _without_text(completion: Completion) -> str | None:
    if completion.text:
        return None
    if completion.finish_reason == "length":
        return "the model returned no text: its output limit was used up before any (raise max_tokens in sub_sampling)"
    return f"the model returned no text (finish_reason: {completion.finish_reason})"
