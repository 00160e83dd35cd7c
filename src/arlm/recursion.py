"""Running a node of the tree, and the children that its cells ask for: each is a node again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import anyio.abc

from . import prompts
from .answers import answers_of
from .clients.tally import Tally
from .context import read_short
from .errors import ArlmError, ConfigError, LimitError, describe
from .events import ChildEnded, ChildStarted
from .functions import Context, answer
from .guest.wire import dumps
from .home import Home, settle
from .lifetimes import finish
from .loop import Answers, open_history, solve
from .node import Node
from .subcalls import Subcalls
from .types import Result, UsageSummary


async def run_node(node: Node, home: Home, answers: Answers, *, opening: str, stays: bool = False) -> Result:
    """Start the REPL behind the first call, answer what cells call, and run the loop to its end.

    Args:
        home: where the node's REPL is, with its context put in place.
        opening: the question, for the first user message.
        stays: the home is used again; its last cell is ended before this returns.

    Raises:
        what ``loop.solve`` raises, bare.

    Cancelled, it ends what it started: sub-calls, children, their workers.
    """
    children = node.tree.may_have_children(node.depth)
    options = node.options
    tools = home.tools.describe(home.values)
    system = prompts.system_prompt(options["system_prompt"], options["instructions"], tools, children=children)
    open_history(node, system, opening + prompts.form(answers.schema))
    outcome: tuple[Any, str] | None = None
    try:
        async with _bare_task_group() as task_group:
            calls = _subcalls(node, home)
            home.repl.serve(task_group, lambda method, args: answer(calls, method, args))
            task_group.start_soon(home.repl.start, name=f"start of the REPL of {node.name}")
            outcome = await solve(node, answers)
            task_group.cancel_scope.cancel()
    finally:
        home.cells = node.cell
        home.repl.stop_serving()
        if stays:
            await finish(home.repl.end_cell, what="the run's last cell")
    if outcome is None:
        raise ArlmError("the run was cancelled from inside: a task of it raised CancelledError")
    return node.result(*outcome)  # now that its calls have ended, all of them are counted


def _subcalls(node: Node, home: Home) -> Subcalls:
    async def run(number: int, prompt: str, model: str | None, context: Context | None) -> Result:
        return await run_child(node, home, number, prompt, model=model, context=context)

    async def as_prompt(prompt: str, context: Context) -> str:
        return f"{prompt}\n\n{await _text_of(home, context)}"

    return Subcalls(node, run, as_prompt)


async def run_child(parent: Node, home: Home, number: int, prompt: str, *, model: str | None, context: Context | None) -> Result:
    """Run the child that is sub-call ``number`` of ``parent``, in a REPL of its own.

    Its result, also that of a failure or a cancel, is among the parent's children from here on.

    Raises:
        ConfigError: the prompt is empty, the model or the context unknown.
        LimitError, ProviderError, SandboxError: as a run does.
    """
    if not prompt.strip():
        raise ConfigError("the prompt is empty; say what you want to know")
    tree = parent.tree
    lm = tree.models.pick(model, parent.depth + 1)
    parent.keep_child(number, None)
    node: Node | None = None
    try:
        async with AsyncExitStack() as stack:
            slot = await stack.enter_async_context(tree.slots.child_of(parent.slot))
            own = await stack.enter_async_context(_child_home(parent, home, number))
            await _put_context(own, home, prompt, context)
            node = Node(
                tree=tree,
                prompt=prompt,
                context=own.description,
                lm=lm,
                repl=own.repl,
                tools=own.tools,
                name=f"{parent.name}.{number}",
                depth=parent.depth + 1,
                tally=Tally(parent.tally),
                slot=slot,
            )
            parent.keep_child(number, node)
            tree.emit(
                ChildStarted(run_id=tree.run_id, node=node.name, depth=node.depth, model=lm.name, prompt=prompt, context=node.context)
            )
            own.repl.show(node.show_output)
            result = await run_node(node, own, answers_of(str), opening=prompts.question(prompt, own.description, alone=context is None))
    except BaseException as error:
        _keep(parent, number, node, _failed(node, tree.run_id, error))
        raise
    _keep(parent, number, node, result)
    return result


@asynccontextmanager
async def _child_home(parent: Node, home: Home, number: int) -> AsyncIterator[Home]:
    """A home for a child: in its parent's site, or in the one that ``sub_environment`` opened for the root's children."""
    tree = parent.tree
    site = home.site if tree.sub_site is None or not parent.is_root else await tree.sub_site.get()
    tools = home.tools if tree.sub_tools is None else tree.sub_tools
    async with settle(site, tools, tree.options, name=f"the REPL of {parent.name}.{number}") as own:
        yield own


def _keep(parent: Node, number: int, node: Node | None, result: Result) -> None:
    """A child has ended: keep its result, and tell it if its beginning was told."""
    parent.keep_child(number, result)
    if node is not None:
        _announce_end(node, result)


async def _put_context(own: Home, parent: Home, prompt: str, context: Context | None) -> None:
    if context is None:
        await own.add_context(prompt)
    elif "value" in context:
        await own.add_context(context["value"])
    elif (file := parent.files.get(context["same"])) is not None:
        await own.add_file(file)
    else:
        await own.add_context(_short_value(parent, context["same"]))


def _short_value(home: Home, name: str) -> str:
    """A context of the parent's that came in a frame. Raises ConfigError for a name that is none."""
    for loaded in home.repl.contexts:
        if loaded.name == name and loaded.value is not None:
            return loaded.value
    raise ConfigError(f"there is no context {name[:100]!r} in this REPL")


async def _text_of(home: Home, context: Context) -> str:
    """A context as text, for a prompt. Raises ConfigError when it is far too long for one."""
    if "value" in context:
        value = context["value"]
        return value if isinstance(value, str) else dumps(value)
    if (file := home.files.get(context["same"])) is not None:
        return await read_short(file)
    return _short_value(home, context["same"])


def _failed(node: Node | None, run_id: str, error: BaseException) -> Result:
    """The result of a child that gave no answer; ``node`` is None when it ended before it had begun."""
    if isinstance(error, asyncio.CancelledError):
        reason, text = "cancelled", "it was cancelled"
    else:
        reason, text = error.limit if isinstance(error, LimitError) else "failed", describe(error)
    if node is not None:
        return node.result(None, reason, text)
    return Result(
        answer=None,
        stop_reason=reason,
        usage=UsageSummary(),
        duration_s=0.0,
        iterations=0,
        run_id=run_id,
        error=text,
        _trajectory={"run_id": run_id, "answer": None, "stop_reason": reason, "error": text, "turns": [], "children": []},
    )


def _announce_end(node: Node, result: Result) -> None:
    node.tree.emit(
        ChildEnded(
            run_id=node.run_id,
            node=node.name,
            depth=node.depth,
            answer=result.answer,
            stop_reason=result.stop_reason,
            error=result.error,
            usage=result.usage.to_dict(),
            iterations=result.iterations,
            duration_s=result.duration_s,
        )
    )


@asynccontextmanager
async def _bare_task_group() -> AsyncIterator[anyio.abc.TaskGroup]:
    """A task group whose first error leaves it bare, never in an exception group."""
    failure: BaseException | None = None
    try:
        async with anyio.create_task_group() as task_group:
            yield task_group
    except BaseExceptionGroup as group:
        failure = _first(group)
    if failure is not None:
        raise failure


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    leaf = group.exceptions[0]
    return _first(leaf) if isinstance(leaf, BaseExceptionGroup) else leaf
