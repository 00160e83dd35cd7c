"""FILE arguments and standard input become a context, to the last byte."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from .output import say

STDIN = "-"


def read_context(files: Sequence[str], *, as_bytes: bool) -> str | bytes | Path | list[Path] | None:
    """What ``context=`` is given: a Path for one file (which is read where it is), a list for several, text or bytes else.

    Raises:
        ConfigError: something cannot be read, or cannot go together; the message says what to do.
    """
    match list(files):
        case []:
            if as_bytes:
                raise ConfigError("--bytes goes with one FILE, or with - for standard input")
            return None
        case ["-"]:
            return _stdin(as_bytes=as_bytes)
        case [one]:
            return _one(Path(one), as_bytes=as_bytes)
        case several:
            if STDIN in several:
                raise ConfigError("standard input (-) cannot be mixed with files")
            if as_bytes:
                raise ConfigError("--bytes takes one FILE; several files are given as text")
            return [Path(name) for name in several]


def _one(path: Path, *, as_bytes: bool) -> str | bytes | Path:
    try:
        if path.is_file() and not as_bytes:
            return path
        data = b"" if path.is_dir() else path.read_bytes()  # a pipe, such as <(command), can be read once only
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give its files, for example {path}/*")
    if not data:
        raise ConfigError(f"{path} is empty; there is nothing to ask about")
    return data if as_bytes else _text(data, str(path))


def _stdin(*, as_bytes: bool) -> str | bytes:
    if sys.stdin is None:
        raise ConfigError("standard input is closed; give the input as a file, or by a pipe")
    if sys.stdin.isatty():
        say("arlm: reading standard input; end it with Ctrl-D")
    try:
        data = sys.stdin.buffer.read()
    except OSError as error:
        raise ConfigError(f"standard input cannot be read: {error.strerror or error}") from error
    if not data:
        raise ConfigError("standard input is empty; there is nothing to ask about")
    return data if as_bytes else _text(data, "standard input")


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where} is not UTF-8 text: byte 0x{data[error.start]:02x} at position {error.start:,} ({error.reason}). "
            "Convert it, or give the bytes with --bytes"
        ) from None
