"""Texts of any size, decoded into no more memory than they need.

Python keeps a str in one, two or four bytes a character, as its widest character needs. Its decoder learns of that character when it gets
there, and then copies what it has: a gigabyte with one emoji at its end takes five at the peak, for a str of four. Here the bytes are
looked through first, and each piece is then decoded into its place.
"""

from __future__ import annotations

import ctypes
import resource
import sys
from typing import Any, Iterator, Tuple, Union

from . import processes

PIECE = 64 * 1024  # bytes decoded at a time: small enough for the processor to have them at hand
LARGE = 128 * 1024 * 1024  # bytes; below, half the time is worth more than some hundred megabytes for a moment
CONTINUATION = bytes(range(0x80, 0xC0))  # all bytes of a character but its first
ONE_BYTE = bytes(range(0xC4))  # what a text consists of that has no character beyond U+00FF
FOUR_BYTES = bytes(range(0xF0, 0xF5))  # the first byte of a character beyond U+FFFF
WIDEST = {1: 0xFF, 2: 0xFFFF, 4: 0x10FFFF}

Buffer = Union[bytes, Any]  # or an mmap


def decode(data: Buffer) -> str:
    """The str of UTF-8 ``data`` (surrogates passed). The peak is the str itself.

    Raises:
        MemoryError: it does not fit; the text says what it needs.
        UnicodeDecodeError: it is no UTF-8.
        ValueError: the data changed meanwhile.
    """
    if len(data) < LARGE:
        try:
            return str(data, "utf-8", "surrogatepass")
        except MemoryError:
            pass  # it may do with less, and if not the error says more
    chars, width = measure(data)
    require(chars * max(width, 1), f"a str of {chars:,} characters, {max(width, 1)} bytes each")
    if width == 0:
        return str(data, "ascii")
    if sys.implementation.name != "cpython":
        return str(data, "utf-8", "surrogatepass")
    return _fill(data, chars, width)


def measure(data: Buffer) -> Tuple[int, int]:
    """How many characters UTF-8 data has, and how many bytes each takes in a str; 0 when all are ASCII."""
    chars, width = 0, 0
    for start in range(0, len(data), PIECE):
        piece = data[start : start + PIECE]
        if piece.isascii():
            chars += len(piece)
        else:
            chars += len(piece.translate(None, CONTINUATION))
            width = _widest(width, piece)
    return chars, width


def _widest(known: int, piece: bytes) -> int:
    """``known``, or what a piece that is not all ASCII needs if that is more."""
    if known == 4 or any(first in piece for first in FOUR_BYTES):
        return 4
    return 2 if known == 2 or piece.translate(None, ONE_BYTE) else 1


def _fill(data: Buffer, chars: int, width: int) -> str:
    """CPython's own way to make a str whose size and widest character are known (PyUnicode_New)."""
    api = ctypes.pythonapi
    new = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_uint32)(("PyUnicode_New", api))
    copy = ctypes.PYFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.py_object, ctypes.c_ssize_t, ctypes.c_ssize_t)(
        ("PyUnicode_CopyCharacters", api)
    )
    release = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(("Py_DecRef", api))
    text = new(chars, WIDEST[width])
    if text is None:
        raise MemoryError(f"a str of {chars:,} characters, {width} bytes each, cannot be allocated")
    try:
        done, seen = 0, 0
        for piece in _pieces(data):
            part = str(piece, "utf-8", "surrogatepass")
            if done + len(part) > chars:
                break
            copy(text, done, part, 0, len(part))
            done += len(part)
            seen = seen if seen == width or piece.isascii() else _widest(seen, piece)
        if done != chars or seen != width:
            raise ValueError("the file changed while it was read")
        result: str = ctypes.cast(text, ctypes.py_object).value
        return result
    finally:
        release(text)


def _pieces(data: Buffer) -> Iterator[bytes]:
    """Pieces of whole characters."""
    start = 0
    while start < len(data):
        end = min(start + PIECE, len(data))
        cut = end
        while end < len(data) and cut > end - 4 and 0x80 <= data[cut] < 0xC0:
            cut -= 1
        yield data[start:cut]
        start = cut


def require(size: int, what: str) -> None:
    """Raise MemoryError when ``size`` bytes for ``what`` cannot be had: before the system kills somebody for them."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and size > (left := max(0, limit - processes.mapped_bytes())):
        raise MemoryError(f"{what}, needs {size:,} bytes; the memory limit leaves {left:,}")
    free = free_bytes()
    if free is not None and size > free:
        raise MemoryError(f"{what}, needs {size:,} bytes; the machine has {free:,} free")


def free_bytes() -> Union[int, None]:
    """What the machine can still give out, swap included; None where it does not say."""
    try:
        with open("/proc/meminfo", "rb") as file:
            rows = dict(line.split(b":") for line in file.read().splitlines())
        return 1024 * sum(int(rows[name].split()[0]) for name in (b"MemAvailable", b"SwapFree"))
    except (OSError, KeyError, ValueError):
        return None
