"""Two numbered streams of pieces, one in each direction, over requests that may be lost, repeated, late or cut. Both sides import this.

A *piece* is some bytes on a *channel*; pieces are numbered from 1. What was sent is kept until the other side has said that it has it, and
what comes twice is taken once. A *packet* carries consecutive pieces in one HTTP body:

    one line: a sum, a space, {"epoch": …, "asked": …, "after": …, "first": …, "pieces": [[channel, bytes], …]}\\n
    the bytes of the pieces, one after the other

``epoch`` names one life of the broker, ``asked`` the request that is answered, ``after`` is how many pieces of the other direction
have been taken, ``sum`` is BLAKE2b over the line without it and the bytes: gateways cut bodies, answer with pages of their own, and
serve old answers again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from dataclasses import dataclass

TOKEN = "x-arlm-token"  # noqa: S105 - the header; not Authorization, which gateways use themselves
CONTEXTS = "contexts"  # below the folder that a broker is told: what the host puts there for workers
SUPERVISOR, COMMANDS, FIRST_DOOR = 0, 1, 2  # channels; each door of /enqueue has one from the third on
SUM_BYTES = 16
LINE_BYTES = 256 * 1024  # of a packet's first line
MAX_PIECES = 4_096  # in one packet
PACKET_BYTES = 4 * 1024 * 1024  # in one packet, as far as pieces are smaller
PIECE_BYTES = 256 * 1024  # of one piece; many gateways take a megabyte in a body, if not told otherwise
BODY_BYTES = 16 * 1024 * 1024  # of a body that is read at all


class Broken(Exception):
    """A body that is no packet, or not a whole one."""


class Gap(Exception):
    """Pieces came whose predecessors did not."""


@dataclass(frozen=True)
class Packet:
    """Consecutive pieces.

    Attributes:
        epoch: the broker's life that it belongs to; empty while the host does not know it.
        after: how many pieces of the other direction the sender has taken.
        first: the number of the first piece.
        pieces: channel and bytes of each.
        asked: in an answer, what its request was called by the query's ``asked``: another one's answer is told by it.
    """

    epoch: str
    after: int
    first: int
    pieces: list[tuple[int, bytes]]
    asked: str = ""

    def pack(self) -> bytes:
        """As a body."""
        facts = {
            "epoch": self.epoch,
            "asked": self.asked,
            "after": self.after,
            "first": self.first,
            "pieces": [[channel, len(data)] for channel, data in self.pieces],
        }
        line = json.dumps(facts, separators=(",", ":")).encode() + b"\n"
        data = b"".join(data for _, data in self.pieces)
        return b"".join((_sum(line, data), b" ", line, data))


def _sum(line: bytes, data: bytes | memoryview) -> bytes:
    said = hashlib.blake2b(line, digest_size=SUM_BYTES)
    said.update(data)
    return said.hexdigest().encode()


def unpack(body: bytes) -> Packet:
    """Read a body. Raises Broken, whatever it is."""
    end = body.find(b"\n", 0, LINE_BYTES) + 1
    told, _, line = body[:end].partition(b" ")
    data = memoryview(body)[end:]
    if not line or told != _sum(line, data):
        raise Broken("it is no packet, or was cut or changed on its way")
    try:
        facts = json.loads(line)
        return Packet(
            _text(facts["epoch"]),
            _number(facts["after"]),
            _number(facts["first"]),
            list(_cut(facts["pieces"], data)),
            _text(facts["asked"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Broken("it has the sum of a packet, and is none") from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


def _cut(sizes: list[list[int]], data: memoryview) -> list[tuple[int, bytes]]:
    if len(sizes) > MAX_PIECES or sum(_number(size) for _, size in sizes) != len(data):
        raise ValueError
    pieces = []
    start = 0
    for channel, size in sizes:
        pieces.append((_number(channel), bytes(data[start : start + size])))
        start += size
    return pieces


class Outgoing:
    """What is to be sent, kept until the other side has it.

    Attributes:
        size: bytes that wait.
    """

    def __init__(self) -> None:
        self._pieces: deque[tuple[int, bytes]] = deque()
        self._first = 1
        self._waiting: Counter[int] = Counter()
        self.size = 0

    @property
    def last(self) -> int:
        """The number of the newest piece; of the one before the first where nothing waits."""
        return self._first + len(self._pieces) - 1

    def put(self, channel: int, data: bytes) -> None:
        """Add bytes."""
        for start in range(0, len(data), PIECE_BYTES):
            self._pieces.append((channel, data[start : start + PIECE_BYTES]))
        self.size += len(data)
        self._waiting[channel] += len(data)

    def waiting(self, channel: int) -> int:
        """Bytes of one channel that wait."""
        return self._waiting[channel]

    def taken(self, after: int) -> None:
        """The other side has all up to a number. One that was never sent, or an old one, changes nothing."""
        while self._pieces and self._first <= after <= self.last:
            channel, data = self._pieces.popleft()
            self._first += 1
            self.size -= len(data)
            self._waiting[channel] -= len(data)
            if not self._waiting[channel]:
                del self._waiting[channel]

    def next(self, most: int = PACKET_BYTES) -> tuple[int, list[tuple[int, bytes]]]:
        """The number of the first piece that waits, and as many from it on as a packet of ``most`` bytes carries: one at least."""
        chosen: list[tuple[int, bytes]] = []
        size = 0
        for piece in self._pieces:
            if len(chosen) >= MAX_PIECES or (chosen and size + len(piece[1]) > most):
                break
            chosen.append(piece)
            size += len(piece[1])
        return self._first, chosen


class Incoming:
    """What has come, each piece once and in order.

    Attributes:
        after: how many pieces were taken.
    """

    def __init__(self) -> None:
        self.after = 0

    def take(self, packet: Packet) -> list[tuple[int, bytes]]:
        """The pieces of a packet that are new. Raises Gap when some are missing before them; nothing is taken then."""
        if packet.first > self.after + 1:
            raise Gap(f"pieces from {packet.first} came after {self.after}")
        new = packet.pieces[self.after + 1 - packet.first :]
        self.after += len(new)
        return new
