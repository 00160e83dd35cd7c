"""Ctrl-C and its kin: the first signal ends the work and starts the clean-up, further ones do not disturb it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import TypeVar

from .exits import Interrupted

T = TypeVar("T")
NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Signals:
    """This process's SIGINT, SIGTERM and SIGHUP, from ``install`` to its end. Ones that were ignored before stay ignored (nohup)."""

    def __init__(self) -> None:
        self._caught: int | None = None
        self._stop: Callable[[], object] | None = None

    def install(self) -> None:
        """Take the signals over."""
        for number in NUMBERS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """``asyncio.run(work())``, cancelled by the first signal and then left alone until it has cleaned up.

        Raises:
            Interrupted: a signal came.
        """

        async def body() -> T:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None
            self._stop = lambda: loop.call_soon_threadsafe(task.cancel)
            try:
                return await work()
            finally:
                self._stop = lambda: None

        try:
            return asyncio.run(body())
        except BaseException:
            if self._caught is None:
                raise
            raise Interrupted(self._caught) from None
        finally:
            self._stop = None

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._caught is not None:
            return
        self._caught = number
        if self._stop is None:
            raise Interrupted(number)
        self._stop()


signals = Signals()
