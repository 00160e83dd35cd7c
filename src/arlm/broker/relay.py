"""What the broker passes on: bytes between the host's numbered streams, the supervisor, and the doors of ``/enqueue``."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
from typing import Any

from ..guest import wire
from .streams import COMMANDS, SUPERVISOR, Gap, Incoming, Outgoing, Packet

READ_BYTES = 256 * 1024
HELD_BYTES = 64 * 1024 * 1024  # that wait for the host; then the supervisor is not read until some are taken
MAX_DOORS = 100_000


class Relay:
    """Everything that is between the host's requests and the processes here. Touched on one event loop only.

    Attributes:
        epoch: names this life of the broker.
    """

    def __init__(self, supervisor: asyncio.subprocess.Process) -> None:
        self.epoch = secrets.token_hex(8)
        self._supervisor = supervisor
        self._outgoing = Outgoing()
        self._incoming = Incoming()
        self._poll = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._doors: dict[str, Door] = {}
        self._channels: dict[int, Door] = {}

    # -- the host ---------------------------------------------------------------------------------------------------

    async def pending(self, epoch: str, after: int, seconds: float) -> Packet:
        """What waits for the host after it has taken ``after`` pieces, as soon as there is something, or when the time is over.

        A newer poll ends an older one. Nothing is taken away before the host says in a later request that it has it.
        """
        if epoch not in ("", self.epoch):
            return Packet(self.epoch, self._incoming.after, 1, [])
        if epoch:
            self._taken(after)
        self._poll += 1
        mine = self._poll
        self._tell()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._outgoing.size == 0 and mine == self._poll and (left := deadline - loop.time()) > 0:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except asyncio.TimeoutError:  # noqa: UP041 - another class on Python 3.10
                break
        first, pieces = self._outgoing.next() if mine == self._poll else (self._outgoing.last + 1, [])
        return Packet(self.epoch, self._incoming.after, first, pieces)

    async def respond(self, packet: Packet) -> Packet:
        """Take the host's pieces, each once; says up to which they were taken."""
        if packet.epoch == self.epoch:
            self._taken(packet.after)
            try:
                new = self._incoming.take(packet)
            except Gap:
                new = []  # the host sends from there on again
            for channel, data in new:
                self._deliver(channel, data)
            if new and self._supervisor.stdin is not None:
                try:
                    await self._supervisor.stdin.drain()
                except ConnectionError:
                    pass  # it has ended, which the host is told elsewhere
        return Packet(self.epoch, self._incoming.after, 1, [])

    def _taken(self, after: int) -> None:
        self._outgoing.taken(after)
        if self._outgoing.size < HELD_BYTES:
            self._room.set()

    def _deliver(self, channel: int, data: bytes) -> None:
        if channel == SUPERVISOR:
            if self._supervisor.stdin is not None and not self._supervisor.stdin.is_closing():
                self._supervisor.stdin.write(data)
        elif channel == COMMANDS:
            self._command(json.loads(data))
        elif channel in self._channels:
            self._channels[channel].receive(data)

    def _command(self, command: dict[str, Any]) -> None:
        digest = str(command.get("door") or command.get("shut"))
        if "door" in command and len(self._doors) < MAX_DOORS:
            self._doors[digest] = self._channels[command["channel"]] = Door(self, command["channel"])
        elif "shut" in command and digest in self._doors:
            door = self._doors.pop(digest)
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

    async def read_supervisor(self) -> None:
        """Pass on what the supervisor says, until it ends."""
        assert self._supervisor.stdout is not None
        while data := await self._supervisor.stdout.read(READ_BYTES):
            self.send(SUPERVISOR, data)
            await self._room.wait()
        self.send(COMMANDS, json.dumps({"ended": await self._supervisor.wait()}).encode())

    # -- /enqueue ---------------------------------------------------------------------------------------------------

    def door(self, token: str) -> Door | None:
        """What a guest's token opens; None when it opens nothing. How long that takes says nothing about the token."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
        found = self._doors.get(digest)
        if found is not None:
            found.enter(token)
        return found


def same(given: str, wanted: str) -> bool:
    """Whether two tokens are the same, in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode())


class Refused(Exception):
    """The host will not answer; the text says why."""


class Door:
    """A connection to the host for the requests that come to ``/enqueue`` with one token; it says hello at the first."""

    def __init__(self, relay: Relay, channel: int) -> None:
        self.channel = channel
        self._relay = relay
        self._decoder = wire.Decoder()
        self._entered = False
        self._over: str | None = None
        self._numbers = 0
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}

    def enter(self, token: str) -> None:
        """Say hello, once."""
        if not self._entered and self._over is None:
            self._entered = True
            self._send({"hello": wire.VERSION, "token": token})

    async def call(self, method: str, args: dict[str, Any]) -> dict[str, Any]:
        """Ask the host; its answer has ``ok`` or ``error``. Raises Refused. Cancelled, the host is told."""
        if self._over is not None:
            raise Refused(self._over)
        self._numbers += 1
        number = self._numbers
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self._send({"id": number, "call": method, "args": args})
        try:
            return await answer
        finally:
            if self._asked.pop(number, None) is not None and self._over is None and not answer.done():
                self._send({"cancel": number})

    def _send(self, message: dict[str, Any]) -> None:
        self._relay.send(self.channel, b"".join(wire.encode(message)))

    def receive(self, data: bytes) -> None:
        """Take bytes of the host."""
        for message in self._decoder.feed(data):
            if "bye" in message:
                self.shut(str(message["bye"]))
                return
            answer = self._asked.get(message.get("id", 0))
            if answer is not None and not answer.done():
                answer.set_result({name: message[name] for name in ("ok", "error") if name in message})

    def shut(self, reason: str) -> None:
        """No more answers come."""
        self._over = reason
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(Refused(reason))
