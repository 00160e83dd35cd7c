"""Workers in a container: a Docker engine's, here or elsewhere."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import anyio.to_thread

from ..context import ContextFile
from ..errors import ConfigError, SandboxError
from ..lifetimes import finish
from ..server.handler import LMHandler
from ..shortages import told
from .base import Environment, Place
from .docker_box import CONTEXTS, SOCKETS, file_archive, is_own, normal
from .docker_container import WORK, Plan
from .docker_errors import EngineDown
from .docker_leftovers import sweep, sweeping
from .docker_rooms import Room, Rooms
from .holders import Holders
from .supervised import SupervisedPlace

logger = logging.getLogger("arlm.environments")

NOBODY = (65534, 65534)  # user and group of containers where the host is root
IMAGE = "python:3.12-slim"
PIDS = 4096  # of a container: its 256 workers with two threads each, and what their cells start
LEAST_PIDS = 16
MOST_CPUS = 1e9  # what an engine can read; one that has fewer says how many
DISK_BYTES = 1024**3
LEAST_BYTES = 64 * 1024 * 1024
RETURN_SECONDS = 30.0  # for an engine that is being restarted to be there again
AGAIN_SECONDS = (0.1, 1.0)  # between two looks for it: the first, the longest

Transport = Literal["unix", "stdio"]


class DockerREPL(Environment):
    """Workers run in a container: no network, nothing to write to but a work folder of limited size, no capabilities, not root.

    The image needs Python 3.9 or later as ``python3`` or ``python``, and nothing else. A run's children are further workers in its
    container. A container that was killed is replaced by a fresh one, with the contexts in place.

    Args:
        image: pulled when the engine does not have it.
        network: False: none. True: the engine's default. A name: that network of the engine's.
        mounts: files and folders of the engine's machine, ``"SOURCE:TARGET"`` for reading or ``"SOURCE:TARGET:rw"``; absolute paths.
        user: ``UID`` or ``"UID:GID"`` of the processes inside. None: nobody where the host is root, else the host's user, who alone can
            then reach the socket and the contexts.
        runtime: of the engine's runtimes, such as ``"runsc"``; None: its default.
        memory: bytes that a container may have with all that is in it; None: half of what the engine has.
        cpus: CPUs that it may use, such as 1.5; None: all of the engine's but one.
        pids: processes and threads that it may have.
        disk: bytes that may be written to its work folder. They count as memory.
        transport: the road of the frames. ``"unix"``: a mounted socket, for an engine on this machine; ``"stdio"``: the container's
            standard input and output, for any. None: the first where it can be had.
        pool: containers kept started for the next runs of this event loop; none is used twice.
        engine: its URL (``unix://…``, ``tcp://…``, ``ssh://…``); None: the one that the docker command would use.

    Raises:
        ConfigError: an option cannot be what it is.
    """

    name: ClassVar[str] = "docker"

    def __init__(
        self,
        *,
        image: str = IMAGE,
        network: bool | str = False,
        mounts: Sequence[str] = (),
        user: str | int | None = None,
        runtime: str | None = None,
        memory: int | None = None,
        cpus: float | None = None,
        pids: int = PIDS,
        disk: int = DISK_BYTES,
        transport: Transport | None = None,
        pool: int = 0,
        engine: str | None = None,
    ) -> None:
        if transport not in (None, "unix", "stdio"):
            raise _wrong("transport", "'unix' or 'stdio'", transport)
        if cpus is not None and not (isinstance(cpus, (int, float)) and not isinstance(cpus, bool) and 0.01 <= cpus <= MOST_CPUS):
            raise _wrong("cpus", "a number from 0.01 to as many CPUs as the engine has", cpus)
        for name, text in (("image", image), ("runtime", runtime), ("engine", engine)):
            if text is not None and not (isinstance(text, str) and text.strip()):
                raise _wrong(name, "a name" if name != "engine" else "a URL", text)
        if not isinstance(network, bool) and not (isinstance(network, str) and network.strip()):
            raise _wrong("network", "True, False or the name of a network", network)
        self._rooms = Rooms(
            plan=Plan(
                image=image,
                network=network,
                mounts=_mounts(mounts),
                user=_user(user),
                runtime=runtime,
                memory=None if memory is None else _whole("memory", memory, LEAST_BYTES, "bytes"),
                cpus=cpus,
                pids=_whole("pids", pids, LEAST_PIDS),
                disk=_whole("disk", disk, 1024 * 1024, "bytes"),
            ),
            engine=engine,
            transport=transport,
            size=_whole("pool", pool, 0),
        )

    def check(self, *, memory_limit: int | None) -> None:
        """See Environment: a worker cannot have more memory than its container."""
        most = self._rooms.plan.memory
        if memory_limit is not None and most is not None and memory_limit > most:
            raise ConfigError(
                f"memory_limit is {memory_limit:,} bytes, and the container may have {most:,}: raise environment_options memory"
            )

    @asynccontextmanager
    async def open(self, handler: LMHandler, scratch: Path) -> AsyncIterator[Place]:
        """See Environment. Leaving it removes the container."""
        folder = scratch / "docker"
        room = await self._rooms.take(folder)
        place: _DockerPlace | None = None
        try:
            if room.socket is not None:
                handler.listen(room.socket)
                room.box.give(room.socket, 0o600)
            place = _DockerPlace(room, handler, scratch)
            async with sweeping(room.engine):
                yield place
        finally:
            await finish(room.close if place is None else place.close, what="the container")

    async def sweep(self, *, everything: bool = False) -> list[str]:
        """See Environment: removes the containers of dead hosts."""
        return await sweep(self._rooms.engine, everything=everything)


class _DockerPlace(SupervisedPlace):
    def __init__(self, room: Room, handler: LMHandler, scratch: Path) -> None:
        super().__init__(
            room.container.control,
            handler,
            folder=WORK,
            address=None if room.socket is None else {"unix": f"{SOCKETS}/{room.socket.name}"},
            confine=room.plan.doors(),
            processes=None,
            holders=Holders(lambda path: str(self._files.get(path, path))),
        )
        self._room = room
        self._scratch = scratch
        self._files: dict[str, Path] = {}  # of contexts: where the host has what workers see under a path
        self._put = 0
        self._renewing = asyncio.Lock()
        self._closed = False

    async def _renew(self) -> None:
        async with self._renewing:
            if not self._is_lost():
                return
            if self._closed:
                raise SandboxError("the place was closed")
            await _once_it_is_back(self._room.renew)
            for path, file in [*self._files.items()] if not self._room.box.shared else ():  # more may be put meanwhile
                await self._upload(file, Path(path).name)
            self._control = self._room.container.control

    async def put(self, file: ContextFile) -> str:
        """See Place: workers read the host's file where they can see it, else a copy in the container."""
        self._put += 1
        name = f"{self._put}"
        path = f"{CONTEXTS}/{name}"
        self._files[path] = file.path
        try:
            await (self._put_in_box(file.path, name) if self._room.box.shared else self._put_in_container(file.path, name))
        except BaseException:
            del self._files[path]
            raise
        return path

    async def _put_in_box(self, path: Path, name: str) -> None:
        try:
            await anyio.to_thread.run_sync(self._share, path, name)
        except OSError as error:
            raise SandboxError(f"{path} could not be made readable for the container: {told(error)}") from error

    async def _put_in_container(self, path: Path, name: str) -> None:
        try:
            await self._upload(path, name)
        except SandboxError:
            if not await self._room.container.has_ended():
                raise
            await self._renew()  # and copy it with the others

    def _share(self, path: Path, name: str) -> None:
        if path.is_relative_to(self._scratch):
            os.chmod(path, 0o644)  # in a folder of this user alone
        self._room.box.add(path, name)

    async def _upload(self, path: Path, name: str) -> None:
        try:
            with open(path, "rb") as file:  # noqa: ASYNC230 - a cancel would lose a file that a thread has opened
                size = os.fstat(file.fileno()).st_size
                try:
                    await self._room.container.upload(CONTEXTS, file_archive(file, name))
                except SandboxError:
                    if os.fstat(file.fileno()).st_size < size:  # of which the client makes an engine that does not answer
                        raise SandboxError(f"{path} became shorter while it was copied to the container") from None
                    raise
        except OSError as error:
            raise SandboxError(f"{path} could not be copied to the container: {told(error)}") from error

    async def drop(self, path: str) -> None:
        """See Place. A copy in the container stays until it is removed."""
        self._files.pop(path, None)
        if self._room.box.shared:
            await anyio.to_thread.run_sync(self._room.box.remove, Path(path).name)

    async def close(self) -> None:
        """Remove the container, and with it all workers."""
        self._closed = True
        await self._room.close()


async def _once_it_is_back(renew: Callable[[], Awaitable[None]]) -> None:
    """Renew as soon as an engine answers: it may be restarting. Raises SandboxError."""
    loop = asyncio.get_running_loop()
    deadline, pause = loop.time() + RETURN_SECONDS, AGAIN_SECONDS[0]
    while True:
        try:
            await renew()
        except EngineDown:
            if loop.time() >= deadline:
                raise
            logger.info("the Docker engine does not answer; trying again")
        else:
            return
        await asyncio.sleep(pause)
        pause = min(2 * pause, AGAIN_SECONDS[1])


def _wrong(name: str, wanted: str, given: object) -> ConfigError:
    return ConfigError(f"environment_options: {name} must be {wanted}, not {given!r}")


def _whole(name: str, given: Any, least: int, unit: str = "") -> int:
    if not isinstance(given, int) or isinstance(given, bool) or given < least:
        raise _wrong(name, f"a whole number of {f'{unit}, ' if unit else ''}at least {least:,}", given)
    return given


def _mounts(given: Sequence[str]) -> tuple[tuple[str, str, bool], ...]:
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ConfigError(f'environment_options: mounts is a list such as ["/data:/data", "/out:/out:rw"], not {given!r}')
    found = []
    for text in given:
        parts = str(text).split(":")
        if len(parts) not in (2, 3) or not all(part.startswith("/") for part in parts[:2]) or parts[2:] not in ([], ["ro"], ["rw"]):
            raise _wrong("mounts", "a list of 'SOURCE:TARGET' or 'SOURCE:TARGET:rw' with absolute paths", text)
        target = normal(parts[1])
        if target in ("/", "/proc", "/sys", "/dev", WORK) or is_own(target):
            raise ConfigError(f"environment_options: mounts: {parts[1]} is needed for the container itself; mount it elsewhere")
        found.append((parts[0], target, parts[2:] == ["rw"]))
    return tuple(found)


def _user(given: str | int | None) -> tuple[int, int]:
    if given is None:
        return NOBODY if sys.platform != "linux" or os.geteuid() == 0 else (os.geteuid(), os.getegid())
    text = str(given)
    if isinstance(given, bool) or not isinstance(given, (str, int)) or not re.fullmatch(r"\d{1,9}(:\d{1,9})?", text):
        raise _wrong("user", "UID or 'UID:GID' in numbers", given)
    uid, _, gid = text.partition(":")
    return int(uid), int(gid or uid)
