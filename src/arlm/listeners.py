"""Who hears of a run's events: a stream, a function, a log."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from .errors import RunTimeout
from .events import AnyEvent, Emit, RunEnded
from .lifetimes import finish
from .log import open_log
from .options import RunOptions

logger = logging.getLogger("arlm")

LISTENER_SECONDS = 5.0  # an async on_event gets this long after the run to take the events that are left
MAX_BEHIND = 100_000  # events that wait for an async on_event: more than a large run has; about 100 MB and the prompts in them
CANCELLED_SECONDS = 0.5  # after a run that was cancelled or ran out of time


@asynccontextmanager
async def open_listeners(options: RunOptions, run_id: str, also: Sequence[Emit]) -> AsyncIterator[Emit]:
    """One function that passes an event on to the log, to ``on_event`` and to ``also``. It never waits and never raises.

    Raises:
        ConfigError: the log cannot be written.
    """
    async with AsyncExitStack() as stack:
        listeners = list(also)
        if options["log_dir"] is not None:
            listeners.append(await stack.enter_async_context(open_log(options["log_dir"], run_id)))
        if options["on_event"] is not None:
            listeners.append(await stack.enter_async_context(_calling(options["on_event"])))

        def emit(event: AnyEvent) -> None:
            for listener in listeners:
                listener(event)

        yield emit


@asynccontextmanager
async def _calling(on_event: Callable[[AnyEvent], Any]) -> AsyncIterator[Emit]:
    """Calls ``on_event`` at once; what an async one returns is awaited in a task, one after the other, in order.

    One that is MAX_BEHIND events behind is not called until it has caught up, except for the run's end; what it missed is logged.
    """
    waiting: asyncio.Queue[Awaitable[Any] | None] = asyncio.Queue()
    dropped = 0

    def take(event: AnyEvent) -> None:
        nonlocal dropped
        if waiting.qsize() >= MAX_BEHIND and not isinstance(event, RunEnded):
            dropped += 1
            if dropped == 1:
                logger.error("on_event is %d events behind; it gets no more of them until it has caught up", waiting.qsize())
            return
        try:
            outcome = on_event(event)
        except (Exception, asyncio.CancelledError):  # nothing is awaited here: a CancelledError is on_event's own
            logger.exception("on_event failed for %s", event.type)
        else:
            if inspect.isawaitable(outcome):
                waiting.put_nowait(outcome)

    seconds = LISTENER_SECONDS
    task = asyncio.ensure_future(_await_all(waiting))
    try:
        yield take
    except (asyncio.CancelledError, RunTimeout):
        seconds = CANCELLED_SECONDS
        raise
    finally:
        waiting.put_nowait(None)
        if dropped:
            logger.error("on_event was too slow for %d events, which it did not get", dropped)
        await finish(lambda: _stop(task, waiting, seconds), what="on_event")


async def _await_all(waiting: asyncio.Queue[Awaitable[Any] | None]) -> None:
    while (outcome := await waiting.get()) is not None:
        try:
            await outcome
        except Exception:
            logger.exception("on_event failed")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            logger.exception("on_event failed")


async def _stop(task: asyncio.Future[None], waiting: asyncio.Queue[Awaitable[Any] | None], seconds: float) -> None:
    """Let on_event take the events that are left; after ``seconds`` it gets none of them any more."""
    await asyncio.wait({task}, timeout=seconds)
    if task.done():
        return
    task.cancel()
    await asyncio.wait({task}, timeout=CANCELLED_SECONDS)
    logger.warning("on_event did not take all events within %g s of the run's end; %d were dropped", seconds, waiting.qsize() - 1)
    while not waiting.empty():
        outcome = waiting.get_nowait()
        if inspect.iscoroutine(outcome):
            outcome.close()
    waiting.put_nowait(None)  # for one that swallowed its cancel and goes on later
    if not task.done():
        logger.error("on_event goes on after it was cancelled; the run does not wait for it")
