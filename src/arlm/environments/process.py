"""The default environment: workers as processes of this machine, forked from a supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar, Literal

import anyio

from ..context import ContextFile
from ..errors import ConfigError, SandboxError
from ..lifetimes import finish
from ..server.connection import Connection
from ..server.handler import LMHandler, Ticket
from .base import Environment, Place, Worker
from .forkserver import STOP_SECONDS, Control, LocalWorker, clean_environment, command, current

Road = Literal["unix", "tcp", "stdio"]


class ProcessREPL(Environment):
    """Workers are processes of the host's user: own memory, own temp folder, no environment; they can be stopped and killed whole.

    Args:
        transport: the road of their frames: ``"unix"`` (default), ``"tcp"`` (loopback), or ``"stdio"`` (through the supervisor's standard
            input and output: the road that containers and clouds use; it has a supervisor of its own).
    """

    name: ClassVar[str] = "process"

    def __init__(self, *, transport: Road | None = None) -> None:
        if transport not in (None, "unix", "tcp", "stdio"):
            raise ConfigError(f"environment_options: transport must be 'unix', 'tcp' or 'stdio', not {transport!r}")
        self._stdio = transport == "stdio"
        self.transport = None if transport == "stdio" else transport

    @asynccontextmanager
    async def open(self, handler: LMHandler, scratch: Path) -> AsyncIterator[Place]:
        """See Environment."""
        if self._stdio:
            async with _piped_supervisor() as control:
                yield _ProcessPlace(control, handler, scratch, relay=True)
            return
        place = _ProcessPlace(await current(), handler, scratch, relay=False)
        try:
            yield place
        finally:
            await finish(place.close, what="process workers")


class _ProcessPlace(Place):
    def __init__(self, control: Control, handler: LMHandler, scratch: Path, *, relay: bool) -> None:
        self._control = control
        self._handler = handler
        self._scratch = scratch
        self._relay = relay
        self._workers: list[LocalWorker] = []
        self._count = 0

    async def start_worker(self, ticket: Ticket, *, memory_limit: int | None) -> Worker:
        """See Place."""
        self._count += 1
        args = {
            "token": ticket.token,
            "dir": str(self._scratch / f"w{self._count}"),
            "address": {"relay": True} if self._relay else self._handler.address,
            "memory_limit": memory_limit,
            "scratch": str(self._scratch),
        }
        relay: Connection | None = self._handler.connection() if self._relay else None
        control = self._control
        if not self._relay and (control.peer is None or control.peer.lost is not None):
            control = self._control = await current()  # the fork server died; the next worker gets a new one
        worker = control.worker(relay)
        self._workers = [*(known for known in self._workers if not known.exited.done()), worker]
        await control.spawn(worker, args)
        return worker

    async def put(self, file: ContextFile) -> str:
        """See Place: workers read the host's own file."""
        return str(file.path)

    async def close(self) -> None:
        """Kill all workers; all orders go out before the first is waited for."""
        orders = [order for worker in self._workers if (order := worker.order_kill()) is not None]
        if orders:
            await asyncio.wait(orders)


@asynccontextmanager
async def _piped_supervisor() -> AsyncIterator[Control]:
    """A supervisor of its own, spoken to over its standard input and output."""
    control = Control()
    process: asyncio.subprocess.Process | None = None
    try:
        process = await asyncio.create_subprocess_exec(
            *command(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=clean_environment(),
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxError(f"the supervisor process could not be started: {error}") from error
    assert process.stdin is not None
    reader = asyncio.ensure_future(_pump(process, control.protocol(lambda: None)))
    try:
        await control.greet(process.stdin.transport)
        yield control
    finally:
        await finish(lambda: _end_piped(process, reader), what="the piped supervisor")


async def _pump(process: asyncio.subprocess.Process, protocol: asyncio.Protocol) -> None:
    assert process.stdout is not None
    try:
        while data := await process.stdout.read(256 * 1024):
            protocol.data_received(data)
    finally:
        protocol.connection_lost(None)


async def _end_piped(process: asyncio.subprocess.Process, reader: asyncio.Future[None]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    with anyio.move_on_after(STOP_SECONDS):
        await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
    await reader
