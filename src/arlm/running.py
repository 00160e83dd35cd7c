"""One run from outside its loop: check everything, open everything, solve, report, leave nothing."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio
import anyio.abc

from . import prompts
from .answers import answers_of
from .calls import Caller, Models
from .clients.base import BaseLM
from .errors import ArlmError, ConfigError, LimitError, ProviderError, RunTimeout, describe
from .events import CallRetried, Emit, RunEnded, RunStarted
from .functions import answer
from .home import Home, find_environment, open_home
from .ledger import Ledger
from .lifetimes import finish
from .listeners import open_listeners
from .loop import Answers, open_history, solve
from .node import Node
from .options import RunOptions
from .tools import THREADS
from .types import Result

LIMITS = ("max_iterations", "max_calls", "max_total_tokens", "max_cost_usd", "timeout", "max_errors")


async def run_once(prompt: str, options: RunOptions, *, listeners: Sequence[Emit] = (), home: Home | None = None) -> Result:
    """Answer one question; raises as ``arlm.run`` does.

    Args:
        options: resolved.
        listeners: who hears of the events, besides those that the options name.
        home: where the code runs, for a session; else a place is opened for this run alone.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise ConfigError("the prompt is empty; say what you want to know")
    models = Models.of(options["model"], options["sub_model"], options["models"])
    await models.check_prices(options["max_cost_usd"])
    environment = None if home else find_environment(options["environment"], options["environment_options"])
    answers = answers_of(options["output_type"])
    run_id = secrets.token_hex(6)
    async with open_listeners(options, run_id, listeners) as emit:
        where = home.environment if environment is None and home is not None else "" if environment is None else environment.name
        run = _Run(prompt=prompt, options=options, models=models, answers=answers, environment=where, emit=emit, run_id=run_id)
        try:
            with anyio.move_on_after(options["timeout"]) as scope:
                async with AsyncExitStack() as stack:
                    if environment is not None:
                        home = await stack.enter_async_context(open_home(environment, options))
                    assert home is not None
                    result = await run.solve(home, stays=environment is None)
            if scope.cancelled_caught:
                assert options["timeout"] is not None
                raise RunTimeout("timeout", time.monotonic() - run.started, options["timeout"])
        except BaseException as error:
            run.failed(error)
            raise
        run.ended(result)
        return result


@dataclass(slots=True, kw_only=True)
class _Run:
    prompt: str
    options: RunOptions
    models: Models
    answers: Answers
    environment: str
    emit: Emit
    run_id: str
    started: float = field(default_factory=time.monotonic)
    caller: Caller = field(init=False)
    deadline: float | None = field(init=False)
    node: Node | None = None
    announced: bool = False

    def __post_init__(self) -> None:
        limits = self.options
        ledger = Ledger(max_calls=limits["max_calls"], max_total_tokens=limits["max_total_tokens"], max_cost_usd=limits["max_cost_usd"])
        self.caller = Caller(ledger, max_concurrency=limits["max_concurrency"], on_retry=self._retried)
        self.deadline = None if limits["timeout"] is None else asyncio.get_running_loop().time() + limits["timeout"]

    async def solve(self, home: Home, *, stays: bool) -> Result:
        """Load the context, start the REPL behind the first call, run the loop. ``stays``: the home is used again."""
        await home.repl.begin_run(cell_timeout=self.options["cell_timeout"], on_output=self._show_output, history=home.history)
        opening = await self._open_context(home)
        node = self.node = Node(
            run_id=self.run_id,
            prompt=self.prompt,
            context=home.description,
            options=self.options,
            models=self.models,
            caller=self.caller,
            repl=home.repl,
            emit=self.emit,
            deadline=self.deadline,
            cell=home.cells,
            tools=home.tools,
            tool_threads=anyio.CapacityLimiter(THREADS),
        )
        self._announce(home.description)
        tools = home.tools.describe(home.values)
        system = prompts.system_prompt(self.options["system_prompt"], self.options["instructions"], tools)
        open_history(node, system, opening + prompts.form(self.answers.schema))
        result: Result | None = None
        try:
            async with _bare_task_group() as task_group:
                home.repl.serve(task_group, lambda method, args: answer(node, method, args))
                task_group.start_soon(home.repl.start, name="start of the REPL")
                result = await solve(node, self.answers)
                task_group.cancel_scope.cancel()
        finally:
            home.cells = node.cell
            home.repl.stop_serving()
            if stays:
                await finish(home.repl.end_cell, what="the run's last cell")
        if result is None:
            raise ArlmError("the run was cancelled from inside: a task of it raised CancelledError")
        home.remember(self.prompt, result.trajectory()["answer"])
        return result

    def _show_output(self, text: str) -> None:
        if self.node is not None:
            self.node.show_output(text)

    async def _open_context(self, home: Home) -> str:
        """Put the context in place; returns the first user message. A session's later question without one keeps the one it has."""
        given = self.options["context"]
        earlier = prompts.earlier(home.history, list(home.repl.variables))
        if given is not None:
            await home.add_context(given)
            return earlier + prompts.question(self.prompt, home.description, alone=False)
        if home.description and len(self.prompt) <= prompts.PROMPT_HEAD_CHARS:
            return earlier + prompts.question(self.prompt, home.description, alone=False)
        await home.add_context(self.prompt)
        return earlier + prompts.question(self.prompt, home.description, alone=True)

    def _announce(self, context: str) -> None:
        self.announced = True
        self.emit(
            RunStarted(
                run_id=self.run_id,
                prompt=self.prompt,
                context=context,
                model=self.models.root.name,
                sub_model=self.models.sub.name,
                environment=self.environment,
                limits={name: value for name, value in self.options.items() if name in LIMITS and value is not None},
            )
        )

    def _retried(self, lm: BaseLM, error: ProviderError, wait: float) -> None:
        self.emit(CallRetried(run_id=self.run_id, model=lm.name, error=describe(error), wait_s=wait))

    def failed(self, error: BaseException) -> None:
        """The run ends with an error; a limit gets the partial result."""
        if isinstance(error, LimitError) and error.partial is None and self.node is not None:
            error.partial = self.node.result(self.node.last_reply, error.limit)
        if not self.announced:
            self._announce("none was loaded")
        self._end(None, "cancelled" if isinstance(error, asyncio.CancelledError) else describe(error))

    def ended(self, result: Result) -> None:
        """The run ends with an answer."""
        self._end(result, None)

    def _end(self, result: Result | None, error: str | None) -> None:
        self.emit(
            RunEnded(
                run_id=self.run_id,
                answer=None if result is None else result.trajectory()["answer"],
                stop_reason=None if result is None else result.stop_reason,
                error=error,
                usage=self.caller.tally.summary().to_dict(),
                iterations=0 if self.node is None else self.node.iterations,
                duration_s=time.monotonic() - self.started,
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
