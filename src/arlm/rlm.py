"""The public surface: ``run``, ``run_sync``, ``stream`` and ``RLM``."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Unpack

import anyio

from . import prompts
from .answers import answers_of
from .calls import Caller, Models
from .clients.base import BaseLM, Prompt, as_messages
from .errors import ConfigError, LimitError, ProviderError, RunTimeout
from .events import AnyEvent, CallRetried, Emit, RunEnded, RunStarted
from .functions import answer
from .ledger import Ledger
from .lifetimes import finish
from .log import open_log
from .loop import open_history, solve
from .node import Node
from .options import RunOptions, resolve
from .session import Home, find_environment, open_home
from .sync import run_blocking
from .types import JSON, Completion, Result, TokenUsage

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream

logger = logging.getLogger("arlm")

LIMITS = ("max_iterations", "max_calls", "max_total_tokens", "max_cost_usd", "timeout", "max_errors")
LISTENER_SECONDS = 5.0  # an async on_event gets this long after the run to take the events that are left


async def run(prompt: str, **options: Unpack[RunOptions]) -> Result:
    """Answer a question over a context of any size.

    Args:
        prompt: the question, not empty.
        **options: see ``RunOptions``; an unknown one is an error.

    Returns:
        The answer with what it took.

    Raises:
        ConfigError: an option, name, key or context is wrong; nothing was sent.
        LimitError: a limit ended the run without an answer; ``partial`` has what there is. ``RunTimeout`` is also a TimeoutError.
        ProviderError: the root model failed for good.
        SandboxError: code could not run.

    Cancelled, it leaves no worker, connection, file or LM call behind before the cancellation goes on.
    """
    return await _run(prompt, resolve(options), ())


def run_sync(prompt: str, **options: Unpack[RunOptions]) -> Result:
    """``run`` for synchronous code; in a running loop (Jupyter) it uses a loop of its own in a thread. Ctrl-C cancels it."""
    return run_blocking(lambda: run(prompt, **options))


def stream(prompt: str, **options: Unpack[RunOptions]) -> AbstractAsyncContextManager[RunStream]:
    """A run whose events can be iterated: ``async with arlm.stream(...) as run: async for event in run: ...; run.result``.

    Leaving the block, also by break or an error, ends the run there and then.
    """
    return _stream(prompt, resolve(options))


class RLM(BaseLM):
    """A recursive language model: options that are kept, for any number of runs, also at once. Itself a language model.

    Args:
        **options: see ``RunOptions``; a run may give further ones.

    Raises:
        ConfigError: an option is unknown or wrong.
    """

    provider = "rlm"

    def __init__(self, **options: Unpack[RunOptions]) -> None:
        self._options = resolve(options)
        super().__init__(_name_of(self._options["model"]))

    async def run(self, prompt: str, **options: Unpack[RunOptions]) -> Result:
        """Like ``arlm.run``, with this object's options under those given here."""
        return await _run(prompt, resolve(options, base=self._options), ())

    def run_sync(self, prompt: str, **options: Unpack[RunOptions]) -> Result:
        """Like ``arlm.run_sync``."""
        return run_blocking(lambda: self.run(prompt, **options))

    def stream(self, prompt: str, **options: Unpack[RunOptions]) -> AbstractAsyncContextManager[RunStream]:
        """Like ``arlm.stream``."""
        return _stream(prompt, resolve(options, base=self._options))

    async def acompletion(self, prompt: Prompt, *, model: str | None = None, sampling: Mapping[str, JSON] | None = None) -> Completion:
        """Answer the last user message by a run; earlier messages, if any, are its context.

        Args:
            prompt: text, or messages.
            model: another root model for this call.
            sampling: sampling options of the root calls, over this object's own.
        """
        messages = as_messages(prompt)
        if not messages or messages[-1]["role"] != "user":
            raise ConfigError("the last message must be the user's")
        changed = RunOptions(sampling={**self._options["sampling"], **(sampling or {})})
        if model is not None:
            changed["model"] = model
        if len(messages) > 1:
            changed["context"] = [dict(message) for message in messages[:-1]]
        result = await self.run(messages[-1]["content"], **changed)
        total = result.usage.total
        usage = TokenUsage(
            input_tokens=total.input_tokens,
            output_tokens=total.output_tokens,
            cached_tokens=total.cached_tokens,
            cache_write_tokens=total.cache_write_tokens,
            reasoning_tokens=total.reasoning_tokens,
            cost_usd=total.cost_usd,
        )
        return Completion(text=str(result.answer), usage=usage, finish_reason="stop" if result.stop_reason == "answered" else "length")


class RunStream:
    """The events of a run under way, once, in order. Iteration ends with the run and raises what it raised."""

    def __init__(self, events: MemoryObjectReceiveStream[AnyEvent]) -> None:
        self._events = events
        self._result: Result | None = None
        self._error: BaseException | None = None

    def __aiter__(self) -> AsyncIterator[AnyEvent]:
        return self

    async def __anext__(self) -> AnyEvent:
        try:
            return await self._events.receive()
        except anyio.EndOfStream:
            if self._error is not None:
                raise self._error from None
            raise StopAsyncIteration from None

    @property
    def result(self) -> Result:
        """The result, once the run is over. Raises what the run raised; RuntimeError while it is under way."""
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise RuntimeError("the run is not over: iterate its events to the end first")
        return self._result

    def finished(self, result: Result | None, error: BaseException | None) -> None:
        """For the run: it is over."""
        self._result, self._error = result, error


@asynccontextmanager
async def _stream(prompt: str, options: RunOptions) -> AsyncIterator[RunStream]:
    send, receive = anyio.create_memory_object_stream[AnyEvent](math.inf)
    streaming = RunStream(receive)

    async def work() -> None:
        try:
            with send:
                streaming.finished(await _run(prompt, options, (send.send_nowait,)), None)
        except Exception as error:
            streaming.finished(None, error)

    with receive:
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(work, name="arlm run")
            failure: BaseException | None = None
            try:
                yield streaming
            except BaseException as error:
                failure = error
            task_group.cancel_scope.cancel()
        if failure is not None:
            raise failure


async def _run(prompt: str, options: RunOptions, listeners: tuple[Emit, ...]) -> Result:
    """One run: check everything, open everything, solve, leave nothing."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise ConfigError("the prompt is empty; say what you want to know")
    run_id = secrets.token_hex(6)
    models = Models.of(options["model"], options["sub_model"], options["models"])
    await models.check_prices(options["max_cost_usd"])
    environment = find_environment(options["environment"], options["environment_options"])
    answers = answers_of(options["output_type"])
    ledger = Ledger(max_calls=options["max_calls"], max_total_tokens=options["max_total_tokens"], max_cost_usd=options["max_cost_usd"])
    async with AsyncExitStack() as stack:
        emit = _fan_out([*listeners, *await _open_listeners(stack, options, run_id)])
        caller = Caller(ledger, max_concurrency=options["max_concurrency"], on_retry=_retry_event(emit, run_id))
        run = _Run(prompt, options, models, caller, emit, run_id)
        try:
            with anyio.move_on_after(options["timeout"]) as scope:
                async with open_home(environment, options, run.show_output) as home:
                    result = await run.solve(home, environment.name, answers.schema, lambda node: solve(node, answers))
            if scope.cancelled_caught:
                assert options["timeout"] is not None
                raise RunTimeout("timeout", time.monotonic() - run.started, options["timeout"])
        except BaseException as error:
            run.failed(error)
            raise
        run.ended(result)
        return result


class _Run:
    """What is known of a run from outside its loop: it reports the run's beginning and its end."""

    def __init__(self, prompt: str, options: RunOptions, models: Models, caller: Caller, emit: Emit, run_id: str) -> None:
        self.started = time.monotonic()
        self._prompt = prompt
        self._options = options
        self._models = models
        self._caller = caller
        self._emit = emit
        self._run_id = run_id
        self._deadline = None if options["timeout"] is None else asyncio.get_running_loop().time() + options["timeout"]
        self._node: Node | None = None

    async def solve(self, home: Home, environment: str, schema: str | None, loop: Callable[[Node], Awaitable[Result]]) -> Result:
        """Load the context, start the REPL behind the first call, run the loop."""
        alone = self._options["context"] is None
        file = await home.add_context(self._prompt if alone else self._options["context"])
        node = self._node = Node(
            run_id=self._run_id,
            prompt=self._prompt,
            context=file.description,
            options=self._options,
            models=self._models,
            caller=self._caller,
            repl=home.repl,
            emit=self._emit,
            deadline=self._deadline,
        )
        self._emit(
            RunStarted(
                run_id=self._run_id,
                prompt=self._prompt,
                context=file.description,
                model=self._models.root.name,
                sub_model=self._models.sub.name,
                environment=environment,
                limits={name: value for name, value in self._options.items() if name in LIMITS and value is not None},
            )
        )
        first = prompts.question(self._prompt, file.description, alone=alone)
        open_history(
            node, prompts.system_prompt(self._options["system_prompt"], self._options["instructions"]), first + prompts.form(schema)
        )
        async with _bare_task_group() as task_group:
            home.repl.serve(task_group, lambda method, args: answer(node, method, args))
            task_group.start_soon(home.repl.start, name="start of the REPL")
            result = await loop(node)
            task_group.cancel_scope.cancel()
        return result

    def show_output(self, text: str) -> None:
        """A running cell printed something."""
        if self._node is not None:
            self._node.show_output(text)

    def failed(self, error: BaseException) -> None:
        """The run ends with an error: a limit gets the partial result."""
        partial = None if self._node is None else self._node.result(self._node.last_reply, "error")
        if isinstance(error, LimitError) and partial is not None:
            partial = self._node.result(self._node.last_reply, error.limit) if self._node is not None else partial
            error.partial = error.partial or partial
        cancelled = isinstance(error, asyncio.CancelledError)
        self._emit_end(partial, None, "cancelled" if cancelled else f"{type(error).__name__}: {error}")

    def ended(self, result: Result) -> None:
        """The run ends with an answer."""
        self._emit_end(result, result.stop_reason, None)

    def _emit_end(self, result: Result | None, stop_reason: str | None, error: str | None) -> None:
        self._emit(
            RunEnded(
                run_id=self._run_id,
                answer=None if result is None or error is not None else result.trajectory()["answer"],
                stop_reason=stop_reason,
                error=error,
                usage=self._caller.tally.summary().to_dict(),
                iterations=0 if result is None else result.iterations,
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


def _retry_event(emit: Emit, run_id: str) -> Callable[[BaseLM, ProviderError, float], None]:
    def on_retry(lm: BaseLM, error: ProviderError, wait: float) -> None:
        emit(CallRetried(run_id=run_id, model=lm.name, error=f"{type(error).__name__}: {error}", wait_s=wait))

    return on_retry


def _fan_out(listeners: list[Emit]) -> Emit:
    def emit(event: AnyEvent) -> None:
        for listener in listeners:
            listener(event)

    return emit


async def _open_listeners(stack: AsyncExitStack, options: RunOptions, run_id: str) -> list[Emit]:
    listeners: list[Emit] = []
    if options["log_dir"] is not None:
        listeners.append(await stack.enter_async_context(open_log(options["log_dir"], run_id)))
    on_event = options["on_event"]
    if on_event is not None:
        listeners.append(await stack.enter_async_context(_listener(on_event)))
    return listeners


@asynccontextmanager
async def _listener(on_event: Callable[[AnyEvent], Any]) -> AsyncIterator[Emit]:
    """Calls ``on_event`` at once; what an async one returns is awaited in a task, one after the other, in order."""
    waiting: asyncio.Queue[Awaitable[Any] | None] = asyncio.Queue()

    def take(event: AnyEvent) -> None:
        try:
            outcome = on_event(event)
        except Exception:
            logger.exception("on_event failed for %s", event.type)
        else:
            if inspect.isawaitable(outcome):
                waiting.put_nowait(outcome)

    async def await_all() -> None:
        while (outcome := await waiting.get()) is not None:
            try:
                await outcome
            except Exception:
                logger.exception("on_event failed")

    task = asyncio.ensure_future(await_all())
    try:
        yield take
    finally:
        waiting.put_nowait(None)
        await finish(lambda: asyncio.wait_for(task, LISTENER_SECONDS), what="on_event")


def _name_of(model: Any) -> str:
    match model:
        case None:
            return "default"
        case str():
            return model
        case BaseLM():
            return model.name
        case _:
            return getattr(model, "__name__", type(model).__name__)
