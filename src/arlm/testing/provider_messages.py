"""What the scripted provider receives and sends, as bytes: requests, whole bodies, server-sent events. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .provider_script import Script
from .wires.base import Answer, Asked, Event, Trouble, Wire

LAST_CHUNK = b"0\r\n\r\n"
_REASONS = {
    **{200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 411: "Length Required"},
    **{413: "Content Too Large", 429: "Too Many Requests", 500: "Internal Server Error", 502: "Bad Gateway"},
    **{503: "Service Unavailable", 504: "Gateway Timeout", 529: "Overloaded"},
}


class Request(NamedTuple):
    """A request as it came in."""

    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes

    def shown(self, wire: str, body: Any) -> dict[str, Any]:
        """It as the board keeps it."""
        return {"wire": wire, "path": self.path, "query": self.query, "headers": dict(self.headers), "body": body}


class Sent(NamedTuple):
    """A body on its way out. One that is streamed is chunked already; ``extra`` are further header lines."""

    body: bytes
    kind: str = "application/json"
    extra: str = ""
    chunked: bool = False

    def head(self, status: int) -> bytes:
        """The head in front of it."""
        length = "Transfer-Encoding: chunked" if self.chunked else f"Content-Length: {len(self.body)}"
        reason = _REASONS.get(status, "Error")
        return f"HTTP/1.1 {status} {reason}\r\nContent-Type: {self.kind}\r\n{length}\r\n{self.extra}\r\n".encode("latin-1")


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was let in, with its answer."""

    wire: Wire
    asked: Asked
    answer: Answer

    def body(self, script: Script, number: int) -> Sent:
        """The reply."""
        extra = f"{self.wire.id_header}: req_{number}\r\n"
        if self.asked.stream:
            return _streamed(self.wire.events(self.asked, self.answer, script, number), extra)
        return Sent(json.dumps(self.wire.reply(self.asked, self.answer, script, number)).encode(), extra=extra)

    def broken(self) -> Sent:
        """A reply that is not JSON."""
        return (
            _chunked([b'event: message_start\ndata: {"type": "message_start", "mess\n\n'])
            if self.asked.stream
            else Sent(b'{"choices": [{"mess')
        )

    def interrupted(self, script: Script, number: int) -> Sent:
        """A stream in which an error takes the place of the second half."""
        events = self.wire.events(self.asked, self.answer, script, number)
        _, error = self.wire.error(Trouble(what="fault", status=529), number)
        return _streamed([*events[: len(events) // 2], ("error", error)], f"{self.wire.id_header}: req_{number}\r\n")


def _streamed(events: Iterable[Event], extra: str) -> Sent:
    return _chunked([f"event: {name}\ndata: {json.dumps(data)}\n\n".encode() for name, data in events], extra)


def _chunked(chunks: Iterable[bytes], extra: str = "") -> Sent:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + LAST_CHUNK
    return Sent(body, kind="text/event-stream; charset=utf-8", extra=extra, chunked=True)
