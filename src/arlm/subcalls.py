"""What the cells of a node call: models, children, tools."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from .errors import CallLimit, CostLimit, LimitError, TokenLimit, describe
from .events import SubcallEnded, SubcallStarted, ToolCalled
from .functions import Context
from .guest import wire
from .node import Node, usage_dict, without_text
from .server.peer import CallError
from .tools import call as call_tool
from .types import JSON, Result, TokenUsage

ARGUMENT_CHARS = 2_000  # of a tool call's arguments that events show
MODEL_CHARS = 200  # of a model's name that code gave
ERROR_CHARS = 1_000  # of an error's text that code gets in place of a reply

OF_THE_TREE = (CallLimit, TokenLimit, CostLimit)  # what a child ran into, its parent has run into too

RunChild = Callable[[int, str, str | None, Context | None], Awaitable[Result]]  # call number, prompt, model, context
Asked = Callable[[int], Awaitable[tuple[str, str | None, TokenUsage]]]  # the text, what is wrong with it, usage


class Subcalls:
    """``functions.Asking`` for one node.

    Args:
        run_child: runs a child to its end; raises what ended it.
        as_prompt: one prompt of a prompt and a context, for a child that is a plain call. Raises ConfigError.
    """

    def __init__(self, node: Node, run_child: RunChild, as_prompt: Callable[[str, Context], Awaitable[str]]) -> None:
        self._node = node
        self._run_child = run_child
        self._as_prompt = as_prompt

    @property
    def max_concurrency(self) -> int:
        """Sub-calls in flight at once."""
        return self._node.options["max_concurrency"]

    @property
    def max_children(self) -> int:
        """Children at once: as many as may have a REPL; where they are plain calls, as those."""
        node = self._node
        return node.options["max_repls"] if node.tree.may_have_children(node.depth) else self.max_concurrency

    async def subcall(self, function: str, prompt: str, model: str | None) -> JSON:
        """See ``functions.Asking``."""

        async def ask(_number: int) -> tuple[str, str | None, TokenUsage]:
            return await self._complete(prompt, model)

        return await self._counted(function, prompt, model, ask)

    async def child(self, function: str, prompt: str, model: str | None, context: Context | None) -> JSON:
        """See ``functions.Asking``: below the deepest level a child is a plain call."""
        tree = self._node.tree

        async def ask(number: int) -> tuple[str, str | None, TokenUsage]:
            if tree.may_have_children(self._node.depth):
                return (await self._run_child(number, prompt, model, context)).answer, None, TokenUsage()
            return await self._complete(prompt if context is None else await self._as_prompt(prompt, context), model)

        return await self._counted(function, prompt, model, ask)

    async def _complete(self, prompt: str, model: str | None) -> tuple[str, str | None, TokenUsage]:
        node = self._node
        lm = node.tree.models.pick(model, node.depth + 1)
        completion = await node.tree.caller.complete(
            lm, [{"role": "user", "content": prompt}], sampling=node.options["sub_sampling"], account=node.account()
        )
        return completion.text, without_text(completion), completion.usage

    async def _counted(self, function: str, prompt: str, model: str | None, ask: Asked) -> JSON:
        """A sub-call with its events; a failure becomes a reply, for the cell and its count."""
        node = self._node
        number, failures = node.begin_call()
        named = node.tree.models.pick(None, node.depth + 1).name if model is None else model[:MODEL_CHARS]
        began = time.monotonic()
        text, usage = "", TokenUsage()
        error: str | None = "cancelled"
        try:
            node.tree.emit(SubcallStarted(run_id=node.run_id, node=node.name, call=number, function=function, model=named, prompt=prompt))
            text, error, usage = await ask(number)
        except LimitError as limit:
            error = str(limit)
            if isinstance(limit, OF_THE_TREE):
                node.reach(limit)
        except Exception as failure:  # a model of the user's own may raise anything: that is a failed call
            error = describe(failure)
        finally:
            node.tree.emit(
                SubcallEnded(
                    run_id=node.run_id,
                    node=node.name,
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

    async def tool(self, name: str, args: dict[str, Any]) -> JSON:
        """See ``functions.Asking``."""
        node = self._node
        found = node.tools.functions.get(name)
        if found is None:
            raise CallError("NameError", f"there is no function {name[:100]!r} in this REPL")
        began = time.monotonic()
        error: str | None = "cancelled"
        try:
            result = await call_tool(name, found, args, node.tree.tool_threads)
            error = None
        except CallError as failure:
            error = f"{failure.kind}: {failure}"
            raise
        finally:
            duration = time.monotonic() - began
            shown = wire.dumps(_cut(args))[:ARGUMENT_CHARS]
            node.tree.emit(ToolCalled(run_id=node.run_id, node=node.name, name=name, arguments=shown, error=error, duration_s=duration))
        return result


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
