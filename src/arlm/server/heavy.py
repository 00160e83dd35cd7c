"""Large messages, read and written in small steps, for a thread beside the event loop.

The parser and the writer of ``json`` hold the interpreter's lock from the first character to the last: in a thread too they would stop the
loop for as long as they take. What is here returns to Python code every few milliseconds. It is the slower way where a message has many
values, so small ones do not take it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from json import decoder, encoder, scanner
from typing import Any

from ..guest import wire

LIGHT_BYTES = 256 * 1024  # a message below this is read and written on the loop: a few milliseconds at worst
WHOLE_CHARS = 2 * 1024 * 1024  # text below this, with few values, is parsed in one go: about 15 ms at worst
WHOLE_VALUES = 50_000
MAX_VALUES = 1_000_000  # of one message of a guest; as Python objects they take a hundred times the bytes they were sent in
WALKED = 1_000  # values looked at to find out whether a message is large
STRING_CHARS = 1024 * 1024  # of a long string that are written in one go

# A piece of a string: up to about eight million characters, an escape never cut, nor two that make one character.
_PIECE = re.compile(r'(?:[^"\\]{1,4096}|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u....|\\.){0,2000}', re.DOTALL)
_SHORT = 256
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # as wire.dumps, made once


def loads(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, also for more than MAX_VALUES values; RecursionError."""
    if len(text) <= WHOLE_CHARS and sum(map(text.count, "[{,")) <= WHOLE_VALUES:
        return json.loads(text)
    return _Stepwise().decode(text)


class _Stepwise(json.JSONDecoder):
    """The decoder of ``json`` in its Python form, which lets other threads run; it counts values and takes long strings in pieces."""

    def __init__(self) -> None:
        super().__init__()
        self._values = 0
        self.parse_array = self._array
        self.parse_object = self._object
        self.parse_string = _string
        self.scan_once = scanner.py_make_scanner(self)  # type: ignore[attr-defined]

    def _counting(self, scan_once: Callable[[str, int], Any]) -> Callable[[str, int], Any]:
        def scan(text: str, at: int) -> Any:
            self._values += 1
            if self._values > MAX_VALUES:
                raise ValueError(f"a message has more than {MAX_VALUES:,} values")
            return scan_once(text, at)

        return scan

    def _array(self, start: tuple[str, int], scan_once: Callable[[str, int], Any]) -> Any:
        return decoder.JSONArray(start, self._counting(scan_once))  # type: ignore[attr-defined]

    def _object(self, start: tuple[str, int], strict: bool, scan_once: Callable[[str, int], Any], *rest: Any) -> Any:
        return decoder.JSONObject(start, strict, self._counting(scan_once), *rest)  # type: ignore[attr-defined]


def _string(text: str, start: int, strict: bool = True) -> tuple[str, int]:
    close = text.find('"', start, start + _SHORT)
    if close >= 0 and "\\" not in text[start:close]:
        return decoder.scanstring(text, start, strict)  # type: ignore[attr-defined,no-any-return]
    pieces = []
    at = start
    while (match := _PIECE.match(text, at)) is not None and match.end() > at:
        pieces.append(decoder.scanstring(match[0] + '"', 0, strict)[0])  # type: ignore[attr-defined]
        at = match.end()
    if text[at : at + 1] != '"':
        raise json.JSONDecodeError("Unterminated string starting at", text, start - 1)
    return "".join(pieces), at + 1


def is_heavy(value: Any) -> bool:
    """Whether a value is so large that writing it would hold the loop up. Looks at WALKED parts of it at most."""
    chars = 0
    left = [value]
    for _ in range(WALKED):
        if not left:
            return chars > LIGHT_BYTES
        match left.pop():
            case str() as text:
                chars += len(text)
            case dict() as mapping:
                if len(mapping) > WALKED:
                    return True
                left += mapping.keys()
                left += mapping.values()
            case list() | tuple() as items:
                if len(items) > WALKED:
                    return True
                left += items
    return True


def encode(message: wire.Message) -> list[bytes]:
    """``wire.encode`` in small steps. Raises what that does; for a value that holds itself RecursionError."""
    return wire.frames("".join(_written(message)))


def _written(value: Any) -> Iterator[str]:
    match value:
        case str() if len(value) > STRING_CHARS:
            yield '"'
            for start in range(0, len(value), STRING_CHARS):
                yield encoder.encode_basestring(value[start : start + STRING_CHARS])[1:-1]
            yield '"'
        case dict():
            mark = "{"
            for key, item in value.items():
                yield mark + (_encode(key) + ":" if isinstance(key, str) else wire.dumps({key: 0})[1:-2])  # json makes text of other keys
                yield from _written(item)
                mark = ","
            yield "}" if value else "{}"
        case list() | tuple():
            mark = "["
            for item in value:
                yield mark
                yield from _written(item)
                mark = ","
            yield "]" if value else "[]"
        case _:
            yield _encode(value)
