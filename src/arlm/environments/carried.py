"""A worker's connection without a socket of its own: what a Connection writes to where its bytes come and go by another road."""

from __future__ import annotations

import asyncio
from collections import deque

from ..server.connection import Connection


class CarriedTransport(asyncio.Transport):
    """The half that all roads share: what comes is delivered, or kept while reading is paused. A road adds ``write`` and ``close``."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self._closed = False
        self._paused = False
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0

    def feed(self, data: bytes) -> None:
        """Bytes from the worker; on the loop."""
        if self._closed:
            return
        if self._paused or self._kept:
            self._kept.append(data)
            self._kept_bytes += len(data)
        else:
            self._connection.data_received(data)

    def drop(self, reason: str) -> None:
        """End the connection because of the other side, which is told why."""
        if not self._closed:
            self._connection.break_off(reason)
            self.close()

    def abort(self) -> None:
        """Same as ``close``: nothing that was written is held back here."""
        self.close()

    def is_closing(self) -> bool:
        """Whether it has ended."""
        return self._closed

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The road sets the pace."""

    def get_write_buffer_size(self) -> int:
        """Bytes written that the other end has not taken: none, unless the road knows better."""
        return 0

    def pause_reading(self) -> None:
        """Keep what comes. The worker is not held up."""
        self._paused = True

    def resume_reading(self) -> None:
        """Deliver what was kept, and what comes."""
        if self._paused:
            self._paused = False
            asyncio.get_running_loop().call_soon(self._drain)

    def _drain(self) -> None:
        while self._kept and not self._paused and not self._closed:
            data = self._kept.popleft()
            self._kept_bytes -= len(data)
            self._connection.data_received(data)
