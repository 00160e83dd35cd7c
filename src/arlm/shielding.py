"""Awaiting foreign code so that a cancellation reaches it once, natively, and its own clean-up is not cut short."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

_log = logging.getLogger(__name__)


async def in_own_task(work: Callable[[], Coroutine[Any, Any, T]] | Coroutine[Any, Any, T], *, grace: float) -> T:
    """Await ``work`` in an asyncio task of its own and return or raise what it does.

    An anyio cancel scope cancels again at every await, which would interrupt an SDK that is closing its connection. So when the caller is
    cancelled, by a scope, natively, or several times, the inner task is cancelled exactly once and given ``grace`` seconds to end; then the
    cancellation goes on, whatever the task returned or raised meanwhile. A task that outlives its grace is left cancelled, with a warning.

    Args:
        work: a coroutine, or a function that makes one.
        grace: seconds for the clean-up after a cancel.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work() if callable(work) else work)
    ended = loop.create_future()  # awaiting the task itself would pass every cancel on to it

    def end(_task: asyncio.Task[T]) -> None:
        if not ended.done():
            ended.set_result(None)

    task.add_done_callback(end)
    try:
        await ended
    except asyncio.CancelledError:
        await _cancel_once(task, grace)
        raise
    return task.result()


async def _cancel_once(task: asyncio.Task[Any], grace: float) -> None:
    task.add_done_callback(_retrieve)
    task.cancel()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + grace
    while not task.done() and (left := deadline - loop.time()) > 0:
        try:
            with anyio.CancelScope(shield=True):
                await asyncio.wait({task}, timeout=left)
        except asyncio.CancelledError:  # a second native cancel: the first one is on its way up already
            continue
    if not task.done():
        _log.warning("%r did not end within %s s of its cancellation", task.get_name(), grace)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Read the outcome that nobody is waiting for any more, or asyncio reports it as never retrieved."""
    if not task.cancelled():
        task.exception()
