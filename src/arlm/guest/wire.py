"""The wire: 4-byte big-endian length, then one JSON object. One module for both sides.

Messages (``id`` is a positive integer, chosen by the asking side; both sides may ask):

    {"hello": VERSION, "token": "…"}              guest, first message of a connection
    {"hello": VERSION, "functions": [...], ...}   host, its answer
    {"id": 7, "call": "llm_query", "args": {…}}   a request
    {"id": 7, "ok": value}                        its answer, in any order
    {"id": 7, "error": {"type": "…", "message": "…"}}
    {"cancel": 7}                                 the asking side no longer wants the answer; none is sent
    {"note": "exited", …}                         one way, no answer
    {"bye": "reason"}                             the last message before a side closes on purpose

JSON travels as UTF-8 with ``surrogatepass``: a Python str may hold lone surrogates, or two halves side by side that must not become one
character, and every code point has to survive. Strictly valid text gives strictly valid UTF-8.

A message longer than FRAGMENT_CHARS travels as ``{"frag": n, "data": "…", "last": false}`` frames, slices of its JSON text.
"""

from __future__ import annotations

import itertools
import json
import struct
from typing import Any, Callable, Dict, List, Optional, Tuple

VERSION = 1
HEADER = struct.Struct(">I")
MAX_FRAME = 16 * 1024 * 1024  # bytes; the longest fragment frame is 4 MiB (4-byte code points) plus escapes
FRAGMENT_CHARS = 1024 * 1024  # about 1 MiB a frame: small enough to share a connection, large enough to cost nothing
MAX_MESSAGE = 64 * 1024 * 1024  # characters of one message, and of all unfinished ones of a connection together
MAX_UNFINISHED = 16  # fragmented messages that may be under way at once
MAX_FRAGMENTS = 65536  # of one message; those of our own side number MAX_MESSAGE / FRAGMENT_CHARS

Message = Dict[str, Any]
_numbers = itertools.count(1)


class WireError(Exception):
    """The other side broke a rule of the wire. The text says which."""


class TooLarge(ValueError):
    """A value is too large to send; nothing was sent."""

    __module__ = "builtins"  # as a traceback in a cell names it


def dumps(value: Any) -> str:
    """JSON text of a value, as the wire carries it. Raises TypeError or ValueError for what JSON cannot carry."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def frame(payload: bytes) -> bytes:
    """One frame around a payload."""
    return HEADER.pack(len(payload)) + payload


def encode(message: Message, max_message: int = MAX_MESSAGE) -> List[bytes]:
    """The frames of a message: one, or several fragments.

    Raises:
        TooLarge: the message is longer than ``max_message`` characters.
        TypeError, ValueError: JSON cannot carry it.
    """
    return frames(dumps(message), max_message)


def frames(text: str, max_message: int = MAX_MESSAGE) -> List[bytes]:
    """The frames of a message that is JSON text already. Raises TooLarge."""
    if len(text) <= FRAGMENT_CHARS:
        return [frame(text.encode("utf-8", "surrogatepass"))]
    if len(text) > max_message:
        raise TooLarge(f"a message of {len(text):,} characters is too large: one call may carry {max_message:,}")
    number = next(_numbers)
    pieces = []
    for start in range(0, len(text), FRAGMENT_CHARS):
        part = {"frag": number, "data": text[start : start + FRAGMENT_CHARS], "last": start + FRAGMENT_CHARS >= len(text)}
        pieces.append(frame(dumps(part).encode("utf-8", "surrogatepass")))
    return pieces


def decoded(payload: bytes) -> str:
    """The text of a frame's payload. Raises WireError."""
    try:
        return payload.decode("utf-8", "surrogatepass")
    except ValueError as error:
        raise WireError(f"a frame is not JSON: {str(error)[:100]}") from None


def parse(text: str, loads: Callable[[str], Any] = json.loads) -> Message:
    """The JSON object that is a frame's text. Raises WireError."""
    try:
        message = loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError(f"a frame is not JSON: {str(error)[:100]}") from None
    if not isinstance(message, dict):
        raise WireError(f"a frame is not a JSON object but {type(message).__name__}")
    return message


class Decoder:
    """Turns bytes, cut anywhere, into messages.

    After a WireError the decoder is of no further use: the place where the next frame starts is not known.
    """

    def __init__(self, max_frame: int = MAX_FRAME, max_message: int = MAX_MESSAGE) -> None:
        self.max_frame = max_frame
        self.max_message = max_message
        self._buffer = bytearray()
        self._unfinished: Dict[int, List[str]] = {}
        self._unfinished_chars = 0
        self.sizes: List[int] = []  # bytes (of a fragmented one, characters) of each message that the last feed returned

    def feed(self, data: bytes) -> List[Message]:
        """Take bytes; return the messages they complete, in order. Raises WireError."""
        self.push(data)
        messages: List[Message] = []
        self.sizes = []
        while True:
            payload = self.take()
            if payload is None:
                return messages
            complete = self.message(payload)
            if complete is not None:
                messages.append(complete[0])
                self.sizes.append(complete[1])

    def push(self, data: bytes) -> None:
        """Take bytes, for ``take``."""
        self._buffer += data

    def take(self) -> Optional[bytes]:
        """The payload of the next whole frame, or None. Raises WireError."""
        if len(self._buffer) < HEADER.size:
            return None
        (length,) = HEADER.unpack_from(self._buffer)
        if length > self.max_frame:
            raise WireError(f"a frame of {length:,} bytes is longer than the {self.max_frame:,} allowed")
        end = HEADER.size + length
        if end > len(self._buffer):
            return None
        payload = bytes(self._buffer[HEADER.size : end])
        del self._buffer[:end]
        return payload

    def weight(self, payload: bytes) -> int:
        """About how many characters ``message`` has to look at for this payload."""
        return len(payload) + self._unfinished_chars

    def message(self, payload: bytes, loads: Callable[[str], Any] = json.loads) -> Optional[Tuple[Message, int]]:
        """The message that a payload is or completes, with its size; None for a fragment that completes none. Raises WireError.

        Args:
            payload: from ``take``, in order.
            loads: parses JSON text; raises ValueError or RecursionError.
        """
        message = parse(decoded(payload), loads)
        if "frag" not in message:
            return message, len(payload)
        text = self._assemble(message)
        return None if text is None else (parse(text, loads), len(text))

    def end(self) -> None:
        """Say that no more bytes come. Raises WireError when they ended inside a frame or a message."""
        if self._buffer:
            raise WireError("the connection ended in the middle of a frame")
        if self._unfinished:
            raise WireError("the connection ended in the middle of a message")

    def _assemble(self, message: Message) -> Optional[str]:
        number, data, last = message["frag"], message.get("data"), message.get("last")
        if type(number) is not int or not isinstance(data, str) or not isinstance(last, bool):
            raise WireError("a fragment needs frag, data and last")
        if not data and not last:
            raise WireError("a fragment that is not the last is empty")
        self._unfinished_chars += len(data)
        if self._unfinished_chars > self.max_message:
            raise WireError(f"messages of more than {self.max_message:,} characters are under way")
        parts = self._unfinished.setdefault(number, [])
        if len(self._unfinished) > MAX_UNFINISHED:
            raise WireError(f"more than {MAX_UNFINISHED} fragmented messages are under way")
        parts.append(data)
        if len(parts) > MAX_FRAGMENTS:
            raise WireError(f"a message has more than {MAX_FRAGMENTS:,} fragments")
        if not last:
            return None
        text = "".join(self._unfinished.pop(number))
        self._unfinished_chars -= len(text)
        return text


def kind(message: Message) -> str:
    """What a message is: "call", "ok", "error", "cancel", "note", "bye" or "hello". Raises WireError when its shape is wrong."""
    if "call" in message:
        _need_id(message)
        if not isinstance(message["call"], str) or not isinstance(message.get("args"), dict):
            raise WireError("a request needs a method name and an object of arguments")
        return "call"
    if "ok" in message:
        _need_id(message)
        return "ok"
    if "error" in message:
        _need_id(message)
        error = message["error"]
        if not isinstance(error, dict) or not isinstance(error.get("type"), str) or not isinstance(error.get("message"), str):
            raise WireError("an error answer needs a type and a message")
        return "error"
    if "cancel" in message:
        if type(message["cancel"]) is not int:
            raise WireError("a cancel needs the id of a request")
        return "cancel"
    for name, shape in (("note", str), ("bye", str), ("hello", int)):
        if name in message:
            if type(message[name]) is not shape:
                raise WireError(f"{name} has the wrong shape")
            return name
    raise WireError("a message is neither request, answer, cancel, note, hello nor bye")


def _need_id(message: Message) -> None:
    number = message.get("id")
    if type(number) is not int or number <= 0:
        raise WireError("a request or answer needs a positive whole number as id")
