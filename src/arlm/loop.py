"""The root loop: ask, run the code, show what it did, until an answer is ready or something ends it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from . import prompts
from .errors import ErrorLimit, LimitError, ProviderError
from .events import CellEnded, CellStarted, TurnAnswered, TurnStarted
from .ledger import Need
from .node import Node, cell_dict, usage_dict
from .parsing import CodeBlock, code_blocks
from .types import CellResult, Completion, Message

MAX_EMPTY = 3  # empty replies in a row: a model that says nothing three times says nothing

Accept = Callable[[Any], Any]  # the answer as output_type, or ValueError with what is wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What an answer has to be.

    Attributes:
        accept: turns what code or the model gave into the answer; raises ValueError.
        parse: the same for the text of the last call.
        schema: the JSON schema to ask for, or None for text.
    """

    accept: Accept
    parse: Accept
    schema: str | None = None


class _Answered(Exception):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer


async def solve(node: Node, answers: Answers) -> tuple[Any, str]:
    """Run the loop to its end; returns the answer and the stop reason.

    Raises:
        LimitError: a limit ended it and there is no answer to give (``on_limit="raise"``, ``max_errors``, no room for a last call).
        ProviderError: the root model failed for good.
        SandboxError: no REPL could be had.
    """
    most = node.options["max_iterations"]
    failed = empty = 0
    insisted = False
    text = ""
    try:
        while node.iterations < most and node.limit is None:
            if text:
                _tell(node, text)
            completion = await _ask(node)
            blocks = code_blocks(completion.text)
            cells, notes = await _run_blocks(node, blocks, completion)
            for cell in cells:
                if cell.answer_ready and (note := _take_answer(cell, answers, insisted)):
                    insisted = insisted or note == prompts.EMPTY_ANSWER
                    notes.append(note)
            text = "\n\n".join([prompts.feedback(cells, len(blocks)), *notes] if cells else notes)
            empty = 0 if completion.text.strip() else empty + 1
            failed = failed + 1 if any(cell.error for cell in cells) else 0
            _check_failures(node, failed, empty, completion)
    except _Answered as done:
        return done.answer, "answered" if node.limit is None else node.limit.limit
    except LimitError as error:
        if isinstance(error, ErrorLimit):
            raise
        node.reach(error)
        text = ""  # it is in the history already: the call that was to carry it was refused
    return await _last_answer(node, answers, text)


def open_history(node: Node, system: str, first: str) -> None:
    """Put the system message and the question in place."""
    node.add({"role": "system", "content": system}, {"role": "user", "content": f"{first}\n\n{_turn_line(node)}"})


async def _ask(node: Node) -> Completion:
    """One root turn's reply."""
    node.iterations += 1
    most, left = node.options["max_iterations"], node.tree.left()
    node.tree.emit(TurnStarted(run_id=node.run_id, node=node.name, iteration=node.iterations, max_iterations=most, left=left))
    if node.is_root:
        _hold_back(node)
    began = time.monotonic()
    completion = await _complete(node, node.messages)
    _heard(node, completion, began)
    return completion


def _heard(node: Node, completion: Completion, began: float) -> None:
    node.last_reply = completion.text or node.last_reply
    node.add({"role": "assistant", "content": completion.text})
    node.tree.emit(
        TurnAnswered(
            run_id=node.run_id,
            node=node.name,
            iteration=node.iterations,
            model=completion.model,
            finish_reason=completion.finish_reason,
            usage=usage_dict(completion.usage),
            duration_s=time.monotonic() - began,
        )
    )


def _hold_back(node: Node) -> None:
    """Keep room for the last call: the history as it is now, and an answer."""
    caller = node.tree.caller
    need, _ = caller.need(node.lm, node.messages, node.sampling, last=True)
    caller.ledger.hold_back(need if caller.ledger.estimates else Need(last=True))


async def _run_blocks(node: Node, blocks: list[CodeBlock], completion: Completion) -> tuple[list[CellResult], list[str]]:
    """Run a reply's blocks in order, until one fails, is stopped, or sets the answer."""
    cut = [block for block in blocks if not block.closed and completion.finish_reason == "length"]
    cells: list[CellResult] = []
    for block in blocks:
        if block in cut:
            break
        cell = await _run_cell(node, block.code)
        cells.append(cell)
        if cell.error is not None or cell.stopped is not None or cell.answer_ready or node.limit is not None:
            break
    if cut:
        return cells, [prompts.CUT_OFF]
    if not blocks:
        return cells, [prompts.NO_CODE if completion.text.strip() else f"{prompts.EMPTY} {prompts.NO_CODE}"]
    return cells, []


async def _run_cell(node: Node, code: str) -> CellResult:
    number = node.begin_cell()
    node.tree.emit(CellStarted(run_id=node.run_id, node=node.name, iteration=node.iterations, cell=number, code=code))
    cell = await node.repl.run_cell(code, number)
    calls, failures = node.cell_calls()
    cell = replace(cell, calls=calls, failures=failures)
    node.record(node.iterations, code, cell)
    node.tree.emit(CellEnded(run_id=node.run_id, node=node.name, iteration=node.iterations, cell=number, **cell_dict(cell)))
    return cell


def _take_answer(cell: CellResult, answers: Answers, insisted: bool) -> str | None:
    """Leave the loop with the answer, or say what is wrong with it."""
    if cell.answer in ("", None) and not insisted:
        return prompts.EMPTY_ANSWER
    try:
        raise _Answered(answers.accept(cell.answer))
    except ValueError as error:
        return prompts.wrong_type(str(error))


def _check_failures(node: Node, failed: int, empty: int, completion: Completion) -> None:
    allowed = node.options["max_errors"]
    if allowed is not None and failed >= allowed:
        raise ErrorLimit("max_errors", failed, allowed)
    if empty >= MAX_EMPTY:
        why = (
            "its output limit is used up before any text: raise max_tokens in sampling"
            if completion.finish_reason == "length"
            else (f"finish_reason: {completion.finish_reason}; try another model")
        )
        raise ProviderError(f"{node.lm.name} answered nothing {empty} times in a row ({why})", provider=node.lm.provider)


def _tell(node: Node, text: str) -> None:
    node.add({"role": "user", "content": f"{text}\n\n{_turn_line(node)}"})


def _turn_line(node: Node) -> str:
    return prompts.turn(node.iterations + 1, node.options["max_iterations"], node.tree.left(), node.subcalls)


async def _last_answer(node: Node, answers: Answers, text: str) -> tuple[Any, str]:
    """The one call that was held back for the root: an answer from what there is. ``text``: what the last cells did.

    A child that a limit of the tree has ended has nothing held back: its parent is told.
    """
    reason = "iterations" if node.limit is None else node.limit.limit
    if node.limit is not None and (not node.is_root or node.options["on_limit"] == "raise"):
        raise node.limit
    request = prompts.last_call(reason, answers.schema)
    opening = node.messages[:2]
    node.add({"role": "user", "content": f"{text}\n\n{request}" if text else request})
    began = time.monotonic()
    try:
        completion = await _complete(node, node.messages, last=node.is_root)
    except LimitError:  # what the cells printed does not fit any more: the question alone may
        completion = await _complete(node, [*opening, {"role": "user", "content": request}], last=node.is_root)
    _heard(node, completion, began)
    try:
        return answers.parse(completion.text), reason
    except ValueError as error:
        limit = node.limit or LimitError("max_iterations", node.iterations, node.options["max_iterations"])
        raise limit from error


async def _complete(node: Node, messages: list[Message], *, last: bool = False) -> Completion:
    return await node.tree.caller.complete(node.lm, list(messages), sampling=node.sampling, account=node.account(), last=last)
