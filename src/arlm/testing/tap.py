"""A wire-tap: an environment that keeps every byte between its workers and the host, for tests of what may not be said there."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

from ..environments.base import Environment, Place
from ..guest import wire
from ..server.handler import LMHandler

READ_BYTES = 65_536


class Tap(Environment):
    """Another environment, whose workers connect through Unix sockets that are listened in on.

    Attributes:
        heard: the bytes of each connection, in each direction by itself; from the worker's hello on.
    """

    name: ClassVar[str] = "tapped"

    def __init__(self, environment: Environment) -> None:
        self.heard: list[bytearray] = []
        self.transport = "unix"
        self._environment = environment

    def check(self, *, memory_limit: int | None) -> None:
        """See Environment."""
        self._environment.check(memory_limit=memory_limit)

    @property
    def messages(self) -> list[wire.Message]:
        """The messages that were carried, whole: what is looked for may lie across the border of two frames."""
        found: list[wire.Message] = []
        for stream in self.heard:
            with contextlib.suppress(wire.WireError):
                found += wire.Decoder().feed(bytes(stream))
        return found

    @asynccontextmanager
    async def open(self, handler: LMHandler, scratch: Path) -> AsyncIterator[Place]:
        """See Environment."""
        behind = copy.copy(handler)
        behind.address = {"unix": str(scratch / "t")}

        async def tap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                from_host, to_host = await asyncio.open_unix_connection(handler.address["unix"])
            except OSError:
                writer.close()  # the handler has ended
                return
            await asyncio.gather(self._carry(reader, to_host), self._carry(from_host, writer))

        async with await asyncio.start_unix_server(tap, behind.address["unix"]) as server, self._environment.open(behind, scratch) as place:
            yield place
            server.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = bytearray()
        self.heard.append(stream)
        try:
            while data := await reader.read(READ_BYTES):
                stream += data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass  # one end has gone: so does the other
        finally:
            writer.close()
