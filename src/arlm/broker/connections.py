"""What the broker grants to a connection: anybody can open one, and none may keep others out."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

LOOK_SECONDS = 10.0  # at each connection: one that at two looks in a row has neither begun a request nor taken an answer is closed
MOST_CONNECTIONS = 8_192
SPARE_FILES = 64  # descriptors for all else
WANTED_FILES = MOST_CONNECTIONS + SPARE_FILES


def limited(most: int) -> type[H11Protocol]:
    """uvicorn's protocol for at most so many connections at once, none of which waits for ever."""
    return type("Limited", (_Connection,), {"most": most})


def open_files() -> int:
    """Have descriptors for many connections; returns for how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(MOST_CONNECTIONS, soft - SPARE_FILES))


class _Connection(H11Protocol):
    most = MOST_CONNECTIONS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        self._late = False
        self._unread = 0
        if len(self.connections) > self.most:
            self._make_room()
        self._timer = self.loop.call_later(LOOK_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _make_room(self) -> None:
        """Close the oldest connection without a request under way: this one, where all others have one."""
        idle: list[Any] = [it for it in self.connections if isinstance(it, _Connection) and not it._is_busy() and not it._is_closing()]
        oldest = min(idle, key=lambda it: it._since, default=self)
        oldest.transport.abort()

    def _is_closing(self) -> bool:
        return self.transport.is_closing()

    def _look(self) -> None:
        # uvicorn's own timer runs between two requests; a first one that never comes, and a head that never ends, has none.
        unread = self.transport.get_write_buffer_size()
        late = (not self._is_busy() and self.timeout_keep_alive_task is None) or 0 < self._unread <= unread
        if late and self._late:
            self.transport.abort()
            return
        self._late, self._unread = late, unread
        self._timer = self.loop.call_later(LOOK_SECONDS, self._look)
