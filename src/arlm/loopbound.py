"""Things that live exactly as long as the running event loop: SDK clients, connection pools.

No task waits for the loop's end. Each loop that holds something gets one async generator, started and then left alone: the loop closes its
open generators in ``shutdown_asyncgens()``, which ``asyncio.run``, ``asyncio.Runner`` and pytest-asyncio all call, and the generator's
``finally`` closes what was registered, last in, first out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import weakref
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable

T = TypeVar("T")

CLOSE_S = 5.0  # for one resource: closing a connection pool takes milliseconds, a hung peer must not hold up the process's end

_log = logging.getLogger(__name__)
_bound: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Bound] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class _Bound:
    """What one loop holds. Touched only by the thread that runs the loop."""

    def __init__(self) -> None:
        self.instances: dict[Hashable, object] = {}
        self.closers: list[Callable[[], Awaitable[object]]] = []
        self.sentinel: AsyncGenerator[None, None] = _sentinel(self)


def per_loop(key: Hashable, factory: Callable[[], T]) -> T:
    """The running loop's instance for ``key``, made by ``factory`` on first use. Call it in a coroutine.

    The factory may call :func:`on_loop_close` for what it makes.
    """
    instances = _of_running_loop().instances
    try:
        return cast("T", instances[key])
    except KeyError:
        made = instances[key] = factory()
        return made


def on_loop_close(close: Callable[[], Awaitable[Any]]) -> None:
    """Have ``await close()`` run when the running loop shuts down, in reverse order of registration.

    Each has ``CLOSE_S`` seconds; an error or a timeout is logged and does not keep the others from closing.
    """
    _of_running_loop().closers.append(close)


def _of_running_loop() -> _Bound:
    loop = asyncio.get_running_loop()
    bound = _bound.get(loop)
    return _bind(loop) if bound is None else bound


def _bind(loop: asyncio.AbstractEventLoop) -> _Bound:
    bound = _Bound()
    with contextlib.suppress(StopIteration):
        bound.sentinel.__anext__().send(None)  # its first step awaits nothing, so it can be taken here; the loop now knows the generator
    with _lock:
        # What a loop holds often points back at it, so an entry of a loop closed without its shutdown would keep itself alive.
        for closed in [known for known in _bound if known.is_closed()]:
            del _bound[closed]
        _bound[loop] = bound
    return bound


async def _sentinel(bound: _Bound) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        bound.instances.clear()
        while bound.closers:  # what is made while others close is closed too
            await _close(bound.closers.pop())
        with _lock:
            _bound.pop(asyncio.get_running_loop(), None)


async def _close(close: Callable[[], Awaitable[object]]) -> None:
    try:
        async with asyncio.timeout(CLOSE_S):
            await close()
    except Exception as error:
        _log.warning("closing %r at the end of its event loop failed: %s: %s", close, type(error).__name__, error)
