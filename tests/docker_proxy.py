"""Other ways to the engine at ``unix://…``, through this process.

By TCP it is an engine elsewhere: nothing is shared with such a one. By another socket it is here, and what it is sent can be counted.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(slots=True)
class Way:
    """A way to an engine, and how many bytes went there on it."""

    url: str = ""
    sent: int = 0


@asynccontextmanager
async def over_tcp(url: str) -> AsyncIterator[str]:
    """The URL under which the engine is reached by TCP."""

    async def listen(serve: Serve) -> asyncio.Server:
        return await asyncio.start_server(serve, "127.0.0.1", 0)

    async with _passing_on(url, listen) as way:
        yield way.url


@asynccontextmanager
async def over_socket(url: str, socket: Path) -> AsyncIterator[Way]:
    """Another socket at which the engine is reached, by every user of this machine who may enter the folder."""

    async def listen(serve: Serve) -> asyncio.Server:
        server = await asyncio.start_unix_server(serve, socket)
        os.chmod(socket, 0o666)
        return server

    async with _passing_on(url, listen) as way:
        yield way


@asynccontextmanager
async def _passing_on(url: str, listen: Callable[[Serve], Awaitable[asyncio.Server]]) -> AsyncIterator[Way]:
    path = url.removeprefix("unix://")
    way = Way()
    running: set[asyncio.Task[None]] = set()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, there: bool) -> None:
        try:
            while data := await reader.read(256 * 1024):
                way.sent += len(data) * there
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
        except OSError:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        from_engine, engine = await asyncio.open_unix_connection(path)
        try:
            await asyncio.gather(pass_on(reader, engine, there=True), pass_on(from_engine, writer, there=False))
        finally:
            engine.close()
            writer.close()
            running.discard(task)

    server = await listen(serve)
    place = server.sockets[0].getsockname()
    way.url = f"unix://{place}" if isinstance(place, str) else f"tcp://127.0.0.1:{place[1]}"
    try:
        yield way
    finally:
        server.close()
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
