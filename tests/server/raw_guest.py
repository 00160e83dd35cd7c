"""A handler with a script of answers, and a guest that is nothing but a socket."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from arlm.guest import wire
from arlm.server.handler import LMHandler, Ticket
from arlm.server.peer import CallError, Peer

PATIENCE = 20.0  # seconds for what takes milliseconds


class RawGuest:
    """The other end of a connection, with no rules of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.decoder = wire.Decoder()
        self.inbox: list[wire.Message] = []

    async def send(self, *messages: wire.Message | bytes) -> None:
        for message in messages:
            self.writer.write(message if isinstance(message, bytes) else b"".join(wire.encode(message)))
        await self.writer.drain()

    async def receive(self) -> wire.Message:
        """The next message. Raises EOFError when the host has closed."""
        with anyio.fail_after(PATIENCE):
            while not self.inbox:
                data = await self.reader.read(65536)
                if not data:
                    raise EOFError
                self.inbox += self.decoder.feed(data)
        return self.inbox.pop(0)

    async def hello(self, token: str) -> wire.Message:
        await self.send({"hello": wire.VERSION, "token": token})
        return await self.receive()

    async def ended(self) -> str:
        """Wait for the host's end; returns the reason in its last message."""
        reason = ""
        try:
            while True:
                message = await self.receive()
                reason = message.get("bye", reason)
        except (EOFError, ConnectionResetError, BrokenPipeError):
            return reason

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass  # the host was first

    def abort(self) -> None:
        self.writer.transport.abort()


class Host:
    """A handler with all that a test asks of it."""

    def __init__(self, handler: LMHandler, tasks: anyio.abc.TaskGroup) -> None:
        self.handler = handler
        self.tasks = tasks
        self.guests: list[RawGuest] = []
        self.release = asyncio.Event()
        self.cancelled: list[str] = []
        self.under_way = self.most = 0
        self.changed = asyncio.Event()

    async def dial(self) -> RawGuest:
        """Connect, and say nothing."""
        address = self.handler.address
        if "unix" in address:
            streams = await asyncio.open_unix_connection(address["unix"])
        else:
            streams = await asyncio.open_connection(*address["tcp"])
        guest = RawGuest(*streams)
        self.guests.append(guest)
        return guest

    async def guest(self, name: str = "guest") -> tuple[RawGuest, Peer]:
        """A guest that has said hello, and its peer, whose calls are answered."""
        ticket = self.ticket(name)
        guest = await self.dial()
        assert (await guest.hello(ticket.token))["hello"] == wire.VERSION
        peer = await ticket.peer()
        peer.serve(self.tasks, self.answer)
        return guest, peer

    def ticket(self, name: str = "guest") -> Ticket:
        return self.handler.expect(name, [])

    async def answer(self, method: str, args: dict[str, Any]) -> Any:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self._tell()
        try:
            match method:
                case "echo":
                    return args["value"]
                case "hold":
                    await self.release.wait()
                    return args["value"]
                case "hang":
                    await asyncio.Event().wait()
                case "odd":
                    return {1, 2}
                case _:
                    raise CallError("LookupError", f"unknown method {method!r}")
        except asyncio.CancelledError:
            self.cancelled.append(method)
            raise
        finally:
            self.under_way -= 1
            self._tell()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(PATIENCE):
            while not condition():
                await self.changed.wait()

    async def lost(self, peer: Peer) -> str:
        with anyio.fail_after(PATIENCE):
            return await peer.wait_lost()


@asynccontextmanager
async def open_host(transport: str, **options: Any) -> AsyncIterator[Host]:
    with tempfile.TemporaryDirectory(prefix="arlm-") as folder:
        async with LMHandler(directory=Path(folder), transport=transport, **options) as handler, anyio.create_task_group() as tasks:
            host = Host(handler, tasks)
            try:
                yield host
            finally:
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    for guest in host.guests:
                        guest.abort()
                        await guest.close()
