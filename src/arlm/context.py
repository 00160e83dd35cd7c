"""Contexts: a value of any size becomes a file that workers read. Nothing is changed, down to the last code point."""

from __future__ import annotations

import codecs
import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import anyio.to_thread

from .errors import ConfigError, SandboxError
from .guest import wire
from .shortages import no_descriptors, told

SLICE = 1024 * 1024  # characters or bytes handled at a time: the interpreter lock is let go in between; larger ones cost page faults
MAX_SHOWN_SIZES = 5  # sizes of list items that the description names

FOLDER = "contexts"  # of contexts in a run's own folder: workers may read it, and not what stands beside it

PROMPT_CHARS = 8_000_000  # no model takes a prompt of more; about two million tokens
SHORT_CHARS = 64 * 1024  # a text that fits a frame beside others travels in one: a file costs more than it saves

Kind = Literal["text", "bytes", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextFile:
    """A context, ready to be read by a worker.

    Attributes:
        path: the file on the host; the user's own when the context was a Path.
        kind: how it is read: UTF-8 text (surrogates passed), raw bytes, JSON.
        description: what it is, for the model: ``"a str of 1,234 characters"``.
        size: characters, bytes, or for JSON the characters of its text.
    """

    path: Path
    kind: Kind
    description: str
    size: int


def describe_short(value: Any) -> str | None:
    """The description of a context that needs no file, or None: a text of at most SHORT_CHARS."""
    return _describe_text(len(value)) if isinstance(value, str) and 0 < len(value) <= SHORT_CHARS else None


async def write_context(value: Any, path: Path, *, may_be_empty: bool = False) -> ContextFile:
    """Check a context and put it into the file ``path`` (a Path is checked and used where it is).

    Raises:
        ConfigError: it is empty, unreadable, not UTF-8, or holds what JSON cannot carry; the message says where.
        SandboxError: it could not be written (disk full). Nothing is left of the attempt.

    Cancelled, it returns at once; the thread ends with its current slice, and removes what it had written.
    """
    if not may_be_empty and isinstance(value, (str, bytes, bytearray, memoryview, list, tuple, dict)) and not value:
        raise ConfigError("the context is empty; pass what the question is about, or leave context out to ask the prompt alone")
    given_up = threading.Event()
    token = _given_up.set(given_up)
    try:
        return await anyio.to_thread.run_sync(_write_or_remove, value, path, abandon_on_cancel=True)
    except FileNotFoundError as error:
        raise SandboxError(
            f"the context could not be written: {path.parent} is gone; did something empty the temporary folder? Begin a new run or session"
        ) from error
    except OSError as error:
        raise SandboxError(f"the context could not be written to {path.parent}: {told(error)}") from error
    finally:
        given_up.set()
        _given_up.reset(token)


async def read_short(file: ContextFile) -> str:
    """A context's text, for a prompt. Raises ConfigError when it is too long for any model, or no text."""
    if file.kind == "bytes" or file.size > PROMPT_CHARS:
        raise ConfigError(f"the context is {file.description}: too much for a plain call; cut it, or raise max_depth")
    return await anyio.to_thread.run_sync(lambda: file.path.read_bytes().decode("utf-8", "surrogatepass"))


_given_up: ContextVar[threading.Event | None] = ContextVar("given_up", default=None)


class _GivenUp(Exception):
    """Ends the thread of a cancelled writing; nobody sees it."""


def _go_on() -> None:
    given_up = _given_up.get()
    if given_up is not None and given_up.is_set():
        raise _GivenUp


def _write_or_remove(value: Any, path: Path) -> ContextFile:
    try:
        return _write(value, path)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)  # a session may go on for long, and half a context may be what fills the disk
        raise


def _write(value: Any, path: Path) -> ContextFile:
    match value:
        case str():
            return _write_text(value, path)
        case bytes() | bytearray() | memoryview():
            return _write_bytes(bytes(value), path)
        case Path():
            return _check_file(value)
        case list() | tuple() if value and all(isinstance(item, Path) for item in value):
            return _write_files(value, path)
        case _:
            return _write_json(value, path)


def _write_text(text: str, path: Path) -> ContextFile:
    with path.open("wb") as file:
        for start in range(0, len(text), SLICE):
            _go_on()
            file.write(text[start : start + SLICE].encode("utf-8", "surrogatepass"))
    return ContextFile(path=path, kind="text", description=_describe_text(len(text)), size=len(text))


def _describe_text(chars: int) -> str:
    return f"a str of {chars:,} characters"


def _write_bytes(data: bytes, path: Path) -> ContextFile:
    view = memoryview(data)
    with path.open("wb") as file:
        for start in range(0, len(view), SLICE):
            _go_on()
            file.write(view[start : start + SLICE])
    return ContextFile(path=path, kind="bytes", description=f"a bytes object of {len(data):,} bytes", size=len(data))


def _check_file(path: Path) -> ContextFile:
    chars = sum(len(part) for part in _decoded(path))
    if chars == 0:
        raise ConfigError(f"{path} is empty; there is nothing to ask about")
    return ContextFile(
        path=path.absolute(), kind="text", description=f"a str of {chars:,} characters (the text of {path.name})", size=chars
    )


def _write_files(paths: Sequence[Path], path: Path) -> ContextFile:
    names = [str(item) for item in paths]
    if len(set(names)) != len(names):
        raise ConfigError("the same file is given twice in context")
    chars = 0
    with path.open("wb") as file:
        for number, (name, item) in enumerate(zip(names, paths, strict=True)):
            text = "".join(_decoded(item))
            chars += len(text)
            file.write(b"{" if number == 0 else b",")
            _write_dumped(file, name)
            file.write(b":")
            _write_dumped(file, text)
        file.write(b"}")
    if chars == 0:
        raise ConfigError("all files given as context are empty; there is nothing to ask about")
    return ContextFile(
        path=path, kind="json", description=f"a dict of {len(paths)} files, path to text, {chars:,} characters in all", size=chars
    )


def _decoded(path: Path) -> Iterator[str]:
    """A file's text in pieces, newlines untouched. Raises ConfigError with what is wrong and what to do."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    at = 0
    try:
        with path.open("rb") as file:
            while data := file.read(SLICE):
                _go_on()
                pending = len(decoder.getstate()[0])
                try:
                    yield decoder.decode(data)
                except UnicodeDecodeError as error:
                    raise _not_utf8(path, at - pending + error.start, error) from None
                at += len(data)
            try:
                decoder.decode(b"", final=True)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, at - len(error.object) + error.start, error) from None
    except OSError as error:
        why = told(error) if no_descriptors(error) else error.strerror or error
        what = "is a folder; give its files" if path.is_dir() else f"cannot be read: {why}"
        raise ConfigError(f"{path} {what}") from error


def _not_utf8(path: Path, position: int, error: UnicodeDecodeError) -> ConfigError:
    byte = error.object[error.start]
    return ConfigError(
        f"{path} is not UTF-8 text: byte 0x{byte:02x} at position {position:,} ({error.reason}). "
        f"Convert it, or give the bytes: context=Path({str(path)!r}).read_bytes() in Python, --bytes on the command line"
    )


def _write_json(value: Any, path: Path) -> ContextFile:
    try:
        check_json(value, "context")
        return _write_checked(value, path)
    except RecursionError:
        raise ConfigError("the context is nested too deeply, or contains itself; flatten it") from None
    except ValueError as error:  # an int of more digits than Python turns into text
        raise ConfigError(f"the context holds a number that cannot be written: {error}") from None


def _write_checked(value: Any, path: Path) -> ContextFile:
    with path.open("wb") as file:
        match value:
            case list():
                _write_parts(file, b"[", ((None, item) for item in value), b"]")
            case dict():
                _write_parts(file, b"{", value.items(), b"}")
            case _:
                _write_dumped(file, value)
        size = file.tell()
    return ContextFile(path=path, kind="json", description=_describe(value), size=size)


def _write_parts(file: BinaryIO, opening: bytes, parts: Any, closing: bytes) -> None:
    separator = opening
    for key, item in parts:
        _go_on()
        file.write(separator)
        separator = b","
        if key is not None:
            _write_dumped(file, key)
            file.write(b":")
        _write_dumped(file, item)
    file.write(closing if separator != opening else opening + closing)


def _write_dumped(file: BinaryIO, value: Any) -> None:
    file.write(wire.dumps(value).encode("utf-8", "surrogatepass"))


def check_json(value: Any, where: str) -> None:
    """Raise ConfigError, naming the place, when JSON would not carry ``value`` unchanged; RecursionError when it contains itself."""
    match value:
        case None | bool() | int() | float() | str():
            return
        case list():
            for number, item in enumerate(value):
                if type(item) is not str:
                    check_json(item, f"{where}[{number}]")
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise ConfigError(f"{where} has the key {key!r:.80} ({type(key).__name__}); a context's dicts need str keys")
                if type(item) is not str:
                    check_json(item, f"{where}[{key!r:.80}]")
        case tuple() | set() | frozenset():
            raise ConfigError(f"{where} is a {type(value).__name__}, which JSON does not have; pass a list")
        case bytes() | bytearray():
            raise ConfigError(f"{where} is bytes inside a container; pass bytes alone, or text")
        case os.PathLike():
            raise ConfigError(f"{where} is a path among other values; read the file, or pass a list of paths alone")
        case _:
            raise ConfigError(
                f"{where} is a {type(value).__name__}, which cannot be a context; "
                "pass str, bytes, a Path, or lists and dicts of text and numbers"
            )


def _describe(value: Any) -> str:
    match value:
        case list() if all(isinstance(item, str) for item in value):
            sizes = ", ".join(f"{len(item):,}" for item in value[:MAX_SHOWN_SIZES])
            more = ", …" if len(value) > MAX_SHOWN_SIZES else ""
            total = sum(map(len, value))
            return f"a list of {len(value):,} str, {total:,} characters in all (lengths: {sizes}{more})"
        case list():
            kinds = sorted({type(item).__name__ for item in value})
            return f"a list of {len(value):,} items ({', '.join(kinds)})"
        case dict():
            keys = ", ".join(repr(key)[:40] for key in list(value)[:MAX_SHOWN_SIZES])
            more = ", …" if len(value) > MAX_SHOWN_SIZES else ""
            return f"a dict of {len(value):,} entries (keys: {keys}{more})"
        case _:
            return f"a JSON value of type {type(value).__name__}"
