"""A place behind a broker: workers of one supervisor in a sandbox, reached by a Poller."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import logging
import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..broker.streams import COMMANDS, CONTEXTS, FIRST_DOOR, SUPERVISOR
from ..context import ContextFile
from ..errors import SandboxError
from ..guest.confine import MAX_PROCESSES
from ..lifetimes import finish
from ..server.connection import Connection
from ..server.handler import LMHandler, Ticket
from ..server.poller import Poller
from ..shielding import in_own_task
from ..shortages import told
from .archive import NAME, archive
from .carried import CarriedTransport
from .control import ALIVE_SECONDS, Control
from .holders import Holders
from .relay import KEPT_BYTES
from .supervised import SupervisedPlace

if TYPE_CHECKING:
    from .sandbox import Reach, SandboxEnvironment

logger = logging.getLogger("arlm.environments")

PIECE_BYTES = 1024 * 1024  # of a file that is uploaded
GRACE_SECONDS = 2.0  # for an SDK to let go of what was cancelled


class Sandbox(ABC):
    """One machine somewhere.

    Attributes:
        folder: an absolute path there that may be written to, for what the host puts there. What every worker may read lies elsewhere:
            ``/usr``, Python's own folders.
    """

    folder: str

    @abstractmethod
    async def upload(self, path: str, data: AsyncIterator[bytes]) -> None:
        """Write a file; folders above it are made. Raises SandboxError."""

    @abstractmethod
    async def start(self, archive: str, told: bytes) -> Reach:
        """Start ``python3 -I ARCHIVE`` there, with ``told`` on its standard input. Raises SandboxError.

        Args:
            archive: the path of the broker's archive, uploaded before.
            told: one line; its ``port`` and ``host`` may be replaced in it. It has the host's token: never an argument, never a variable.
        """

    @abstractmethod
    async def is_gone(self) -> str | None:
        """Why it is not there any more, in words; None while it is. Raises nothing."""

    @abstractmethod
    async def destroy(self) -> None:
        """End it with everything in it; harmless a second time. Raises SandboxError when that could not be ordered."""


class Room:
    """A sandbox with a broker that answers.

    Attributes:
        control: its supervisor's connection.
    """

    def __init__(self, environment: SandboxEnvironment, handler: LMHandler) -> None:
        self.control = Control()
        self.control.alive_seconds = max(ALIVE_SECONDS, environment.lost_seconds)  # until then the Poller may still bring the answer
        self._environment = environment
        self._handler = handler
        self._making: asyncio.Future[Sandbox] | None = None
        self._poller: Poller | None = None
        self._protocol: asyncio.Protocol | None = None
        self._doors: dict[int, _DoorTransport] = {}
        self._digests: dict[int, str] = {}
        self._numbers = itertools.count()
        self._closing: asyncio.Future[None] | None = None
        self._port = 0

    @property
    def sandbox(self) -> Sandbox:
        """The machine."""
        assert self._making is not None
        return self._making.result()

    @property
    def closed(self) -> bool:
        """Whether its end has come."""
        return self._closing is not None and self._closing.done()

    async def open(self) -> None:
        """Create it, start the broker, greet the supervisor. Raises SandboxError; ``close`` ends it in any case."""
        token = secrets.token_urlsafe(32)
        try:
            async with asyncio.timeout(self._environment.start_seconds) as limit:
                reach = await self._started(token)
        except TimeoutError:
            if not limit.expired():
                raise
            raise SandboxError(f"no sandbox could be started within {self._environment.start_seconds:g} s") from None
        sandbox = self.sandbox
        self._port = reach.port
        self._protocol = self.control.protocol(lambda: None)
        poller = self._poller = Poller(
            reach.url,
            token,
            receive=self._receive,
            on_lost=self._on_lost,
            is_gone=sandbox.is_gone,
            headers=reach.headers,
            wait_seconds=min(self._environment.wait_seconds, self._environment.idle_seconds / 3),  # one poll may be lost
            lost_seconds=self._environment.lost_seconds,
        )
        await poller.open()
        await self.control.greet(_Channel(poller, SUPERVISOR), seal=True)

    async def _started(self, token: str) -> Reach:
        self._making = asyncio.ensure_future(self._environment.create())
        sandbox = await asyncio.shield(self._making)
        path = f"{sandbox.folder}/{NAME}"
        await self.upload(path, _once(archive()))
        told = {"token": token, "host": "127.0.0.1", "port": 0, "idle_seconds": self._environment.idle_seconds, "folder": sandbox.folder}
        return await in_own_task(sandbox.start(path, json.dumps(told).encode() + b"\n"), grace=GRACE_SECONDS)

    async def upload(self, path: str, data: AsyncGenerator[bytes]) -> None:
        """Write a file there. Raises SandboxError."""

        async def upload() -> None:
            async with aclosing(data):
                await self.sandbox.upload(path, data)

        await in_own_task(upload, grace=GRACE_SECONDS)

    def _receive(self, channel: int, data: bytes) -> None:
        if channel == SUPERVISOR:
            assert self._protocol is not None
            self._protocol.data_received(data)
        elif channel == COMMANDS:
            self._on_lost("the supervisor in the sandbox ended")
        elif channel in self._doors:
            self._doors[channel].feed(data)
        elif channel in self._digests:
            assert self._poller is not None
            door = self._doors[channel] = _DoorTransport(self, channel, self._handler.connection())
            door.feed(data)

    def _on_lost(self, reason: str) -> None:
        self.control.lost(reason, f"its sandbox was lost: {reason}")
        for door in list(self._doors.values()):
            door.close()

    def open_door(self, ticket: Ticket) -> tuple[str, str]:
        """Let programs there that are no worker ask in a REPL's name; returns the URL that they use, and the token."""
        assert self._poller is not None
        channel = FIRST_DOOR + next(self._numbers)
        token = ticket.door(lambda: self.shut_door(channel))
        self._digests[channel] = hashlib.sha256(token.encode()).hexdigest()
        command = {"door": self._digests[channel], "channel": channel}
        self._poller.send(COMMANDS, json.dumps(command).encode())
        return f"http://127.0.0.1:{self._port}/enqueue", token

    def shut_door(self, channel: int) -> None:
        """A door's token is worth nothing any more. Harmless a second time."""
        door = self._doors.pop(channel, None)
        if door is not None:
            door.close()
        digest = self._digests.pop(channel, None)
        if digest is not None and self._poller is not None:
            self._poller.send(COMMANDS, json.dumps({"shut": digest}).encode())

    def send(self, channel: int, data: bytes) -> None:
        """Send bytes of a door."""
        if self._poller is not None:
            self._poller.send(channel, data)

    def unsent(self, channel: int) -> int:
        """Bytes of a door that the broker has not said to have."""
        return 0 if self._poller is None else self._poller.unsent(channel)

    async def close(self) -> None:
        """Destroy it. A second call waits for the first. Raises SandboxError when that could not be ordered."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            if self._poller is not None:
                await self._poller.close()
        finally:
            try:
                await self._destroy()
            finally:
                self.control.lost("the sandbox was destroyed")

    async def _destroy(self) -> None:
        if self._making is not None:
            await asyncio.wait({self._making})
            if not self._making.cancelled() and self._making.exception() is None:
                await self._making.result().destroy()


class _Channel:
    """What the supervisor's peer writes to."""

    def __init__(self, poller: Poller, channel: int) -> None:
        self._poller = poller
        self._channel = channel

    def write(self, data: bytes) -> None:
        self._poller.send(self._channel, bytes(data))

    def get_write_buffer_size(self) -> int:
        return self._poller.unsent(self._channel)

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class _DoorTransport(CarriedTransport):
    """A connection that the broker opened for requests to ``/enqueue``."""

    def __init__(self, room: Room, channel: int, connection: Connection) -> None:
        super().__init__(connection)
        self._room = room
        self._channel = channel
        connection.connection_made(self)

    def feed(self, data: bytes) -> None:
        super().feed(data)
        if self._kept_bytes > KEPT_BYTES:
            self.drop(f"more than {KEPT_BYTES:,} bytes came while earlier requests waited")

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self._closed:
            self._room.send(self._channel, bytes(data))

    def get_write_buffer_size(self) -> int:
        return self._room.unsent(self._channel)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._kept.clear()
            self._kept_bytes = 0
            self._room.shut_door(self._channel)
            asyncio.get_running_loop().call_soon(self._connection.connection_lost, None)


class BrokeredPlace(SupervisedPlace):
    """See Place. A lost sandbox is replaced by a fresh one, with the contexts in place."""

    def __init__(self, environment: SandboxEnvironment, handler: LMHandler) -> None:
        self._room = Room(environment, handler)
        self._environment = environment
        self._files: dict[str, Path] = {}  # of contexts: where the host has what stands under a name there
        self._names = itertools.count(1)
        self._renewing = asyncio.Lock()
        self._lost: list[Room] = []
        self._closed = False
        super().__init__(
            self._room.control,
            handler,
            folder="",
            address=None,
            confine=None,
            processes=None,
            holders=Holders(lambda path: str(self._files.get(Path(path).name, path))),
        )

    async def open(self) -> None:
        """Have a sandbox. Raises SandboxError; ``close`` ends it in any case."""
        await self._room.open()
        self._settle()

    def _settle(self) -> None:
        folder = self._room.sandbox.folder
        self._control, self._folder = self._room.control, folder
        self._confine = {
            "read": [f"{folder}/{CONTEXTS}", *(["/"] if self._environment.own_image else [])],
            "write": [],
            "closed": folder,
            "network": self._environment.network,
            "require": False,
            "processes": MAX_PROCESSES,
        }

    async def _renew(self) -> None:
        async with self._renewing:
            if not self._is_lost():
                return
            if self._closed:
                raise SandboxError("the place was closed")
            self._lost.append(self._room)
            await finish(self._room.close, what="a lost sandbox")
            room = Room(self._environment, self._handler)
            try:
                await room.open()
                await self._upload_all(room)
            except BaseException:
                self._lost.append(room)
                await finish(room.close, what="a sandbox that could not be had")
                raise
            self._room = room
            self._settle()

    def _prepare(self, ticket: Ticket) -> None:
        ticket.extra["enqueue"] = list(self._room.open_door(ticket))

    async def put(self, file: ContextFile) -> str:
        """See Place: a copy in the sandbox, which stays until it is destroyed."""
        name = str(next(self._names))
        self._files[name] = file.path
        try:
            await self._renew()
            room = self._room
            await self._upload(room, file.path, name)
            if self._room is not room:  # lost meanwhile, and its successor may have been filled before
                await self._upload(self._room, file.path, name)
        except BaseException:
            self._files.pop(name, None)
            raise
        return self.where(name)

    def where(self, path: str) -> str:
        """See Place: in the sandbox that there is now."""
        return f"{self._room.sandbox.folder}/{CONTEXTS}/{Path(path).name}"

    async def drop(self, path: str) -> None:
        """See Place."""
        self._files.pop(Path(path).name, None)

    async def _upload_all(self, room: Room) -> None:
        for name, path in list(self._files.items()):
            try:
                await self._upload(room, path, name)
            except SandboxError:
                if name in self._files:  # else it was dropped meanwhile
                    raise

    async def _upload(self, room: Room, path: Path, name: str) -> None:
        try:
            await room.upload(f"{room.sandbox.folder}/{CONTEXTS}/{name}", _pieces(path))
        except OSError as error:
            raise SandboxError(f"{path} could not be copied to the sandbox: {told(error)}") from error

    async def close(self) -> None:
        """Destroy the sandbox, and with it all workers; and those lost before whose end was not waited for."""
        self._closed = True
        rooms = {self._room, *(room for room in self._lost if not room.closed)}
        for ended in await asyncio.gather(*(room.close() for room in rooms), return_exceptions=True):
            if isinstance(ended, SandboxError):
                logger.warning("%s", ended)
            elif isinstance(ended, BaseException):
                raise ended


async def _once(data: bytes) -> AsyncGenerator[bytes]:
    yield data


async def _pieces(path: Path) -> AsyncGenerator[bytes]:
    with path.open("rb") as file:  # not by a thread: a cancel would lose what that has opened
        while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
            yield piece
