"""The default environment: workers as processes of this machine, forked from a supervisor."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import anyio
import anyio.to_thread

from ..context import FOLDER, ContextFile
from ..errors import ConfigError, SandboxError
from ..guest import cgroups
from ..guest.confine import MAX_PROCESSES, grade
from ..lifetimes import finish
from ..server.handler import LMHandler
from ..shortages import told
from .base import Environment, Place
from .control import Control
from .forkserver import STOP_SECONDS, clean_environment, command, current
from .holders import Holders
from .supervised import SupervisedPlace

READ_ALSO: list[str] = []  # what every worker may read besides; for measuring tools of the tests
WRITE_ALSO: list[str] = []  # and write

LEAST_PROCESSES = 8  # a worker has two threads; with fewer nothing could be started

Confine = Literal["auto", "require", "off"]
Road = Literal["unix", "tcp", "stdio"]


class ProcessREPL(Environment):
    """Workers are processes of the host's user: own memory, own temp folder, no environment; they can be stopped and killed whole.

    Args:
        transport: the road of their frames: ``"unix"`` (default), ``"tcp"`` (loopback), or ``"stdio"`` (through the supervisor's standard
            input and output: the road that containers and clouds use; it has a supervisor of its own).
        confine: ``"auto"``: take away from workers what this kernel lets a process take away; ``"require"``: refuse to run where a part of
            that is missing; ``"off"``: workers may do what the host's user may. ``docs/security.md`` says what each part closes.
        network: leave sockets open.
        processes: how many processes and threads a worker may have with all that it starts; None: 512, unless unconfined. Given, it is
            kept by a control group where one can be made (``docs/security.md``).
        read: files and folders that cells may read, besides Python's, the system's and the contexts.
        write: folders that cells may write, besides their own.
    """

    name: ClassVar[str] = "process"

    def __init__(
        self,
        *,
        transport: Road | None = None,
        confine: Confine = "auto",
        network: bool = False,
        processes: int | None = None,
        read: Sequence[str | Path] = (),
        write: Sequence[str | Path] = (),
    ) -> None:
        if transport not in (None, "unix", "tcp", "stdio"):
            raise ConfigError(f"environment_options: transport must be 'unix', 'tcp' or 'stdio', not {transport!r}")
        if confine not in ("auto", "require", "off"):
            raise ConfigError(f"environment_options: confine must be 'auto', 'require' or 'off', not {confine!r}")
        if processes is not None and (not isinstance(processes, int) or isinstance(processes, bool) or processes < LEAST_PROCESSES):
            raise ConfigError(f"environment_options: processes must be a whole number of at least {LEAST_PROCESSES}, not {processes!r}")
        if confine == "require":
            _require(network=network)
        doors = {"read": _existing("read", read), "write": _existing("write", write), "network": network}
        self._confine = None if confine == "off" else {**doors, "require": confine == "require", "processes": processes or MAX_PROCESSES}
        self._processes = processes
        self._stdio = transport == "stdio"
        self.transport = None if transport == "stdio" else transport

    @asynccontextmanager
    async def open(self, handler: LMHandler, scratch: Path) -> AsyncIterator[Place]:
        """See Environment."""
        (scratch / FOLDER).mkdir(exist_ok=True)  # before any worker is confined to it
        if self._stdio:
            async with _piped_supervisor() as control:
                yield _ProcessPlace(control, handler, scratch, self._confine, self._processes, relay=True)
            return
        place = _ProcessPlace(await current(), handler, scratch, self._confine, self._processes, relay=False)
        try:
            yield place
        finally:
            await finish(place.close, what="process workers")


class _ProcessPlace(SupervisedPlace):
    def __init__(
        self,
        control: Control,
        handler: LMHandler,
        scratch: Path,
        confine: Mapping[str, Any] | None,
        processes: int | None,
        *,
        relay: bool,
    ) -> None:
        super().__init__(
            control,
            handler,
            folder=str(scratch),
            address=None if relay else handler.address,
            confine=None if confine is None else _with_contexts(confine, scratch),
            processes=processes,
            holders=Holders(),
        )
        self._scratch = scratch
        self._tell_scratch()

    async def _renew(self) -> None:
        if self._address is not None and self._is_lost():
            self._control = await current()
            self._tell_scratch()

    def _tell_scratch(self) -> None:
        if self._control.peer is not None:
            self._control.peer.note({"note": "scratch", "folder": str(self._scratch)})

    async def put(self, file: ContextFile) -> str:
        """See Place: workers read the host's own file; one of the user's gets a second name, or a copy, where confined workers may read."""
        folder = self._scratch / FOLDER
        if self._confine is None or file.path.is_relative_to(folder):
            return str(file.path)
        inside = folder / f"file_{len(list(folder.iterdir()))}"
        try:
            await anyio.to_thread.run_sync(link_or_copy, file.path, inside)
        except OSError as error:
            raise SandboxError(f"{file.path} could not be copied to {folder}, where workers may read it: {told(error)}") from error
        return str(inside)


def _with_contexts(confine: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    """The doors of all workers: the contexts, and what the options opened."""
    read = [*confine["read"], *READ_ALSO, str(scratch / FOLDER)]
    return {**confine, "read": read, "write": [*confine["write"], *WRITE_ALSO]}


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
        raise SandboxError(f"the supervisor process could not be started: {told(error)}") from error
    assert process.stdin is not None
    reader = asyncio.ensure_future(_pump(process, control.protocol(lambda: None)))
    try:
        await control.greet(cast("Any", process.stdin.transport))
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
    if process.returncode != 0:
        await anyio.to_thread.run_sync(cgroups.sweep, cgroups.roots())
    await reader


def _require(*, network: bool) -> None:
    """Raise SandboxError when this system lacks a part of the confinement: now, before anything is started."""
    wanted = {name: there for name, there in grade().items() if not (network and name in ("tcp", "sockets"))}
    missing = [name for name, there in wanted.items() if not there]
    if missing:
        raise SandboxError(f"confine='require': this system cannot close {', '.join(missing)}; see `arlm doctor`, or use docker or a cloud")


def _existing(option: str, paths: Sequence[str | Path]) -> list[str]:
    if isinstance(paths, (str, Path)):
        raise ConfigError(f"environment_options: {option} is a list of paths, not one path")
    for path in paths:
        if not Path(path).exists():
            raise ConfigError(f"environment_options: {option}: {path} does not exist")
    return [os.path.realpath(path) for path in paths]


def link_or_copy(path: Path, inside: Path) -> None:
    """Give a file a second name, or copy it where that cannot be. Raises OSError, with nothing left of the attempt."""
    real = path.resolve()
    try:
        os.link(real, inside)
    except FileExistsError:
        raise  # what is there may be a second name of another file of the user's, which a copy would be written into
    except OSError:  # another file system, or not our file
        try:
            shutil.copyfile(real, inside)
        except OSError:
            inside.unlink(missing_ok=True)  # half of it may be what fills the disk
            raise
