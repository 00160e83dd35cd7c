"""The LMHandler: a stream server that workers connect to, each with a token of its own."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import anyio

from ..errors import SandboxError
from ..guest import wire
from ..shortages import told
from .connection import Connection
from .listening import Listener
from .peer import STALL_SECONDS, Peer, PeerLost, Transport

TOKEN_BYTES = 32
UNIX_PATH_BYTES = 100  # sun_path holds 108 on Linux and 104 on macOS, its NUL included


class Ticket:
    """A connection that is expected: its token, and the peer once it is there. A token opens one connection.

    Attributes:
        on_door: called with each connection that a door's token has opened.
        extra: what else the hello says to the worker.
    """

    def __init__(self, handler: LMHandler, name: str, functions: list[dict[str, Any]]) -> None:
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self.name = name
        self.functions = functions
        self.on_door: Callable[[Peer], None] | None = None
        self.extra: dict[str, Any] = {}
        self._on_shut: list[Callable[[], object]] = []
        self._handler = handler
        self._peer: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()

    async def peer(self) -> Peer:
        """Wait for the connection. Raises PeerLost when the ticket is given up first."""
        return await asyncio.shield(self._peer)

    def connected(self, peer: Peer) -> None:
        """For the handler: the connection is here."""
        self._peer.set_result(peer)

    def door(self, on_shut: Callable[[], object]) -> str:
        """One more token, for others who ask in this REPL's name: programs that are no worker. It opens any number of connections, until
        ``shut_doors``, which calls ``on_shut``, or the handler's end."""
        self._on_shut.append(on_shut)
        return self._handler.add_door(self)

    def shut_doors(self) -> None:
        """The tokens of ``door`` open nothing any more."""
        self._handler.remove_doors(self)
        shutting, self._on_shut = self._on_shut, []
        for on_shut in shutting:
            on_shut()

    def give_up(self, reason: str) -> None:
        """No connection may use this token any more, nor those of its doors; whoever waits is told."""
        self._handler.withdraw(self)
        self.shut_doors()
        if not self._peer.done():
            self._peer.set_exception(PeerLost(reason))
            self._peer.exception()


class LMHandler:
    """The server. Use it as an async context manager; leaving it ends every connection.

    Args:
        transport: ``"unix"`` (a socket in ``directory``) or ``"tcp"`` (a port of 127.0.0.1). None: Unix where the path is short enough.
        directory: a private (0700) folder for the socket.
        hello_seconds, stall_seconds: see Connection.

    Attributes:
        address: ``{"unix": path}`` or ``{"tcp": [host, port]}``: what a worker connects to.
    """

    def __init__(
        self,
        *,
        transport: Literal["unix", "tcp"] | None = None,
        directory: Path | None = None,
        hello_seconds: float = 10.0,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.address: dict[str, Any] = {}
        self._transport = transport
        self._directory = directory
        self._hello_seconds = hello_seconds
        self._stall_seconds = stall_seconds
        self._tickets: dict[bytes, Ticket] = {}
        self._doors: dict[bytes, Ticket] = {}
        self._connections: set[Connection] = set()
        self._listeners: list[Listener] = []
        self._closed = False

    async def __aenter__(self) -> Self:
        path = None if self._directory is None else self._directory / "h"
        fits = path is not None and len(bytes(path)) <= UNIX_PATH_BYTES and hasattr(socket, "AF_UNIX")
        if self._transport == "unix" and not fits:
            raise SandboxError(f"a Unix socket needs a folder with a path below {UNIX_PATH_BYTES} bytes, not {path}; use transport='tcp'")
        try:
            self.address = self._listen(path if fits and self._transport != "tcp" else None)
        except OSError as error:
            raise SandboxError(f"no socket could be opened for workers to connect to: {told(error)}") from error
        return self

    def listen(self, path: Path) -> None:
        """Listen on one more Unix socket, for workers that cannot see the handler's own. Raises SandboxError."""
        try:
            self._listen(path)
        except OSError as error:
            raise SandboxError(f"no socket could be opened at {path} for workers to connect to: {told(error)}") from error

    def _listen(self, path: Path | None) -> dict[str, Any]:
        listener = Listener(self.connection, path=path, on_short=self._give_up_all)
        self._listeners.append(listener)
        return listener.address

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed = True
        for listener in self._listeners:
            listener.close()
        self._give_up_all("the handler was closed")
        for connection in list(self._connections):
            connection.close()
        for listener in self._listeners:
            await listener.settle()
        with anyio.CancelScope(shield=True):
            await asyncio.sleep(0)  # connection_lost is called on the next turn of the loop

    def _give_up_all(self, reason: str) -> None:
        for ticket in list(self._tickets.values()):
            ticket.give_up(reason)

    def expect(self, name: str, functions: list[dict[str, Any]]) -> Ticket:
        """Make a token for one connection. ``functions`` are the REPL functions that its hello will name."""
        ticket = Ticket(self, name, functions)
        self._tickets[_key(ticket.token)] = ticket
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """Forget a ticket."""
        self._tickets.pop(_key(ticket.token), None)

    def add_door(self, ticket: Ticket) -> str:
        """See Ticket."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        self._doors[_key(token)] = ticket
        return token

    def remove_doors(self, ticket: Ticket) -> None:
        """See Ticket."""
        self._doors = {key: known for key, known in self._doors.items() if known is not ticket}

    def connection(self, hello_seconds: float | None = None) -> Connection:
        """A protocol for one more connection; also for bytes that arrive by another road than our own socket, which may take longer."""
        connection = Connection(
            self._welcome,
            hello_seconds=hello_seconds or self._hello_seconds,
            stall_seconds=self._stall_seconds,
            on_end=self._connections.discard,
        )
        self._connections.add(connection)
        if self._closed:
            connection.close()
        return connection

    def _welcome(self, hello: wire.Message, transport: Transport) -> Peer:
        token = hello.get("token")
        if not isinstance(token, str):
            raise wire.WireError("the hello has no token")
        # Looked up by digest: how long it takes says nothing about how much of a guess was right.
        door = self._doors.get(_key(token))
        ticket = door or self._tickets.pop(_key(token), None)
        if ticket is None:
            raise wire.WireError("the token is not valid")
        peer = Peer(transport, ticket.name)
        for frame in wire.encode({"hello": wire.VERSION, "functions": ticket.functions, **({} if door else ticket.extra)}):
            transport.write(frame)
        if door is None:
            ticket.connected(peer)
        elif ticket.on_door is not None:
            ticket.on_door(peer)
        return peer


def _key(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
