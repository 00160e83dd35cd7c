"""An HTTP server that gives whatever replies it was told to, to whatever it is asked. Standard library only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, cast

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True, kw_only=True)
class Canned:
    """One reply, byte by byte.

    Attributes:
        status: its HTTP status.
        body: what is sent as the body.
        kind: its content type.
        headers: further headers.
        length: what the head says about the body's length; None: the truth.
    """

    status: int = 200
    body: bytes = b""
    kind: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None

    def sent(self) -> bytes:
        """Head and body."""
        length = len(self.body) if self.length is None else self.length
        lines = {"Content-Type": self.kind, "Content-Length": str(length), **self.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"HTTP/1.1 {self.status} Said\r\n{head}\r\n".encode("latin-1") + self.body


def said(value: Any, status: int = 200, **headers: str) -> Canned:
    """A reply that is JSON; underscores in the names of headers are hyphens."""
    return Canned(status=status, body=json.dumps(value).encode(), headers={name.replace("_", "-"): it for name, it in headers.items()})


class CannedServer:
    """Gives one reply after the other, the last one again and again; a reply that is shorter than it says is cut off there.

    Args:
        replies: in order.
        tls: a server's context; without one the server speaks plain HTTP.

    Attributes:
        root: ``http://127.0.0.1:PORT``, or https.
        asked: how many requests came.
    """

    def __init__(self, replies: Sequence[Canned], *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.root = ""
        self.asked = 0
        self._replies: Iterator[Canned] = iter(replies)
        self._last = Canned(status=500)
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self, self._connections), "127.0.0.1", 0, ssl=self._tls)
        self.root = f"{'https' if self._tls else 'http'}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            connection.close()
        await self._server.wait_closed()

    def next(self) -> Canned:
        """The reply to one more request."""
        self.asked += 1
        self._last = next(self._replies, self._last)
        return self._last


class _Connection(asyncio.Protocol):
    def __init__(self, server: CannedServer, others: set[_Connection]) -> None:
        self._server = server
        self._others = others
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._others.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._others.discard(self)
        self._transport = None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0):
            return
        self._buffer = b""
        reply = self._server.next()
        assert self._transport is not None
        self._transport.write(reply.sent())
        if reply.length is not None:
            self._transport.close()
