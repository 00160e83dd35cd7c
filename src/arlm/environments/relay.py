"""Relayed connections: the frames of workers that no socket reaches travel inside their supervisor's connection."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from ..server import peer as peers
from ..server.connection import Connection
from ..server.peer import Peer
from .carried import CarriedTransport

KEPT_BYTES = 256 * 1024 * 1024  # of one that sends on while it is not read


class RelayRoad:
    """What the relayed workers of one supervisor share: its connection, and the bytes that wait in it.

    Attributes:
        peer: the supervisor, once it is there.
    """

    def __init__(self) -> None:
        self.peer: Peer | None = None
        self._open: set[RelayTransport] = set()

    def add(self, relay: RelayTransport) -> None:
        """A relay was opened."""
        self._open.add(relay)

    def remove(self, relay: RelayTransport) -> None:
        """It was closed; what it wrote counts for nobody any more."""
        self._open.discard(relay)

    def taken(self) -> int:
        """Bytes that the supervisor has taken so far."""
        peer = self.peer
        return 0 if peer is None else peer.written - peer.unsent

    def send(self, relay: RelayTransport, data: bytes) -> tuple[int, int]:
        """Send bytes to a worker; returns where they end in the connection, and their size there."""
        peer = self.peer
        if peer is None:
            return 0, 0
        before = peer.written
        peer.note({"note": "relay", "worker": relay.worker, "data": data.decode("latin-1")})
        return peer.written, peer.written - before

    def relieve(self) -> None:
        """When too much waits, drop the worker for which most of it does: only that one is lost."""
        peer = self.peer
        while self._open and peer is not None and peer.unsent > peers.MAX_UNSENT:
            waiting = {relay: relay.get_write_buffer_size() for relay in self._open}
            if sum(waiting.values()) <= peers.MAX_UNSENT:
                return
            most = max(waiting, key=lambda relay: waiting[relay])
            self._open.discard(most)
            most.drop(f"the worker does not read: {waiting[most]:,} bytes wait for it")


class RelayTransport(CarriedTransport):
    """A worker's connection whose bytes travel inside the supervisor's: for places with no socket to reach."""

    def __init__(self, road: RelayRoad, worker: str, connection: Connection) -> None:
        super().__init__(connection)
        self.worker = worker
        self._road = road
        self._ended = False
        self._written: deque[tuple[int, int]] = deque()  # where in the supervisor's connection each piece ends, and its size
        self._unsent = 0
        road.add(self)
        connection.connection_made(self)

    def feed(self, data: bytes) -> None:
        """Bytes from the worker. One cannot be held up without all: where too much is kept, this one is dropped."""
        super().feed(data)
        if self._kept_bytes > KEPT_BYTES:
            self.drop(f"more than {KEPT_BYTES:,} bytes came while earlier requests waited")

    def ended(self) -> None:
        """The worker is gone. What it sent before is read first."""
        self._ended = True
        if not self._closed and not self._paused and not self._kept:
            self._lose()

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Bytes to the worker."""
        if not self._closed:
            end, size = self._road.send(self, bytes(data))
            self._written.append((end, size))
            self._unsent += size
            self._road.relieve()

    def close(self) -> None:
        """End it; the protocol is told on the next turn of the loop, as with a socket."""
        if not self._closed:
            self._shut()
            asyncio.get_running_loop().call_soon(self._connection.connection_lost, None)

    def _lose(self) -> None:
        self._shut()
        self._connection.connection_lost(None)

    def _shut(self) -> None:
        self._closed = True
        self._kept.clear()
        self._kept_bytes = 0
        self._road.remove(self)

    def get_write_buffer_size(self) -> int:
        """Bytes written that the supervisor has not taken."""
        taken = self._road.taken()
        while self._written and self._written[0][0] <= taken:
            self._unsent -= self._written.popleft()[1]
        return self._unsent

    def _drain(self) -> None:
        super()._drain()
        if self._ended and not self._kept and not self._paused and not self._closed:
            self._lose()
