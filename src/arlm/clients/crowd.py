"""What thousands of calls in flight need of the event loop and of the process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
from collections import deque
from collections.abc import Iterator

if sys.platform != "win32":
    import resource

STARTS_A_TURN = 8  # of sending a call; opening a connection takes up to a millisecond, and the rest of the loop is to wait for few of them
REPLIES_A_TURN = 32  # of handing a reply to who asked; servers send many at once when many were asked at once
SPARE = 1 / 8  # of the file descriptors, for everything but these connections
MOST_DESCRIPTORS = 65_536
LEAST_PORTABLE = 10_240  # macOS takes no higher limit than this, whatever it says
MANY = 1_000  # calls in flight from which full collections are put off
RARELY = 1_000_000  # collections of the middle generation between two full ones


class Gate:
    """Lets so many pass in a turn of the event loop, first in, first out; the others in the turns after it.

    A batch would otherwise open all its connections in one turn, which holds up everything else on the loop and overflows the server's
    queue of connections. Cancelling a wait takes nothing but that turn's place.
    """

    def __init__(self, a_turn: int) -> None:
        self._a_turn = self._left = a_turn
        self._line: deque[asyncio.Future[None]] = deque()
        self._is_turning = False

    async def passed(self) -> None:
        """Wait for a place."""
        loop = asyncio.get_running_loop()
        if not self._is_turning:
            self._is_turning = True
            loop.call_soon(self._turn)
        if self._left and not self._line:
            self._left -= 1
            return
        place: asyncio.Future[None] = loop.create_future()
        self._line.append(place)
        await place

    def _turn(self) -> None:
        self._left = self._a_turn
        while self._line and self._left:
            place = self._line.popleft()
            if not place.done():
                place.set_result(None)
                self._left -= 1
        self._is_turning = bool(self._line) or self._left < self._a_turn
        if self._is_turning:
            asyncio.get_running_loop().call_soon(self._turn)


def descriptors() -> int:
    """Raise this process's limit on open files as far as the system lets it; returns how many connections that leaves room for."""
    if sys.platform == "win32":
        return 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for most in (MOST_DESCRIPTORS, LEAST_PORTABLE):
        wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
        if soft >= wanted or soft == resource.RLIM_INFINITY:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):
            continue
        soft = wanted
        break
    return MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else int(soft * (1 - SPARE))


class _Collector:
    """Python's garbage collector, and how many calls are in flight in this process, whatever loop they are on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_flight = 0
        self._before: tuple[int, int, int] | None = None

    def count(self, more: int) -> None:
        with self._lock:
            self._in_flight += more
            if self._before is None and self._in_flight >= MANY:
                self._before = gc.get_threshold()
                gc.set_threshold(self._before[0], self._before[1], RARELY)
            elif self._before is not None and self._in_flight < MANY // 2:
                if gc.get_threshold()[2] == RARELY:  # or somebody else has set it meanwhile
                    gc.set_threshold(*self._before)
                self._before = None


_collector = _Collector()


@contextlib.contextmanager
def counted() -> Iterator[None]:
    """Count a call as in flight. Where there are MANY, full collections are put off: each looks at every object of every call."""
    _collector.count(1)
    try:
        yield
    finally:
        _collector.count(-1)
