"""The gateway's side towards a client: what it sends, that it has left, what it is told. Standard library only."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any

from .gateway_http import LONGEST_HEAD, Body, Broken

DISCARD_S = 1.0  # for the rest of a body that nobody wants: closing before it is read would lose the reply for the client


class Inbox(asyncio.StreamReader):
    """What a client sends; it can call somebody when the client leaves."""

    def __init__(self) -> None:
        super().__init__(limit=LONGEST_HEAD)
        self._ended = False
        self._on_end: Callable[[], object] | None = None

    def watch(self, on_end: Callable[[], object] | None) -> None:
        """Have ``on_end`` called when the client leaves, at once if it has left. None: nobody any more."""
        self._on_end = on_end
        if self._ended and on_end is not None:
            on_end()

    def feed_eof(self) -> None:
        """The client sends no more."""
        super().feed_eof()
        self._end()

    def set_exception(self, exc: Exception) -> None:
        """The connection is lost."""
        super().set_exception(exc)
        self._end()

    def _end(self) -> None:
        self._ended = True
        if self._on_end is not None:
            self._on_end()


class Client:
    """One client's connection."""

    def __init__(self, inbox: Inbox, writer: asyncio.StreamWriter) -> None:
        self.inbox = inbox
        self.writer = writer
        self.begun = False  # the reply has; whoever reads a request sets it back
        self._sock: Any = writer.get_extra_info("socket")
        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or a head and its body are 40 ms apart
        except OSError:
            pass  # the client has left already

    async def send(self, data: bytes) -> None:
        """Send a part of the reply, as fast as the client reads. Raises OSError where it has left."""
        self.begun = True
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """End the connection so that the client gets an error, not an end."""
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass  # it has ended already
        self.writer.transport.abort()


async def discarded(body: Body) -> bool:
    """Read what is left of a body; whether that came to its end."""
    try:
        async with asyncio.timeout(DISCARD_S):
            await body.whole()
    except (Broken, TimeoutError):
        return False
    return True
