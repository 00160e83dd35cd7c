"""Contexts: a value arrives as a file and becomes a Python value, unchanged to the last code point."""

from __future__ import annotations

import json
import mmap
import os
from typing import Any


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
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        if kind == "bytes":
            return bytes(view)
        text = str(view, "utf-8", "surrogatepass")
    if kind == "text":
        return text
    return json.loads(text)
