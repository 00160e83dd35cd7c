"""One run from outside its loop: check everything, open everything, solve, report, leave nothing."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import anyio

from . import prompts
from .answers import answers_of
from .calls import Caller, Models
from .clients.prices import Prices
from .clients.resolve import ModelSpec, default_model
from .clients.tally import Tally
from .environments.opening import opening_for
from .errors import ConfigError, LimitError, RunTimeout, describe
from .events import Emit, EnvironmentProgress, RunEnded, RunStarted
from .home import Home, SubSite, find_environment, open_home
from .ledger import Ledger
from .listeners import open_listeners
from .loop import Answers
from .node import Node
from .options import RunOptions
from .recursion import run_node
from .slots import ReplSlots
from .tools import THREADS, Tools
from .tree import Tree
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
    model, model_reason = await _given_or_default(options["model"])
    models = Models.of(model, options["sub_model"], options["models"])
    models.check_sampling(options["sampling"], options["sub_sampling"])
    prices = Prices(options["prices"])
    await models.check_prices(prices, options["max_cost_usd"])
    environment = None if home else find_environment(options["environment"], options["environment_options"])
    named = options["sub_environment"]
    sub_environment = None if named is None else find_environment(named, {})
    sub_tools = None if options["sub_tools"] is None else Tools.of(options["sub_tools"], option="sub_tools")
    answers = answers_of(options["output_type"])
    run_id = secrets.token_hex(6)
    async with open_listeners(options, run_id, listeners) as emit:
        where = home.site.environment if home is not None else "" if environment is None else environment.name
        run = _Run(
            prompt=prompt,
            options=options,
            models=models,
            model_reason=model_reason,
            prices=prices,
            answers=answers,
            environment=where,
            emit=emit,
            run_id=run_id,
            sub_tools=sub_tools,
        )
        try:
            with anyio.move_on_after(options["timeout"]) as scope:
                async with AsyncExitStack() as stack:
                    if environment is not None:
                        stack.enter_context(opening_for(run_id, run.tell))
                        home = await stack.enter_async_context(open_home(environment, options))
                    assert home is not None
                    below = None if sub_environment is None else await stack.enter_async_context(SubSite(sub_environment, options))
                    result = await run.solve(home, sub_site=below, stays=environment is None)
            if scope.cancelled_caught:
                assert options["timeout"] is not None
                raise RunTimeout("timeout", time.monotonic() - run.started, options["timeout"])
        except BaseException as error:
            run.failed(error)
            raise
        run.ended(result)
        return result


async def _given_or_default(model: ModelSpec | None) -> tuple[ModelSpec, str | None]:
    """The root model, and where none was given the reason for the one that is taken."""
    if model is not None:
        return model, None
    taken = await default_model()
    return taken.lm, taken.reason


@dataclass(slots=True, kw_only=True)
class _Run:
    prompt: str
    options: RunOptions
    models: Models
    model_reason: str | None
    prices: Prices
    answers: Answers
    environment: str
    emit: Emit
    run_id: str
    sub_tools: Tools | None
    started: float = field(default_factory=time.monotonic)
    began_at: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    tally: Tally = field(default_factory=Tally)
    node: Node | None = None
    announced: bool = False

    async def solve(self, home: Home, *, sub_site: SubSite | None, stays: bool) -> Result:
        """Load the context and run the root. ``stays``: the home is used again."""
        await home.repl.begin_run(cell_timeout=self.options["cell_timeout"], on_output=self._show_output, history=home.history)
        opening = await self._open_context(home)
        node = self.node = Node(
            tree=self._tree(sub_site),
            prompt=self.prompt,
            context=home.description,
            lm=self.models.root,
            repl=home.repl,
            tools=home.tools,
            tally=self.tally,
            cell=home.cells,
        )
        self._announce(home.description)
        result = await run_node(node, home, self.answers, opening=opening, stays=stays)
        home.remember(self.prompt, result.trajectory()["answer"])
        return result

    def _tree(self, sub_site: SubSite | None) -> Tree:
        limits = self.options
        ledger = Ledger(max_calls=limits["max_calls"], max_total_tokens=limits["max_total_tokens"], max_cost_usd=limits["max_cost_usd"])
        timeout = limits["timeout"]
        return Tree(
            run_id=self.run_id,
            options=limits,
            models=self.models,
            caller=Caller(ledger, max_concurrency=limits["max_concurrency"], prices=self.prices, call_timeout=limits["call_timeout"]),
            emit=self.emit,
            deadline=None if timeout is None else self.began_at + timeout,
            slots=ReplSlots(limits["max_repls"]),
            sub_tools=self.sub_tools,
            sub_site=sub_site,
            tool_threads=anyio.CapacityLimiter(THREADS),
        )

    def tell(self, text: str) -> None:
        """A place that takes long to open says how far it is."""
        self.emit(EnvironmentProgress(run_id=self.run_id, text=text))

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
                model_reason=self.model_reason,
                sub_model=self.models.pick(None, 1).name,
                environment=self.environment,
                limits={name: value for name, value in self.options.items() if name in LIMITS and value is not None},
            )
        )

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
                usage=self.tally.summary().to_dict(),
                iterations=0 if self.node is None else self.node.iterations,
                duration_s=time.monotonic() - self.started,
            )
        )
