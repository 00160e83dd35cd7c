"""Tools: functions and values of the user's own, in the REPL.

A function runs on the host, in every environment: an async one on the event loop, any other in a thread. In a cell it is a plain function
that takes and returns JSON values. A value travels as a file.
"""

from __future__ import annotations

import asyncio
import inspect
import keyword
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.to_thread

from . import functions
from .clients.function import is_async_callable
from .context import check_json
from .errors import ConfigError, describe
from .lifetimes import cancelled_from_outside
from .server.peer import CallError
from .types import JSON

THREADS = 64  # synchronous tool calls of one run at once; more wait for a thread
DOC_CHARS = 2_000  # of a docstring that the prompt shows
FORM = frozenset({"tool", "description", "timeout"})  # keys of the dict form of a tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function or value for the REPL, with what is to be said of it.

    Attributes:
        tool: the function, async or not, or the value.
        description: for the model; None: a function's docstring, a value's type and size.
        timeout: seconds one call may take; then the cell gets a TimeoutError. A thread cannot be stopped: it runs on, unheard.
    """

    tool: Any
    description: str | None = None
    timeout: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The tools of a run, by name."""

    functions: Mapping[str, Tool] = field(default_factory=dict)
    values: Mapping[str, Tool] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any] | Sequence[Any], *, option: str = "tools") -> Tools:
        """Sort out what ``tools=`` or ``sub_tools=`` was given.

        That is a dict of name to function, value, Tool or ``{"tool": …, "description": …}``, or a list of functions.

        Raises:
            ConfigError: a name is reserved or no identifier, a listed thing has no name, or a value is not JSON.
        """
        if not isinstance(given, (Mapping, list, tuple)):
            raise ConfigError(f"{option} must be a dict of name to function or value, or a list of functions, not {type(given).__name__}")
        named = dict(given) if isinstance(given, Mapping) else _by_their_names(given, option)
        tools = {name: _tool(thing) for name, thing in named.items()}
        reserved = functions.reserved_names()
        for name, tool in tools.items():
            if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
                raise ConfigError(f"{option}: {name!r} cannot be a name in Python")
            if name in reserved:
                raise ConfigError(f"{option}: {name!r} is a name of the REPL itself; reserved are: {', '.join(sorted(reserved))}")
            if tool.timeout is not None and not (isinstance(tool.timeout, (int, float)) and tool.timeout > 0):
                raise ConfigError(f"{option}: the timeout of {name!r} must be above 0 seconds, not {tool.timeout!r}")
            if not callable(tool.tool) and not isinstance(tool.tool, (bytes, str)):
                check_json(tool.tool, f"{option}[{name!r}]")
        return cls(
            functions={name: tool for name, tool in tools.items() if callable(tool.tool)},
            values={name: tool for name, tool in tools.items() if not callable(tool.tool)},
        )

    def specs(self) -> list[dict[str, JSON]]:
        """The functions, for the hello."""
        return [
            {
                "name": name,
                "method": name,
                "doc": f"{name}{signature(tool.tool)}\n\n{description(tool)}",
                "params": None,
                "returns": "json",
                "split": None,
                "awaitable": False,
            }
            for name, tool in self.functions.items()
        ]

    def describe(self, values: Mapping[str, str]) -> str:
        """Lines for the prompt; ``values``: what each value is."""
        lines = [f"- `{name}{signature(tool.tool)}`: {description(tool)}" for name, tool in self.functions.items()]
        lines += [f"- `{name}`: {tool.description or values[name]}" for name, tool in self.values.items()]
        return "\n".join(lines)


def signature(function: Callable[..., Any]) -> str:
    """A function's parameters as text; ``(...)`` where Python does not know them."""
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return "(...)"


def description(tool: Tool) -> str:
    """What is said of a function."""
    text = tool.description if tool.description is not None else inspect.getdoc(tool.tool) or "no description"
    return text if len(text) <= DOC_CHARS else f"{text[:DOC_CHARS]}…"


async def call(name: str, tool: Tool, args: dict[str, Any], threads: anyio.CapacityLimiter) -> JSON:
    """Call a tool for a cell.

    Args:
        args: ``{"args": [...], "kwargs": {...}}`` as the cell sent them.
        threads: how many synchronous tools run at once.

    Raises:
        CallError: what the cell is to see: the tool's own exception under its own name, wrong arguments, a result that is not JSON.

    Cancelled, an async tool is cancelled; a synchronous one runs on in its thread and its result is dropped.
    """
    positional, keywords = args.get("args"), args.get("kwargs")
    if not isinstance(positional, list) or not isinstance(keywords, dict):
        raise CallError("TypeError", f"{name}: a tool call needs args and kwargs")
    try:
        with anyio.move_on_after(tool.timeout) as scope:
            if is_async_callable(tool.tool):
                result = await tool.tool(*positional, **keywords)
            else:
                result = await _in_thread(tool.tool, positional, keywords, threads)
            check_json(result, f"the result of {name}()")
            return result
    except ConfigError as error:
        raise CallError("TypeError", str(error)) from None
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        if isinstance(error, KeyboardInterrupt) or cancelled_from_outside():
            raise
        raise CallError("CancelledError", f"{name}() cancelled itself") from error
    except BaseException as error:  # a tool may raise anything, SystemExit and GeneratorExit too: none of it ends the host
        kind, _, text = describe(error).partition(": ")
        raise CallError(kind.partition(" ")[0], text) from error
    assert scope.cancelled_caught
    raise CallError("TimeoutError", f"{name}() gave no result within {tool.timeout:g} s")


async def _in_thread(function: Callable[..., Any], args: list[Any], keywords: dict[str, Any], threads: anyio.CapacityLimiter) -> Any:
    def work() -> tuple[Any, BaseException | None]:
        try:
            return function(*args, **keywords), None
        except BaseException as error:  # carried over as a value: a GeneratorExit or StopIteration cannot pass a future
            return None, error

    result, error = await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=threads)
    if error is not None:
        raise error
    return result


def _tool(thing: Any) -> Tool:
    if isinstance(thing, Tool):
        return thing
    if isinstance(thing, dict) and "tool" in thing and thing.keys() <= FORM:
        return Tool(**thing)
    return Tool(tool=thing)


def _by_their_names(things: Sequence[Any], option: str) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for thing in things:
        name = getattr(_tool(thing).tool, "__name__", None)
        if not callable(_tool(thing).tool) or name is None:
            raise ConfigError(f"{option}: a list holds functions; {thing!r:.80} has no name: pass tools={{'name': …}}")
        if name in named:
            raise ConfigError(f"{option}: two functions are called {name!r}; pass tools={{'name': …}}")
        named[name] = thing
    return named
