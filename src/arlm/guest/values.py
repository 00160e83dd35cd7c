"""Contexts: a value arrives as a file and becomes a Python value, unchanged to the last code point."""

from __future__ import annotations

import errno
import json
import mmap
import os
from typing import Any, BinaryIO


def load(path: str, kind: str) -> Any:
    """Read a context file.

    Args:
        path: the file, as the guest sees it.
        kind: ``"text"`` (UTF-8 with surrogatepass), ``"bytes"``, or ``"json"`` (in the same encoding).

    The file is mapped, not read, so that the peak is the value itself.
    """
    size = os.path.getsize(path)
    if size == 0:
        return b"" if kind == "bytes" else ""
    with open(path, "rb") as file, _mapped(file) as view:
        if kind == "bytes":
            return bytes(view)
        text = str(view, "utf-8", "surrogatepass")
    if kind == "text":
        return text
    return json.loads(text)


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
