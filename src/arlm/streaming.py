"""A run as a stream of its events."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from .events import AnyEvent, Emit
from .lifetimes import finish
from .types import Result

AGAIN_SECONDS = 5.0  # a run whose code swallowed its cancel is told again after this long


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
async def open_stream(run: Callable[[Emit], Awaitable[Result]]) -> AsyncIterator[RunStream]:
    """Start ``run(emit)`` behind a stream of its events; leaving the context ends it there and then.

    The context may be left in another task than the one that entered it, as happens to an async generator that is closed or abandoned.
    Cancelled while leaving, it ends the run first.
    """
    # No task group and no cancel scope may be open across the yield: both belong to the task that entered them.
    send, receive = anyio.create_memory_object_stream[AnyEvent](math.inf)
    streaming = RunStream(receive)
    task = asyncio.get_running_loop().create_task(_work(run, streaming, send), name="arlm run")
    try:
        yield streaming
    finally:
        try:
            if not task.done():
                await finish(lambda: _end(task), what="a streamed run")
        finally:
            send.close()  # a run that was ended before its first step has not done it
            receive.close()


async def _work(run: Callable[[Emit], Awaitable[Result]], streaming: RunStream, send: MemoryObjectSendStream[AnyEvent]) -> None:
    with send:
        try:
            streaming.finished(await run(send.send_nowait), None)
        except Exception as error:
            streaming.finished(None, error)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the block was left
            streaming.finished(None, error)


async def _end(task: asyncio.Task[None]) -> None:
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=AGAIN_SECONDS)
