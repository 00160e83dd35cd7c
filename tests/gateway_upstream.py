"""A small server behind a gateway, and a client that sees bytes: what each of them saw is what the tests of the gateway look at."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from aiohttp import web

SHORT = "ended early"


class Arrived(NamedTuple):
    """A request as upstream saw it; its body is SHORT where it ended early."""

    method: str
    target: str
    body: str
    headers: dict[str, str]  # names in lower case


@dataclass
class Upstream:
    """Answers ``/hold…`` once it is let go, ``/chunks`` in pieces as they come, ``/empty`` with 204, ``/early`` before it reads the
    body; and anything else with ``N:body``, N being the number of the request."""

    url: str = ""
    arrived: list[Arrived] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    left: int = 0  # requests whose client left while they were held
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def bodies(self) -> list[str]:
        return [it.body for it in self.arrived]

    async def until(self, count: int) -> None:
        """Wait for so many requests."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.arrived) >= count)

    async def until_left(self, count: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.left >= count)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/early":
            return web.Response(status=413, text="too long")
        try:
            body = (await request.read()).decode("latin-1")
        except (web.HTTPException, ConnectionError, asyncio.CancelledError):
            await self.note(request, SHORT)
            raise
        number = await self.note(request, body)
        if request.path.startswith("/hold"):
            await self.hold()
        if request.path == "/chunks":
            return await self.pieces(request)
        if request.path == "/empty":
            return web.Response(status=204)
        return web.Response(text=f"{number}:{body}", headers={"x-number": str(number)})

    async def note(self, request: web.Request, body: str) -> int:
        async with self.changed:
            self.arrived.append(Arrived(request.method, request.path_qs, body, {name.lower(): it for name, it in request.headers.items()}))
            self.changed.notify_all()
            return len(self.arrived)

    async def hold(self) -> None:
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.left += 1
            async with self.changed:
                self.changed.notify_all()
            raise

    async def pieces(self, request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse()
        await reply.prepare(request)
        await reply.write(b"first ")
        await self.hold()
        await reply.write(b"second")
        return reply


@asynccontextmanager
async def open_upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", upstream.answer)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield upstream
    finally:
        await runner.cleanup()


class Wire:
    """A connection to a gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def ask(self, method: str, target: str, body: str | None = None, **headers: str) -> None:
        """Send a request."""
        lines = [f"{method} {target} HTTP/1.1", "host: somewhere", *(f"{name.replace('_', '-')}: {it}" for name, it in headers.items())]
        if body is not None:
            lines.append(f"content-length: {len(body)}")
        self.writer.write("\r\n".join([*lines, "", body or ""]).encode())

    def reset(self) -> None:
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def rest(self) -> str:
        """What comes until the connection's end. Raises ConnectionResetError."""
        return (await self.reader.read()).decode("latin-1")


@asynccontextmanager
async def wired(url: str) -> AsyncIterator[Wire]:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()
