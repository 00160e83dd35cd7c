"""What a peer writes to a container's standard input."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiodocker.stream import Stream

WRITE_BYTES = 256 * 1024


class InputWriter:
    """The supervisor's standard input, as a peer writes to it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._more = asyncio.Event()

    def write(self, data: bytes) -> None:
        """See Transport."""
        self._chunks.append(bytes(data))
        self._size += len(data)
        self._more.set()

    async def run(self) -> None:
        """Write what waits, in large pieces; ends with the container."""
        try:
            while True:
                await self._more.wait()
                taken = self._take()
                await self._stream.write_in(taken)
                self._size -= len(taken)
        except (OSError, RuntimeError, AssertionError):
            pass  # it has ended; the reader says why

    def _take(self) -> bytes:
        parts, size = [], 0
        while self._chunks and size < WRITE_BYTES:
            parts.append(self._chunks.popleft())
            size += len(parts[-1])
        if not self._chunks:
            self._more.clear()
        return b"".join(parts)

    def get_write_buffer_size(self) -> int:
        """See Transport."""
        return self._size

    def close(self) -> None:
        """Drop what waits. What ends the connection is the container's end."""
        self._chunks.clear()

    def abort(self) -> None:
        """The same."""
        self.close()

    def pause_reading(self) -> None:
        """Nothing: who reads is not paused from here."""

    def resume_reading(self) -> None:
        """Nothing."""
