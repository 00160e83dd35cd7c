"""The functions that code in a cell can call: one async function each.

Everything else derives from its signature and docstring: the stub in the worker, the line in the prompt, the reserved name.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
import anyio.lowlevel

from .server.peer import CallError
from .types import JSON

STARTS_A_TURN = 250  # tasks started before the event loop gets a turn
ITEMS_A_TURN = 32  # of a batch, for models that answer without ever waiting: a cache, a rule
LOCAL_NAMES = ("context", "history", "answer", "SHOW_VARS")  # put back after every cell by the worker itself


class Asking(Protocol):
    """What a REPL function needs of the run it belongs to."""

    @property
    def max_concurrency(self) -> int:
        """Sub-calls in flight at once."""

    async def subcall(self, function: str, prompt: str, model: str | None) -> JSON:
        """One sub-call: ``{"text": …}``, or ``{"failed": "Error: …"}``. Never raises but for cancellation."""

    async def child(self, function: str, prompt: str, model: str | None) -> JSON:
        """The same by a child run, where the depth allows it."""

    async def tool(self, name: str, args: dict[str, Any]) -> JSON:
        """One call of a tool of the user's. Raises CallError, also when there is no such tool."""


Ask = Callable[[str, str, str | None], Awaitable[JSON]]


async def llm_query(run: Asking, prompt: str, model: str | None = None) -> Reply:
    """Ask a language model. `prompt` is all it sees. Returns its text."""
    return await run.subcall("llm_query", prompt, model)


async def llm_query_batched(run: Asking, prompts: list[str], model: str | None = None) -> Replies:
    """Ask for many prompts at once, side by side. Returns the texts in the same order."""
    return await _side_by_side(run, run.subcall, "llm_query_batched", prompts, model)


async def rlm_query(run: Asking, prompt: str, model: str | None = None) -> Reply:
    """Ask a recursive language model, which gets a REPL of its own with `prompt` as its `context`."""
    return await run.child("rlm_query", prompt, model)


async def rlm_query_batched(run: Asking, prompts: list[str], model: str | None = None) -> Replies:
    """`rlm_query` for many prompts at once."""
    return await _side_by_side(run, run.child, "rlm_query_batched", prompts, model)


Reply = JSON
Replies = list[JSON]
KINDS = {"Reply": "reply", "Replies": "replies"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplFunction:
    """A REPL function as the host knows it; ``async_name`` is the name of its awaitable form."""

    answer: Callable[..., Awaitable[JSON]]
    async_name: str | None = None

    @property
    def name(self) -> str:
        """Its name in a cell."""
        return str(getattr(self.answer, "__name__"))  # noqa: B009 - Callable has no name for a type checker

    @property
    def signature(self) -> str:
        """As the prompt shows it: ``llm_query(prompt, model=None)``."""
        return f"{self.name}({', '.join(param[0] if len(param) == 1 else f'{param[0]}={param[1]!r}' for param in self.params())})"

    @property
    def doc(self) -> str:
        """What it does."""
        return inspect.getdoc(self.answer) or ""

    def specs(self) -> list[dict[str, JSON]]:
        """For the hello: the plain form, and the awaitable one if there is one."""
        returns = KINDS[str(self.answer.__annotations__["return"])]
        split = self.params()[0][0] if returns == "replies" else None
        plain = {"name": self.name, "method": self.name, "doc": self.doc, "params": self.params(), "returns": returns, "split": split}
        forms = [{**plain, "awaitable": False}]
        if self.async_name is not None:
            forms.append({**plain, "name": self.async_name, "awaitable": True})
        return forms

    def params(self) -> list[list[JSON]]:
        """Its parameters: ``[name]`` or ``[name, default]`` each."""
        return _params(self.answer)

    def check(self, args: dict[str, Any]) -> None:
        """Refuse arguments of the wrong type: they come from code that may send anything. Raises CallError."""
        annotations = self.answer.__annotations__
        names = {param[0] for param in self.params()}
        if args.keys() - names or {param[0] for param in self.params() if len(param) == 1} - args.keys():
            raise CallError("TypeError", f"{self.name}() takes {', '.join(sorted(names))}")
        for name, *_ in self.params():
            value, wanted = args.get(name), str(annotations[name])
            fits = {
                "str": isinstance(value, str),
                "str | None": value is None or isinstance(value, str),
                "list[str]": isinstance(value, list) and all(isinstance(item, str) for item in value),
            }[wanted]
            if not fits:
                raise CallError("TypeError", f"{self.name}(): {name} must be {wanted}, not {type(value).__name__}")


@functools.cache
def _params(answer: Callable[..., Awaitable[JSON]]) -> list[list[JSON]]:
    parameters = list(inspect.signature(answer).parameters.values())[1:]
    return [[item.name] if item.default is item.empty else [item.name, item.default] for item in parameters]


FUNCTIONS: tuple[ReplFunction, ...] = (
    ReplFunction(answer=llm_query, async_name="llm_query_async"),
    ReplFunction(answer=llm_query_batched),
    ReplFunction(answer=rlm_query, async_name="rlm_query_async"),
    ReplFunction(answer=rlm_query_batched),
)
_BY_NAME = {function.name: function for function in FUNCTIONS}


@functools.cache
def specs() -> list[dict[str, JSON]]:
    """What the hello says of all functions."""
    return [spec for function in FUNCTIONS for spec in function.specs()]


def reserved_names() -> frozenset[str]:
    """Names that belong to the REPL and to no tool."""
    return frozenset(spec["name"] for spec in specs()) | frozenset(LOCAL_NAMES)


async def answer(run: Asking, method: str, args: dict[str, Any]) -> JSON:
    """Answer one call of a cell. Raises CallError for what the cell is to see as an exception."""
    function = _BY_NAME.get(method)
    if function is None:
        return await run.tool(method, args)
    function.check(args)
    return await function.answer(run, **args)


async def _side_by_side(run: Asking, ask: Ask, function: str, prompts: list[str], model: str | None) -> Replies:
    replies: list[JSON] = [None] * len(prompts)
    left = iter(enumerate(prompts))

    async def work() -> None:
        for number, prompt in left:
            replies[number] = await ask(function, prompt, model)
            if number % ITEMS_A_TURN == ITEMS_A_TURN - 1:
                await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as task_group:
        for number in range(min(len(prompts), run.max_concurrency)):
            if number % STARTS_A_TURN == STARTS_A_TURN - 1:
                await anyio.lowlevel.checkpoint()
            task_group.start_soon(work, name=function)
    return replies
