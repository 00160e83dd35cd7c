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

STARTS_A_TURN = 50  # tasks started before the event loop gets a turn: about ten milliseconds of work
ITEMS_A_TURN = 32  # of a batch, for models that answer without ever waiting: a cache, a rule
LOCAL_NAMES = ("context", "history", "answer", "SHOW_VARS")  # put back after every cell by the worker itself


class Asking(Protocol):
    """What a REPL function needs of the run it belongs to."""

    @property
    def max_concurrency(self) -> int:
        """Sub-calls in flight at once."""

    @property
    def max_children(self) -> int:
        """Children at once."""

    async def subcall(self, function: str, prompt: str, model: str | None) -> JSON:
        """One sub-call: ``{"text": …}``, or ``{"failed": "Error: …"}``. Never raises but for cancellation."""

    async def child(self, function: str, prompt: str, model: str | None, context: Context | None) -> JSON:
        """The same by a child run, where the depth allows it."""

    async def tool(self, name: str, args: dict[str, Any]) -> JSON:
        """One call of a tool of the user's. Raises CallError, also when there is no such tool."""


Context = dict[str, JSON]  # {"value": …}, or {"same": name} for one that the REPL was given


async def llm_query(run: Asking, prompt: str, model: str | None = None) -> Reply:
    """Ask a language model. `prompt` is all it sees. Returns its text."""
    return await run.subcall("llm_query", prompt, model)


async def llm_query_batched(run: Asking, prompts: list[str], model: str | None = None) -> Replies:
    """Ask for many prompts at once, side by side. Returns the texts in the same order."""

    async def ask(number: int) -> JSON:
        return await run.subcall("llm_query_batched", prompts[number], model)

    return await _side_by_side(ask, len(prompts), run.max_concurrency)


async def rlm_query(run: Asking, prompt: str, model: str | None = None, context: Context | None = None) -> Reply:
    """Give a question to a recursive language model: it works in a REPL of its own, where its `context` is the value `context`, or `prompt`
    itself. For a part of the work that needs several steps; `llm_query` is faster and cheaper for what one reading can answer."""
    return await run.child("rlm_query", prompt, model, context)


async def rlm_query_batched(
    run: Asking, prompts: list[str], model: str | None = None, contexts: list[Context | None] | None = None
) -> Replies:
    """`rlm_query` for many prompts at once; `contexts`: a value for each."""

    async def ask(number: int) -> JSON:
        return await run.child("rlm_query_batched", prompts[number], model, None if contexts is None else contexts[number])

    if contexts is not None and len(contexts) != len(prompts):
        raise CallError("ValueError", f"rlm_query_batched(): {len(prompts):,} prompts and {len(contexts):,} contexts")
    return await _side_by_side(ask, len(prompts), run.max_children)


Reply = JSON
Replies = list[JSON]
KINDS = {"Reply": "reply", "Replies": "replies"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplFunction:
    """A REPL function as the host knows it; ``async_name`` is the name of its awaitable form, ``recursive``: it starts child runs."""

    answer: Callable[..., Awaitable[JSON]]
    async_name: str | None = None
    recursive: bool = False

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
        plain = {
            "name": self.name,
            "method": self.name,
            "doc": self.doc,
            "params": self.params(),
            "returns": returns,
            "split": self.params()[0][0] if returns == "replies" else None,
            "context": next((str(param[0]) for param in self.params() if str(param[0]) in ("context", "contexts")), None),
        }
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
            if not _FITS[wanted](value):
                raise CallError("TypeError", f"{self.name}(): {name} must be {wanted}, not {type(value).__name__}")


def _is_context(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and ("value" in value or isinstance(value.get("same"), str)))


_FITS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "str | None": lambda value: value is None or isinstance(value, str),
    "list[str]": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "Context | None": _is_context,
    "list[Context | None] | None": lambda value: value is None or (isinstance(value, list) and all(map(_is_context, value))),
}


@functools.cache
def _params(answer: Callable[..., Awaitable[JSON]]) -> list[list[JSON]]:
    parameters = list(inspect.signature(answer).parameters.values())[1:]
    return [[item.name] if item.default is item.empty else [item.name, item.default] for item in parameters]


FUNCTIONS: tuple[ReplFunction, ...] = (
    ReplFunction(answer=llm_query, async_name="llm_query_async"),
    ReplFunction(answer=llm_query_batched),
    ReplFunction(answer=rlm_query, async_name="rlm_query_async", recursive=True),
    ReplFunction(answer=rlm_query_batched, recursive=True),
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


async def _side_by_side(ask: Callable[[int], Awaitable[JSON]], count: int, at_once: int) -> Replies:
    replies: list[JSON] = [None] * count
    left = iter(range(count))

    async def work() -> None:
        for number in left:
            replies[number] = await ask(number)
            if number % ITEMS_A_TURN == ITEMS_A_TURN - 1:
                await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as task_group:
        for number in range(min(count, at_once)):
            if number % STARTS_A_TURN == STARTS_A_TURN - 1:
                await anyio.lowlevel.checkpoint()
            task_group.start_soon(work, name="sub-calls")
    return replies
