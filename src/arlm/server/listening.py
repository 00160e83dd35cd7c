"""A listening socket whose connections become transports of the running loop.

asyncio's own server is not used, for three reasons. Out of file descriptors it reports each place of its backlog, again each second, and
after its end too. It drops, open, what it accepted in the turn in which it is closed. And it says nothing to those who wait.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

from ..shortages import told

logger = logging.getLogger("arlm.server")

BACKLOG = 1024
ACCEPTED_A_TURN = 100  # connections taken before the rest of the loop gets a turn: a few milliseconds
AGAIN_SECONDS = 0.1  # after a shortage, until the next try
SHORT_SECONDS = 10.0  # a shortage of so long is no peak: those who wait are told

Factory = Callable[[], asyncio.BaseProtocol]


class Listener:
    """Listens from its making until ``close``. Needs a running loop.

    Args:
        factory: makes the protocol of each connection.
        path: of a Unix socket, open to this user alone; None: a port of 127.0.0.1.
        on_short: told why when no connection could be taken for SHORT_SECONDS, though one waits.

    Raises:
        OSError: it cannot listen; nothing is left of the attempt.
    """

    def __init__(self, factory: Factory, *, path: Path | None, on_short: Callable[[str], object]) -> None:
        self._factory = factory
        self._on_short = on_short
        self._loop = asyncio.get_running_loop()
        self._taking: set[asyncio.Task[Any]] = set()
        self._again: asyncio.TimerHandle | None = None
        self._short_since: float | None = None
        self._sock = _bound(path)
        try:
            self._sock.listen(BACKLOG)
            self.address: dict[str, Any] = {"unix": str(path)} if path else {"tcp": list(self._sock.getsockname()[:2])}
            self._loop.add_reader(self._sock, self._accept)
        except BaseException:
            self._sock.close()
            raise

    def close(self) -> None:
        """Listen no more. Harmless a second time."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()
        if self._again is not None:
            self._again.cancel()

    async def settle(self) -> None:
        """Wait until what was accepted has its transport: a turn or two of the loop."""
        if self._taking:
            with anyio.CancelScope(shield=True):
                await asyncio.wait(self._taking)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_A_TURN):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._wait(error)
                return
            self._short_since = None
            sock.setblocking(False)
            task = self._loop.create_task(self._take(sock), name="a connection")
            self._taking.add(task)
            task.add_done_callback(self._taking.discard)

    async def _take(self, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._factory, sock)
        except Exception:
            logger.exception("a connection could not be taken")
            sock.close()

    def _wait(self, error: OSError) -> None:
        """No descriptor for another connection: those that wait stay in the backlog."""
        now = self._loop.time()
        if self._short_since is None:
            self._short_since = now
            logger.warning("a worker's connection has to wait: %s", told(error))
        elif now - self._short_since >= SHORT_SECONDS:
            self._short_since = now
            self._on_short(f"its connection could not be taken for {SHORT_SECONDS:g} s: {told(error)}")
        self._loop.remove_reader(self._sock)  # the kernel would report it again at once
        self._again = self._loop.call_later(AGAIN_SECONDS, self._listen_again)

    def _listen_again(self) -> None:
        self._again = None
        self._loop.add_reader(self._sock, self._accept)


def _bound(path: Path | None) -> socket.socket:
    if path is None:  # the protocol is named: asyncio switches off the delay of small packets only where it is
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    else:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0) if path is None else str(path))
        if path is not None:
            os.chmod(path, 0o600)
    except BaseException:
        sock.close()
        raise
    return sock
