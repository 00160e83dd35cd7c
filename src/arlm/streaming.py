"""A run as a stream of its events."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from .events import AnyEvent, Emit
from .types import Result


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
    """Start ``run(emit)`` behind a stream of its events; leaving the context ends it there and then."""
    send, receive = anyio.create_memory_object_stream[AnyEvent](math.inf)
    streaming = RunStream(receive)

    async def work() -> None:
        try:
            with send:
                streaming.finished(await run(send.send_nowait), None)
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
