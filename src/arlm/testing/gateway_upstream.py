"""The gateway's way upstream: one connection a request, and the replies it keeps. Standard library only."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from .gateway_http import LAST_CHUNK, LONGEST_HEAD, Answered, Body, Broken, Head, Length, framed, part, read_head

KEPT_PATHS = 32
KEPT_REPLIES = 4  # of one path
KEPT_BYTES = 2**18  # a longer reply is not kept


class Absent(Exception):
    """There is no upstream, or nothing listens there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A reply whose head has come. ``length`` is how its body may be framed for the client."""

    head: Head
    length: Length
    body: Body


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request that is here as a whole."""

    number: int
    head: Head
    body: bytes = field(repr=False)

    @property
    def method(self) -> str:
        """GET, POST and so on."""
        return self.head.words[0]

    @property
    def path(self) -> str:
        """Without the query."""
        return self.head.words[1].partition("?")[0]

    @property
    def length(self) -> Length:
        """How it is sent: with its length, or without one where the client named none and sent nothing."""
        return "none" if self.head.length == "none" else len(self.body)

    def with_body(self, body: bytes) -> Ask:
        """The same request with another body, and the length that is true of it."""
        return replace(self, body=body)


def address(url: str) -> tuple[str, int]:
    """Host and port of ``http://HOST:PORT``. Raises ValueError for anything else."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or not parts.port or parts.path.strip("/") or parts.query:
        raise ValueError("an upstream is http://HOST:PORT, without a path")
    return parts.hostname, parts.port


@asynccontextmanager
async def exchange(upstream: tuple[str, int] | None, head: Head, length: Length, body: Body) -> AsyncIterator[Reply]:
    """Send a request, its body as it comes, and give the reply as soon as its head is here. The connection ends with the block.

    Raises:
        Absent: upstream does not listen; nothing was sent.
        Broken: upstream (or the client, in mid-body) left or broke the protocol; it may have seen the request.
    """
    reader, writer = await _connect(upstream)
    upload = asyncio.create_task(_upload(writer, head.encoded(length, close=True), length, body), name="a gateway's upload")
    try:
        yield await _reply(reader, head.words[0])
    finally:
        writer.transport.abort()
        upload.cancel()
        await asyncio.wait({upload})  # nobody else may read the body before it has let go


async def fetch(upstream: tuple[str, int] | None, ask: Ask, answering: Callable[[int], object]) -> Answered:
    """Send a request and read the whole reply. ``answering`` is called with its number when the reply begins. Raises like `exchange`."""
    async with exchange(upstream, ask.head, ask.length, Body.of(ask.body)) as reply:
        answering(ask.number)
        has_body = not reply.body.ended
        body = await reply.body.whole()
        return Answered(head=reply.head, length=len(body) if has_body else reply.length, body=body)


async def send_cut(upstream: tuple[str, int] | None, ask: Ask, keep: float) -> None:
    """Send a request whose body ends early, and end the connection there. Raises like `exchange`."""
    _, writer = await _connect(upstream)
    try:
        writer.write(ask.head.encoded(len(ask.body)) + ask.body[: part(len(ask.body), keep)])
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    except OSError as error:
        raise Broken("upstream left") from error
    finally:
        writer.transport.abort()


class Kept:
    """The last replies, by method and path. A long one is not kept."""

    def __init__(self) -> None:
        self._replies: OrderedDict[tuple[str, str], deque[Answered]] = OrderedDict()

    def keep(self, method: str, path: str, answered: Answered) -> None:
        """Keep a reply; of its path the oldest goes, of all paths the one that was answered least recently."""
        if len(answered.body) > KEPT_BYTES:
            return
        self._replies.setdefault((method, path), deque(maxlen=KEPT_REPLIES)).append(answered)
        self._replies.move_to_end((method, path))
        if len(self._replies) > KEPT_PATHS:
            self._replies.popitem(last=False)

    def find(self, method: str, path: str, back: int) -> Answered | None:
        """The reply so many replies ago, or the oldest kept; None where there is none."""
        replies = self._replies.get((method, path))
        return replies[-min(back, len(replies))] if replies else None


async def _connect(upstream: tuple[str, int] | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if upstream is None:
        raise Absent
    try:
        return await asyncio.open_connection(*upstream, limit=LONGEST_HEAD)
    except OSError as error:
        raise Absent from error


async def _upload(writer: asyncio.StreamWriter, head: bytes, length: Length, body: Body) -> None:
    try:
        writer.write(head)
        while piece := await body.read():
            writer.write(framed(piece, length))
            await writer.drain()
        if length == "chunked":
            writer.write(LAST_CHUNK)
    except OSError:
        pass  # upstream wants no more of it; it may have answered all the same
    except Broken:
        writer.transport.abort()  # the client left: upstream is not to wait for the rest


async def _reply(reader: asyncio.StreamReader, method: str) -> Reply:
    while True:
        head = await read_head(reader)
        if head is None:
            raise Broken("upstream left without a reply")
        if not head.words[1].startswith("1"):
            break  # the gateway itself has said `100 Continue`
    _, status, reason = head.words
    head = Head(words=("HTTP/1.1", status, reason), fields=head.fields)
    if method == "HEAD" or status in ("204", "304"):
        declared = head.length
        return Reply(head=head, length=declared if isinstance(declared, int) else "none", body=Body(reader, 0))
    length: Length = "close" if head.length == "none" else head.length
    return Reply(head=head, length="chunked" if length == "close" else length, body=Body(reader, length))
