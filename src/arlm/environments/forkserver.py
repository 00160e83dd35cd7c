"""The fork server: a supervisor process on this machine, from which workers are forked in about two milliseconds.

One belongs to each event loop, shared by all runs on it, started by the first. When the loop ends, an idle one is parked, and the next loop
of the process takes it over: ``run_sync`` in a row starts Python once. It holds nothing of any run, and ends with the host process.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

from .. import guest
from ..errors import SandboxError
from ..guest import cgroups
from ..loopbound import on_loop_close, per_loop
from ..shortages import told
from .control import Control

STOP_SECONDS = 5.0
KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # some Python builds find their own library by it

_parked: list[ForkServer] = []
_parked_lock = threading.Lock()


async def current() -> ForkServer:
    """The running loop's fork server, started if there is none or it has died."""
    holder: _Holder = per_loop(_Holder, _Holder)
    return await holder.get()


class _Holder:
    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._server: ForkServer | None = None
        on_loop_close(self.close)

    async def get(self) -> ForkServer:
        async with self._lock:
            if self._server is None or not self._server.alive:
                if self._server is not None:
                    await self._server.stop()
                self._server = _unpark() or ForkServer.start()
                await self._server.attach()
            return self._server

    async def close(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        if server.alive and server.idle and not _parked:
            await server.detach()
            with _parked_lock:
                _parked.append(server)
        else:
            await server.stop()


def _unpark() -> ForkServer | None:
    with _parked_lock:
        while _parked:
            server = _parked.pop()
            if server.process.poll() is None:
                return server
            server.discard()
    return None


def parked_pids() -> set[int]:
    """Process ids of the idle fork servers that wait for the next event loop."""
    with _parked_lock:
        return {server.process.pid for server in _parked}


def parked_fds() -> set[int]:
    """Descriptors that the parked fork servers hold in this process."""
    with _parked_lock:
        return {number for server in _parked for number in server.descriptors()}


@atexit.register
def stop_parked() -> None:
    """End the parked fork servers."""
    with _parked_lock:
        servers, _parked[:] = list(_parked), []
    for server in servers:
        server.discard()


def _forget_in_child() -> None:
    for server in _parked:
        server.sock.close()  # the parent's; a child that kept it open would keep the supervisor from seeing the parent's end
        server.process.returncode = 0
    _parked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def command() -> list[str]:
    """The command that starts a supervisor with this Python."""
    return [sys.executable, "-I", str(Path(guest.__file__).parent)]


def clean_environment() -> dict[str, str]:
    """What of this process's environment a supervisor gets: nothing that could be a secret."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **kept}


class ForkServer(Control):
    """A supervisor process of this machine, behind a socket pair that outlives event loops."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        super().__init__()
        self.process = process
        self.sock = sock
        self._transport: asyncio.Transport | None = None
        self._detached: asyncio.Future[None] | None = None

    @classmethod
    def start(cls) -> ForkServer:
        """Start the process. Raises SandboxError."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise SandboxError(f"the supervisor process could not be started: {told(error)}") from error
        try:
            with theirs:
                process = subprocess.Popen(
                    command(),
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.DEVNULL,
                    env=clean_environment(),
                    cwd="/",
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            raise SandboxError(f"the supervisor process could not be started: {told(error)}") from error
        return cls(process, ours)

    @property
    def alive(self) -> bool:
        """Whether the process runs and its connection is whole."""
        return self.process.poll() is None and self.peer is not None and self.peer.lost is None

    def descriptors(self) -> set[int]:
        """The descriptors held in this process."""
        return {self.sock.fileno()} - {-1}

    async def attach(self) -> None:
        """Bind to the running loop. Raises SandboxError; the process is then gone."""
        loop = asyncio.get_running_loop()
        self._detached = loop.create_future()
        detached = self._detached

        def on_end() -> None:
            if not detached.done():
                detached.set_result(None)

        try:
            self._transport, _ = await loop.create_connection(lambda: self.protocol(on_end), sock=self.sock.dup())
            await self.greet(cast("Any", self._transport))
        except BaseException:
            await self.stop()
            raise

    async def detach(self) -> None:
        """Let go of the loop; the process lives on."""
        if self._transport is not None:
            self._transport.close()
            assert self._detached is not None
            await self._detached
            self._transport = None

    async def stop(self) -> None:
        """End the process with everything below it."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        self.sock.close()
        await asyncio.to_thread(self._wait)

    def discard(self) -> None:
        """``stop`` for code without a loop."""
        self.sock.close()
        self._wait()

    def _wait(self) -> None:
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.returncode != 0:
            cgroups.sweep(cgroups.roots())  # it was killed, and could not remove the groups of its workers
