"""Contexts: a value arrives as a file and becomes a Python value, unchanged to the last code point."""

from __future__ import annotations

import errno
import gc
import json
import mmap
import os
from typing import Any, BinaryIO

from . import texts


def load(path: str, kind: str) -> Any:
    """Read a context file.

    Args:
        path: the file, as the guest sees it.
        kind: ``"text"`` (UTF-8 with surrogatepass), ``"bytes"``, or ``"json"`` (in the same encoding).

    The file is mapped, not read, so that the peak is the value itself; for JSON, its text too.

    Raises:
        MemoryError: it does not fit; the text says what it needs.
    """
    size = os.path.getsize(path)
    if size == 0:
        return b"" if kind == "bytes" else ""
    with open(path, "rb") as file, _mapped(file) as view:
        if kind == "bytes":
            texts.require(size, f"a bytes object of {size:,} bytes")
            return bytes(view)
        text = texts.decode(view)
    return text if kind == "text" else _parse(text)


def _parse(text: str) -> Any:
    texts.require(len(text), f"the values of {len(text):,} characters of JSON")
    collecting = gc.isenabled()
    gc.disable()  # it would look through all that is there, again and again
    try:
        return json.loads(text)
    finally:
        if collecting:
            gc.enable()


def _mapped(file: BinaryIO) -> mmap.mmap:
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(f"{os.fstat(file.fileno()).st_size:,} bytes cannot be mapped") from None
        raise


def is_json(value: Any) -> bool:
    """Whether JSON carries ``value`` (a tuple as a list). Raises RecursionError when it contains itself."""
    if isinstance(value, (list, tuple)):
        return all(map(is_json, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_json(part) for key, part in value.items())
    return value is None or isinstance(value, (str, int, float))
