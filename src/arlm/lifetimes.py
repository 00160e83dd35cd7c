"""Clean-up that is carried to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import anyio

logger = logging.getLogger("arlm")

CLEANUP_SECONDS = 10.0  # bound of a clean-up: far above what killing a worker takes, short enough for a person who waits


def cancelled_from_outside() -> bool:
    """Whether somebody asked the running task to stop; a CancelledError without that was raised by the code that was called."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


async def finish(cleanup: Callable[[], Awaitable[object]], *, what: str, seconds: float = CLEANUP_SECONDS) -> None:
    """Run a clean-up to its end, whatever happens to the caller.

    The clean-up runs in a task of its own. A cancel of the caller, native or by a scope, once or twice, does not reach it; the caller
    waits for it (at most ``seconds``) and passes a native cancel on afterwards. A clean-up that fails is logged, because an error of the
    block that is being left is worth more than an error of leaving it.
    """
    task = asyncio.ensure_future(_logged(cleanup, what))
    cancelled: asyncio.CancelledError | None = None
    deadline = asyncio.get_running_loop().time() + seconds
    with anyio.CancelScope(shield=True):
        while not task.done():
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                logger.error("clean-up of %s took longer than %s s and was given up", what, seconds)
                task.cancel()
                break
            try:
                await asyncio.wait({task}, timeout=left)
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled


async def _logged(cleanup: Callable[[], Awaitable[object]], what: str) -> None:
    try:
        await cleanup()
    except Exception:
        logger.exception("clean-up of %s failed", what)
