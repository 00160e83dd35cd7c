"""Rooms: a container with what it shares with the host, ready for a place; some may be kept ready before they are asked for."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import anyio.to_thread

from ..errors import ArlmError, SandboxError
from ..lifetimes import finish
from ..loopbound import on_loop_close, per_loop
from ..scratch import Scratch, make_scratch
from .docker_box import Box
from .docker_container import Container, Plan, open_container
from .docker_engine import Engine, connect
from .opening import opened_for, opening_for

logger = logging.getLogger("arlm.environments")

RUNTIMES = ("runc", "crun")  # whose containers are on the host's kernel, where a mounted socket is the host's
SEES_FILES = ("runsc", "kata", "gvisor")  # parts of the names of others that can mount the host's files all the same
NOT_THERE = ("bind source path does not exist", "mounts denied", "is not shared from the host")


@dataclass(slots=True)
class Room:
    """A container that answers, for one place. Nothing of it hangs on an async generator, which a loop's end would close by itself:
    it may wait in a pool until then.

    Attributes:
        plan: what the container is made of.
        engine: where it is.
        box: what it shares with the host.
        container: replaced when it was lost.
        socket: where the host listens for its workers; None when their frames come through the container's standard streams.
    """

    plan: Plan
    engine: Engine
    box: Box
    container: Container
    socket: Path | None
    _scratch: Scratch | None

    async def renew(self) -> None:
        """Replace a lost container. Raises SandboxError; a second call tries again."""
        await self.container.close()
        self.container = await open_container(self.engine, self.plan, self.box, self.container.run)

    async def close(self) -> None:
        """Remove the container and the folder, and let the engine go. Raises nothing: what could not be removed is logged."""
        try:
            await self.container.leave()
        finally:
            await _leave(self.engine, self._scratch)


async def open_room(plan: Plan, engine_url: str | None, transport: Literal["unix", "stdio"] | None, folder: Path | None) -> Room:
    """Open one.

    Args:
        folder: for what is shared, made here; None: a temporary one of its own.

    Raises:
        ConfigError, SandboxError: it cannot be had; nothing is left of the attempt.

    Cancelled, it removes what it has made first.
    """
    scratch: Scratch | None = None
    engine = await connect(engine_url)
    try:
        if folder is None:
            scratch = make_scratch()
            folder = scratch.path / "docker"
        shared, by_socket = what_is_shared(engine, plan.runtime, transport, plan.user[0])
        box = Box(folder=folder, user=plan.user, shared=shared)
        await anyio.to_thread.run_sync(box.prepare)
        try:
            container = await open_container(engine, plan, box, opened_for())
        except SandboxError as error:
            if not shared or transport == "unix" or not any(words in str(error) for words in NOT_THERE):
                raise
            logger.info("the Docker engine does not see this machine's files, which are copied to the container (%s)", error)
            box, by_socket = Box(folder=folder, user=plan.user, shared=False), False
            container = await open_container(engine, plan, box, opened_for())
        return Room(plan, engine, box, container, box.socket if by_socket else None, scratch)
    except BaseException:
        await finish(lambda: _leave(engine, scratch), what="the container's folder")
        raise


async def _leave(engine: Engine, scratch: Scratch | None) -> None:
    try:
        if scratch is not None:
            await scratch.remove()
    finally:
        await engine.close()


def what_is_shared(
    engine: Engine, runtime: str | None, transport: Literal["unix", "stdio"] | None, uid: int | None = None
) -> tuple[bool, bool]:
    """Whether a container can mount this machine's files, and connect to its sockets. Raises SandboxError for ``"unix"`` where not.

    Args:
        uid: the user of its processes; root alone can let another one than itself reach what is private. None: one who can.
    """
    runtime = engine.runtime_of(runtime)
    on_this_kernel = runtime in RUNTIMES or runtime.startswith("io.containerd.runc")
    reaches = uid is None or os.geteuid() in (0, uid)
    mounted = engine.is_here and not engine.maps_users and not engine.labels_files and reaches
    files = mounted and (on_this_kernel or any(part in runtime for part in SEES_FILES))
    sockets = files and on_this_kernel
    if transport == "unix" and not sockets:
        if files:
            why = f"the runtime {runtime} has a kernel of its own"
        elif not reaches:
            why = f"only root can let user {uid} of the container (option `user`) reach a socket of user {os.geteuid()}"
        elif engine.labels_files:
            why = "SELinux keeps containers from this machine's sockets"
        else:
            why = "the Docker engine is not on this machine, or maps users"
        raise SandboxError(f"transport='unix' cannot be had: {why}; leave it out, or use 'stdio'")
    return files, sockets and transport != "stdio"


@dataclass(frozen=True, kw_only=True)
class Rooms:
    """Where a DockerREPL gets its rooms: made when asked for, or kept ready.

    Attributes:
        plan, engine, transport: of each.
        size: how many are kept ready on each event loop.
    """

    plan: Plan
    engine: str | None
    transport: Literal["unix", "stdio"] | None
    size: int

    async def take(self, folder: Path) -> Room:
        """A room of one's own. Raises and cancels as ``open_room`` does."""
        if self.size:
            pool: _Pool = per_loop(self, lambda: _Pool(self))
            room = await pool.take()
            if room is not None:
                return room
        return await self.make(folder)

    async def make(self, folder: Path | None) -> Room:
        """A new one."""
        return await open_room(self.plan, self.engine, self.transport, folder)


class _Pool:
    """The rooms kept ready on one event loop. It ends with the loop, and with it what nobody took."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._ready: deque[Room] = deque()
        self._filling: set[asyncio.Task[None]] = set()
        on_loop_close(self.close)

    async def take(self) -> Room | None:
        """One that is ready, or None; others are begun in its place. A room that was lost meanwhile is removed."""
        taken = None
        while self._ready and taken is None:
            room = self._ready.popleft()
            if room.container.lives:
                taken = room
            else:
                await finish(room.close, what="a container of the pool")
        self._fill()
        if taken is not None:
            try:
                await taken.container.rename(opened_for())
            except BaseException:
                await finish(taken.close, what="a container of the pool")
                raise
        return taken

    def _fill(self) -> None:
        with opening_for("pool", logger.info):
            for _ in range(self._rooms.size - len(self._ready) - len(self._filling)):
                task = asyncio.get_running_loop().create_task(self._add(), name="a container for the pool")
                self._filling.add(task)
                task.add_done_callback(self._filling.discard)

    async def _add(self) -> None:
        try:
            self._ready.append(await self._rooms.make(None))
        except ArlmError as error:
            logger.warning("a container for the pool could not be started: %s", error)

    async def close(self) -> None:
        """Remove all."""
        for task in self._filling:
            task.cancel()
        if self._filling:
            await asyncio.wait(self._filling)
        rooms, self._ready = list(self._ready), deque()
        await asyncio.gather(*(room.close() for room in rooms))
