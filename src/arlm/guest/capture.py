"""What a cell prints: one pipe behind file descriptors 1 and 2, read by the I/O thread into a bounded buffer.

Both descriptors share one pipe, so the order of stdout, stderr, subprocesses and ``os.write`` is the order in which they wrote.
"""

from __future__ import annotations

import array
import codecs
import fcntl
import io
import os
import sys
import termios
from typing import Dict, List, Tuple

PIPE_BYTES = 1024 * 1024  # asked of the kernel; fewer hand-overs between a printing cell and the reader
TAIL_SHARE = 4  # a quarter of the kept characters is the end of the output: that is where a traceback stands
F_SETPIPE_SZ = 1031


class Capture:
    """Keeps the head and the tail of a text of any length, and counts its characters."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._reset()

    def _reset(self) -> None:
        self._head: List[str] = []
        self._head_chars = 0
        self._reported = 0
        self._tail = ""
        self._total = 0

    def write(self, data: bytes) -> None:
        """Take bytes as they come from the pipe; characters may be cut anywhere."""
        self.add(self._decoder.decode(data))

    def add(self, text: str) -> None:
        """Take text."""
        self._total += len(text)
        room = self.limit - self._head_chars
        if room > 0:
            self._head.append(text[:room])
            self._head_chars += min(room, len(text))
            text = text[room:]
        if text:
            self._tail = (self._tail + text[-self._tail_chars :])[-self._tail_chars :]

    @property
    def full(self) -> bool:
        """Whether the head has all that it keeps: ``progress`` will add nothing more."""
        return self._head_chars >= self.limit

    @property
    def _tail_chars(self) -> int:
        return max(1, self.limit // TAIL_SHARE)

    def progress(self) -> str:
        """What has been added to the head since the last call; the host has it even if this process dies."""
        head = "".join(self._head)
        self._head = [head]
        fresh, self._reported = head[self._reported :], len(head)
        return fresh

    def take(self) -> Tuple[str, int]:
        """The text kept since the last take, and how many characters there were."""
        head, tail, total = "".join(self._head), self._tail, self._total
        self._reset()
        if total <= self.limit:
            return head, total
        head = head[: self.limit - len(tail)]
        cut = total - len(head) - len(tail)
        return f"{head}\n… [{cut:,} of {total:,} characters cut here] …\n{tail}", total


def open_pipe() -> Tuple[int, int]:
    """A pipe (read end, write end) for a worker's output, as large as the kernel allows without privileges."""
    reader, writer = os.pipe()
    try:
        fcntl.fcntl(writer, F_SETPIPE_SZ, PIPE_BYTES)
    except (OSError, ValueError):
        pass  # not Linux, or over the user's pipe quota: the default size only costs speed
    os.set_blocking(reader, False)
    return reader, writer


def waiting(reader: int) -> int:
    """How many bytes wait in a pipe."""
    count = array.array("i", [0])
    fcntl.ioctl(reader, termios.FIONREAD, count)
    return count[0]


_prepared: Dict[str, io.TextIOWrapper] = {}


def prepare() -> None:
    """Make the streams of the workers to be forked. They stand on the numbers 0, 1 and 2, and touch nothing until they are used."""
    _prepared.update(stdin=_reading(0), stdout=_writing(1), stderr=_writing(2))


class Stdio:
    """The worker's descriptors 0, 1 and 2 and its ``sys.stdin/stdout/stderr``, put right again after every cell."""

    def __init__(self, writer: int) -> None:
        self._writer = writer
        self._null = os.open(os.devnull, os.O_RDONLY)
        self._streams = dict(_prepared)
        self.restore()

    def restore(self) -> None:
        """Point descriptors and ``sys`` streams where they belong, whatever the cell did to them."""
        for number in (1, 2):
            if not _same(number, self._writer):
                os.dup2(self._writer, number)
        if not _same(0, self._null):
            os.dup2(self._null, 0)
        for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
            stream = self._streams.get(name)
            if stream is None or not _is_open(stream):
                stream = self._streams[name] = _reading(number) if number == 0 else _writing(number)
            setattr(sys, name, stream)

    def flush(self) -> None:
        """Push what Python still buffers into the pipe."""
        for name in ("stdout", "stderr"):
            try:
                getattr(sys, name).flush()
            except BaseException:
                pass  # the cell closed it, or put an object of its own there; restore() follows


def _same(number: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(number, other)
    except OSError:
        return False


def _is_open(stream: io.TextIOWrapper) -> bool:
    try:
        return not stream.closed
    except ValueError:
        return False  # detached from its buffer


def _reading(number: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedReader(io.FileIO(number, "rb", closefd=False)), "utf-8", "surrogateescape")


def _writing(number: int) -> io.TextIOWrapper:
    # write_through without line buffering would write() per print argument; line buffering writes once a line.
    raw = io.BufferedWriter(io.FileIO(number, "wb", closefd=False), 64 * 1024)
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", newline="\n", line_buffering=True)
