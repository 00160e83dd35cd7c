"""Walking the checkpoints of asynchronous code: act at any step that any of its tasks takes, by count and not by the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

Act = Callable[["asyncio.Task[Any]"], object]


async def count_steps(work: Callable[[], Awaitable[object]]) -> int:
    """How many steps the tasks of ``work()`` take, its own included; a step goes from one await to the next. Raises what it raises."""
    walk = _Walk({})
    error = await walk.run(work)
    if error is not None:
        raise error
    return walk.steps


async def act_at(work: Callable[[], Awaitable[object]], acts: dict[int, Act]) -> BaseException | None:
    """Run ``work()`` in a task, and at the end of each step named in ``acts`` call the act with that task.

    Returns:
        what the work raised, a CancelledError included; None when it ended well.
    """
    return await _Walk(acts).run(work)


class _Walk:
    def __init__(self, acts: dict[int, Act]) -> None:
        self.steps = 0
        self._acts = acts
        self._main: asyncio.Task[Any] | None = None

    async def run(self, work: Callable[[], Awaitable[object]]) -> BaseException | None:
        loop = asyncio.get_running_loop()
        before = loop.get_task_factory()
        loop.set_task_factory(self._factory)
        try:
            self._main = loop.create_task(_awaited(work), name="walked")
        finally:
            await asyncio.wait({self._main} if self._main else set())
            loop.set_task_factory(before)
        return self._main.exception() if not self._main.cancelled() else asyncio.CancelledError()

    def _factory(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(_Stepped(coro, self), loop=loop, **options)

    def step(self) -> None:
        self.steps += 1
        act = self._acts.get(self.steps)
        if act is not None and self._main is not None and not self._main.done():
            act(self._main)


async def _awaited(work: Callable[[], Awaitable[object]]) -> object:
    return await work()


class _Stepped(Coroutine[Any, Any, Any]):
    """A coroutine that reports its steps; in all else it is the one it wraps."""

    def __init__(self, coro: Coroutine[Any, Any, Any], walk: _Walk) -> None:
        self._coro = coro
        self._walk = walk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coro, name)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coro.__await__()

    def send(self, value: Any) -> Any:
        try:
            return self._coro.send(value)
        finally:
            self._walk.step()

    def throw(self, *error: Any) -> Any:
        try:
            return self._coro.throw(*error)
        finally:
            self._walk.step()

    def close(self) -> None:
        self._coro.close()
