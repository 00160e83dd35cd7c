"""The HTTP/1.1 that the gateway speaks on both its sides: heads, bodies, framing. Standard library only."""

from __future__ import annotations

import asyncio
import json
import math
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Literal, TypeAlias

from .gateway_faults import AnswerInstead

LONGEST_HEAD = 2**16  # bytes
PIECE = 2**16  # bytes of a body passed on at once
LAST_CHUNK = b"0\r\n\r\n"

# Between two neighbours only; a length is written anew for what is sent.
_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect", "content-length"}
_HEX = re.compile(rb"[0-9A-Fa-f]{1,15}")
_SHORT_NUMBER = re.compile(r"[A-Za-z_]\w{0,15}=\d{1,9}")  # a cursor, a wait: too short for a token

Length: TypeAlias = int | Literal["chunked", "close", "none"]


class Broken(Exception):
    """A peer left in mid-message, or what it sent is not HTTP/1.1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A request's or a reply's first line, in three words, and its header fields. The repr shows neither: tokens stand there."""

    words: tuple[str, str, str] = field(repr=False)
    fields: tuple[tuple[str, str], ...] = field(repr=False)

    def get(self, name: str) -> str:
        """All values of a field, joined by commas, lower case; empty where there is none."""
        return ", ".join(value for key, value in self.fields if key.lower() == name).lower()

    @property
    def length(self) -> Length:
        """How the body is framed, as far as the header says. Raises Broken where that cannot be read."""
        coding, size = self.get("transfer-encoding"), self.get("content-length")
        if coding:
            if coding != "chunked" or size:
                raise Broken("a transfer-encoding that is not `chunked` alone")
            return "chunked"
        if size and not (size.isascii() and size.isdigit()):
            raise Broken("a content-length that is no number")
        return int(size) if size else "none"

    @property
    def closes(self) -> bool:
        """Whether the sender wants the connection to end after this message."""
        return "close" in self.get("connection")

    def encoded(self, length: Length, *, close: bool = False) -> bytes:
        """The head as bytes, for a body framed like this; ``close`` announces the connection's end."""
        dropped = _HOP | {name.strip() for name in self.get("connection").split(",")}
        lines = [" ".join(self.words), *(f"{name}: {value}" for name, value in self.fields if name.lower() not in dropped)]
        if isinstance(length, int):
            lines.append(f"content-length: {length}")
        elif length == "chunked":
            lines.append("transfer-encoding: chunked")
        if close:
            lines.append("connection: close")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


class Body:
    """A body that is read piece by piece."""

    def __init__(self, reader: asyncio.StreamReader, length: Length) -> None:
        self._reader = reader
        self._chunked = length == "chunked"
        self._until_close = length == "close"
        self._left: float = length if isinstance(length, int) else (math.inf if self._until_close else 0)
        self.ended = not self._chunked and self._left == 0

    @classmethod
    def of(cls, data: bytes) -> Body:
        """A body that is here already."""
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return cls(reader, len(data))

    async def read(self) -> bytes:
        """The next piece; empty at the end. Raises Broken where the peer leaves before that."""
        try:
            if self._chunked and self._left == 0 and not self.ended:
                await self._next_chunk()
            if self.ended:
                return b""
            data = await self._reader.read(int(min(PIECE, self._left)))
            self._left -= len(data)
            if self._chunked and self._left == 0 and await self._reader.readexactly(2) != b"\r\n":
                raise Broken("a chunk longer than its length")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError) as error:
            raise Broken("a body cannot be read to its end") from error
        if not data and not self._until_close:
            raise Broken("a body ended early")
        self.ended = not data or (not self._chunked and self._left == 0)
        return data

    async def whole(self) -> bytes:
        """All that is left of it."""
        pieces = []
        while piece := await self.read():
            pieces.append(piece)
        return b"".join(pieces)

    async def _next_chunk(self) -> None:
        size = (await self._reader.readuntil(b"\r\n")).partition(b";")[0].strip()
        if not _HEX.fullmatch(size):
            raise Broken("a chunk without a length")
        self._left = int(size, 16)
        if self._left == 0:
            while await self._reader.readuntil(b"\r\n") != b"\r\n":
                pass  # a trailer
            self.ended = True


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """The next message's head; None where the peer has left instead. Raises Broken."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise Broken("a head ended early") from None
        return None
    except (asyncio.LimitOverrunError, OSError) as error:
        raise Broken("a head cannot be read to its end") from error
    first, *lines = raw[:-4].decode("latin-1").split("\r\n")
    words = [*first.split(" ", 2), ""]
    fields = [line.partition(":") for line in lines]
    if len(words) < 3 or not all(colon and name.strip() == name for name, colon, _ in fields):
        raise Broken("what should be a head is none")
    return Head(words=(words[0], words[1], words[2]), fields=tuple((name, value.strip()) for name, _, value in fields))


def framed(piece: bytes, length: Length) -> bytes:
    """A piece of a body as it is written."""
    return b"%x\r\n%b\r\n" % (len(piece), piece) if length == "chunked" else piece


def shown(target: str) -> str:
    """A request's target as a log may have it: of its query, the names, and the values that are numbers of at most nine digits."""
    path, _, query = target.partition("?")
    return f"{path}?{'&'.join(_shown_pair(pair) for pair in query.split('&'))}" if query else path


def _shown_pair(pair: str) -> str:
    if _SHORT_NUMBER.fullmatch(pair):
        return pair
    name, _, value = pair.partition("=")
    return f"{name}=…" if value.strip("=") else "…"  # a bare word, padded perhaps, may be a token itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A reply that is here as a whole."""

    head: Head
    length: Length
    body: bytes = field(repr=False)

    @classmethod
    def by_gateway(cls, answer: AnswerInstead, method: str) -> Answered:
        """What a gateway says on its own."""
        told = f"{answer.status} {_reason(answer.status)}"
        page = f"<!doctype html><html><head><title>{told}</title></head><body><h1>{told}</h1></body></html>".encode()
        body = page if answer.html else json.dumps({"error": f"gateway: {told}"}).encode()
        kind = "text/html; charset=utf-8" if answer.html else "application/json"
        head = Head(words=("HTTP/1.1", str(answer.status), _reason(answer.status)), fields=(("content-type", kind),))
        return cls(head=head, length=len(body), body=b"" if method == "HEAD" else body)

    def with_body(self, body: bytes) -> Answered:
        """The same reply with another body, and the length that is true of it."""
        return Answered(head=self.head, length=len(body), body=body)

    def encoded(self, *, close: bool = False) -> bytes:
        """As it is written."""
        return self.head.encoded(self.length, close=close) + self.body

    def cut(self, share: float) -> bytes:
        """The first part of it as it is written, with at least one byte missing."""
        whole = self.encoded()
        begun = len(whole) - len(self.body) if self.body else 0
        return whole[: begun + part(len(whole) - begun, share)]


def part(size: int, share: float) -> int:
    """How many of ``size`` bytes (at least one) are kept where this share of them is: never all."""
    return min(int(size * share), size - 1)


def inverted(data: bytes, at: float, count: int) -> bytes:
    """The data with ``count`` bytes inverted, from the share ``at`` on."""
    begin = int(len(data) * at)
    return data[:begin] + bytes(byte ^ 0xFF for byte in data[begin : begin + count]) + data[begin + count :]


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
