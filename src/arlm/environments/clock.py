"""A cell's own time."""

from __future__ import annotations

import asyncio
from typing import Literal

Stop = Literal["timeout", "limit"]


class CellClock:
    """Counts a cell's own time: it stands still while a call of the cell is pending.

    ``expired`` is done when ``seconds`` are over.
    """

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.expired: asyncio.Future[Stop] = self._loop.create_future()
        self._left = seconds
        self._reason: Stop = "timeout"
        self._pending = 0
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0
        self._start()

    def pause(self) -> None:
        """A call began."""
        self._pending += 1
        if self._pending == 1:
            self._halt()

    def resume(self) -> None:
        """A call ended."""
        self._pending -= 1
        if self._pending == 0:
            self._start()

    def shorten(self, seconds: float, reason: Stop) -> None:
        """Leave the cell at most ``seconds`` more of its own time."""
        if self._left > seconds or self._timer is not None:
            self._halt()
            self._left = min(self._left, seconds)
            self._reason = reason
            if self._pending == 0:
                self._start()

    def expire(self) -> None:
        """The time is over, now."""
        self._halt()
        if not self.expired.done():
            self.expired.set_result(self._reason)

    def stop(self) -> None:
        """No longer needed."""
        self._halt()
        self._pending = 1  # nothing starts it again
        self.expired.cancel()

    def _start(self) -> None:
        if not self.expired.done():
            self._since = self._loop.time()
            self._timer = self._loop.call_later(max(0.0, self._left), self.expire)

    def _halt(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._left -= self._loop.time() - self._since
