"""What the broker passes on: bytes between the host's numbered streams, the supervisor, and the doors of ``/enqueue``."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from ..guest import wire
from .streams import COMMANDS, FIRST_DOOR, PACKET_BYTES, SUPERVISOR, Gap, Incoming, Outgoing, Packet

READ_BYTES = 256 * 1024
HELD_BYTES = 16 * 1024 * 1024  # that wait for the host; then the supervisor is not read until some are taken
TAKE_SECONDS = 10.0  # for the supervisor to take what came before; less than the host waits for an answer
MAX_DOORS = 100_000
MAX_ASKED = 2_000  # requests to /enqueue under way with one token
MAX_ASKED_IN_ALL = 4_000
MAX_HELD = 64 * 1024 * 1024  # bytes of bodies of one token's requests, until they wait for the host


class Relay:
    """Everything that is between the host's requests and the processes here. Touched on one event loop only.

    Args:
        supervisor: with pipes as its standard input and output.
        most_asked: requests to ``/enqueue`` under way at once.

    Attributes:
        epoch: names this life of the broker.
        asked: requests to ``/enqueue`` that are under way.
    """

    def __init__(self, supervisor: asyncio.subprocess.Process, most_asked: int = MAX_ASKED_IN_ALL) -> None:
        self.most_asked = most_asked
        self.epoch = secrets.token_hex(8)
        self._supervisor = supervisor
        self._outgoing = Outgoing()
        self._incoming = Incoming()
        self._poll = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._writing = asyncio.Lock()
        self.asked = 0
        self._doors: dict[str, Door] = {}
        self._channels: dict[int, Door] = {}

    # -- the host ---------------------------------------------------------------------------------------------------

    async def pending(self, epoch: str, after: int, seconds: float, most: int = PACKET_BYTES) -> Packet:
        """What waits for the host after it has taken ``after`` pieces, as soon as there is something, or when the time is over.

        Of more than ``most`` bytes the rest comes with the next poll.

        A newer poll ends an older one. Nothing is taken away before the host says in a later request that it has it.
        """
        if epoch not in ("", self.epoch):
            return self._empty()
        if epoch:
            self._taken(after)
        self._poll += 1
        mine = self._poll
        self._tell()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._outgoing.size == 0 and mine == self._poll and (left := deadline - loop.time()) > 0:
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except asyncio.TimeoutError:  # noqa: UP041 - another class on Python 3.10
                break
        return Packet(self.epoch, self._incoming.after, *self._outgoing.next(most)) if mine == self._poll else self._empty()

    def _empty(self) -> Packet:
        return Packet(self.epoch, self._incoming.after, 1, [])

    async def respond(self, packet: Packet) -> Packet:
        """Take the host's pieces, each once; says up to which they were taken.

        Raises Refused when the supervisor does not read: none is taken then.
        """
        if packet.epoch == self.epoch:
            self._taken(packet.after)
            await self._drain()
            try:
                new = self._incoming.take(packet)
            except Gap:
                new = []  # the host sends from there on again
            for channel, data in new:
                self._deliver(channel, data)
        return self._empty()

    async def _drain(self) -> None:
        """Wait until the supervisor has read nearly all that was written to it, so that no more than a body waits for it."""
        stdin = self._supervisor.stdin
        if stdin is None or not stdin.transport.get_write_buffer_size():
            return
        try:
            await asyncio.wait_for(self._drained(stdin), TAKE_SECONDS)
        except asyncio.TimeoutError:  # noqa: UP041 - another class on Python 3.10
            raise Refused("the supervisor does not read") from None

    async def _drained(self, stdin: asyncio.StreamWriter) -> None:
        async with self._writing:  # one at a time: Python 3.10 has a single waiter
            try:
                await stdin.drain()
            except ConnectionError:
                pass  # it has ended, which the host is told elsewhere

    def _taken(self, after: int) -> None:
        self._outgoing.taken(after)
        if self._outgoing.size < HELD_BYTES:
            self._room.set()

    def _deliver(self, channel: int, data: bytes) -> None:
        if channel == SUPERVISOR:
            if self._supervisor.stdin is not None and not self._supervisor.stdin.is_closing():
                self._supervisor.stdin.write(data)
        elif channel == COMMANDS:
            self._command(data)
        elif channel in self._channels:
            self._channels[channel].receive(data)

    def _command(self, data: bytes) -> None:
        try:
            command = json.loads(data)
        except (ValueError, RecursionError):
            return
        match command:
            case {"door": str(name), "channel": int(channel)} if channel >= FIRST_DOOR and len(self._doors) < MAX_DOORS:
                if name not in self._doors and channel not in self._channels:
                    self._doors[name] = self._channels[channel] = Door(self, channel)
            case {"shut": str(name)} if name in self._doors:
                door = self._doors.pop(name)
                self._channels.pop(door.channel, None)
                door.shut("the REPL that this token belonged to is over")

    def send(self, channel: int, data: bytes) -> None:
        """Send bytes to the host."""
        self._outgoing.put(channel, data)
        self._tell()
        if self._outgoing.size >= HELD_BYTES:
            self._room.clear()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()  # not cleared: until Python 3.12 `wait_for` begins to wait a turn later, and would miss it

    async def read_supervisor(self) -> None:
        """Pass on what the supervisor says, until it ends."""
        assert self._supervisor.stdout is not None
        while data := await self._supervisor.stdout.read(READ_BYTES):
            self.send(SUPERVISOR, data)
            await self.room()
        self.send(COMMANDS, json.dumps({"ended": await self._supervisor.wait()}).encode())

    async def room(self) -> None:
        """Wait until no more than HELD_BYTES wait for the host."""
        while not self._room.is_set():  # who was let in before may have filled it again
            await self._room.wait()

    # -- /enqueue ---------------------------------------------------------------------------------------------------

    def door(self, token: str) -> Door | None:
        """What a guest's token opens; None when it opens nothing. How long that takes says nothing about the token."""
        found = self._doors.get(digest(token))
        if found is not None:
            found.token = token
        return found


def digest(token: str) -> str:
    """What the host tells of a guest's token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def same(given: str, wanted: str) -> bool:
    """Whether two tokens are the same, in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode())


class Refused(Exception):
    """A request will not be answered; the text says why."""


class Busy(Refused):
    """Too much is under way."""


class Door:
    """A connection to the host for the requests that come to ``/enqueue`` with one token; it says hello at the first.

    Attributes:
        token: once somebody came with it. The host tells its digest alone.
    """

    def __init__(self, relay: Relay, channel: int) -> None:
        self.channel = channel
        self.token = ""
        self._relay = relay
        self._decoder = wire.Decoder()
        self._entered = False
        self._over: str | None = None
        self._numbers = 0
        self._under_way = 0
        self._held = 0
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request as under way. Raises Busy when there are too many."""
        if self._under_way >= MAX_ASKED:
            raise Busy(f"{MAX_ASKED:,} requests are under way with this token: wait for answers")
        if self._relay.asked >= self._relay.most_asked:
            raise Busy(f"{self._relay.most_asked:,} requests are under way: wait for answers")
        self._under_way += 1
        self._relay.asked += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._relay.asked -= 1

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Gives what is told of each part of a body: they count until the block ends. It raises Busy when all bodies are too large."""
        size = 0

        def hold(more: int) -> None:
            nonlocal size
            size += more
            self._held += more
            if self._held > MAX_HELD:
                raise Busy(f"bodies of more than {MAX_HELD:,} bytes are being sent at once: wait for some of them")

        try:
            yield hold
        finally:
            self._held -= size

    def ask(self, method: str, args: dict[str, Any]) -> Coroutine[Any, Any, dict[str, Any]]:
        """Ask the host; what is returned waits for its answer, which has ``ok`` or ``error``. Cancelled there, the host is told.

        Raises:
            Refused: now or later.
            ValueError, RecursionError: the arguments cannot be sent.
        """
        if self._over is not None:
            raise Refused(self._over)
        self._numbers += 1
        frames = wire.encode({"id": self._numbers, "call": method, "args": args})
        if not self._entered:
            self._entered = True
            self._send(wire.encode({"hello": wire.VERSION, "token": self.token}))
        answer = self._asked[self._numbers] = asyncio.get_running_loop().create_future()
        self._send(frames)
        return self._answer(self._numbers, answer)

    async def _answer(self, number: int, answer: asyncio.Future[dict[str, Any]]) -> dict[str, Any]:
        try:
            return await answer
        finally:
            self._asked.pop(number, None)
            if answer.cancelled() and self._over is None:
                self._send(wire.encode({"cancel": number}))

    def _send(self, frames: list[bytes]) -> None:
        self._relay.send(self.channel, b"".join(frames))

    def receive(self, data: bytes) -> None:
        """Take bytes of the host."""
        try:
            for message in self._decoder.feed(data):
                if "bye" in message:
                    self.shut(str(message["bye"]))
                    return
                answer = self._asked.get(message.get("id", 0))
                if answer is not None and not answer.done():
                    answer.set_result({name: message[name] for name in ("ok", "error") if name in message})
        except wire.WireError as error:
            self.shut(f"what the host said could not be read: {error}")

    def shut(self, reason: str) -> None:
        """No more answers come."""
        self._over = reason
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(Refused(reason))
