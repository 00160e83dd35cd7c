"""One container: what it is made of, the supervisor in it, why it ended, its removal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import SandboxError
from ..guest.confine import MAX_PROCESSES
from ..lifetimes import finish
from .base import Exit
from .control import Control, ForkedWorker
from .docker_box import CONTEXTS, GUEST, INSIDE, Box, guest_archive, is_own, normal
from .docker_engine import Engine, let_go
from .docker_errors import NOT_AN_ENGINE, EngineDown, NameTaken, NoSuchImage, NotStarted
from .docker_input import InputWriter
from .docker_pull import pull
from .owner import owner

if TYPE_CHECKING:
    from aiodocker.stream import Stream

logger = logging.getLogger("arlm.environments")

LABEL = "arlm.owner"  # its value says which process made the container: see owner.py
WORK = "/work"  # the one folder that can be written to
SHARED_MEMORY_BYTES = 64 * 1024 * 1024  # of /dev/shm, where the locks of multiprocessing live: what Docker gives by itself
EMPTY = "ro,noexec,nosuid,nodev,size=64k"  # a folder that nothing is in, and nothing comes into
PYTHONS = ("python3", "python")
NO_PROGRAM = ("executable file not found", "error finding executable", "no such file or directory")
STDOUT = 1
LOST = "the connection to its container was lost"
LAST_WORDS = 2_000  # characters of its standard error that are shown when it ends
END_SECONDS = 2.0  # from the end of its streams until the engine knows why
LOOK_SECONDS = 0.02  # between two looks for one that is being made, which takes a tenth of a second
LAST_SECONDS = 0.5  # for a supervisor to kill its last workers, which takes milliseconds; an engine needs as long for all that there is
CLOSE_SECONDS = 8.0  # for an engine to remove it, which takes a tenth of a second: below CLEANUP_SECONDS, to say what came of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What containers are made of; see DockerREPL."""

    image: str
    network: bool | str
    mounts: tuple[tuple[str, str, bool], ...]  # source, target, whether it may be written
    user: tuple[int, int]
    runtime: str | None
    memory: int | None
    cpus: float | None
    pids: int
    disk: int

    def memory_on(self, engine: Engine) -> int:
        """Bytes that a container may have: what was asked for, or half of what the engine has."""
        return self.memory or max(int(engine.info.get("MemTotal") or 0) // 2, 512 * 1024 * 1024)

    def cpus_on(self, engine: Engine) -> float:
        """CPUs that a container may use: what was asked for, or all but one, which is the host's."""
        return self.cpus or max(1, int(engine.info.get("NCPU") or 1) - 1)

    def doors(self) -> dict[str, Any]:
        """What workers may reach inside: the image, the contexts, the mounts. See ``guest.confine``."""
        read = ["/", CONTEXTS, *(target for _, target, _ in self.mounts)]
        write = ["/dev/shm", *(target for _, target, may_write in self.mounts if may_write)]  # noqa: S108 - the container's own
        return {"read": read, "write": write, "network": bool(self.network), "require": False, "processes": MAX_PROCESSES}

    def config(self, engine: Engine, box: Box, python: str, run: str, volumes: Sequence[str]) -> dict[str, Any]:
        """The container as the engine's API takes it: everything closed that no cell needs.

        Args:
            run: whose it is, for a label.
            volumes: that the image wants; on the engine's disk they could fill it, so they are empty folders here.
        """
        user, group = self.user
        memory = self.memory_on(engine)
        given = {WORK, *(target for _, target, _ in self.mounts)}
        empty = [it for it in map(normal, ("/tmp", *volumes)) if it not in given and not is_own(it)]  # noqa: S108 - the container's own
        labels = {LABEL: owner(), "arlm.run": run, "arlm.version": __version__}
        network = {False: "none", True: "default"}.get(self.network, self.network) if isinstance(self.network, bool) else self.network
        return {
            "Image": self.image,
            "Entrypoint": [python],
            "Cmd": ["-I", GUEST],
            "User": f"{user}:{group}",
            "WorkingDir": WORK,
            "OpenStdin": True,
            "StdinOnce": True,  # when the host goes, standard input ends, and with it the supervisor
            "AttachStdin": True,
            "AttachStdout": True,
            "AttachStderr": True,
            "StopSignal": "SIGKILL",
            "Healthcheck": {"Test": ["NONE"]},
            "Labels": labels,
            "HostConfig": {
                "NetworkMode": network,
                "ReadonlyRootfs": True,
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges"],
                "PidsLimit": self.pids,
                "Memory": memory,
                "MemorySwap": memory,
                "ShmSize": SHARED_MEMORY_BYTES,
                "Tmpfs": {
                    WORK: f"rw,exec,nosuid,nodev,size={self.disk},mode=0700,uid={user},gid={group}",
                    # What would else be written to without a limit: volumes that the image wants, and the folder that gVisor mounts itself.
                    **dict.fromkeys(empty, EMPTY),
                },
                "Mounts": [*box.mounts(labels), *(_bind(*mount) for mount in self.mounts)],
                "LogConfig": {"Type": "none"},  # what it says is frames, and goes to the host alone
                "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
                **({"Runtime": self.runtime} if self.runtime else {}),
                # Where the kernel cannot limit CPUs an engine refuses to be asked; a limit that somebody wanted is asked for all the same.
                **({"NanoCpus": int(self.cpus_on(engine) * 1e9)} if self.cpus or engine.info.get("CpuCfsQuota", True) else {}),
            },
        }


def _bind(source: str, target: str, may_write: bool) -> dict[str, Any]:
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": not may_write}


class Container:
    """A running container with a supervisor in it. Made by ``open_container``.

    Attributes:
        run: the run or session that it is for.
        name: as people know it; the engine's own name for it, the id, stays when it is renamed.
        control: the supervisor's connection.
    """

    def __init__(self, engine: Engine, plan: Plan, box: Box, run: str) -> None:
        self.run = run
        self.name = _name(run)
        self.control = _Control(plan.memory_on(engine), self.leave)
        self._engine = engine
        self._plan = plan
        self._box = box
        self._id = self.name  # until the engine has said one
        self._config: dict[str, Any] = {}
        self._making: asyncio.Future[str] | None = None
        self._stream: Stream | None = None
        self._pumps: list[asyncio.Future[None]] = []
        self._words = ""
        self._closing: asyncio.Future[None] | None = None

    @property
    def lives(self) -> bool:
        """Whether its supervisor can be spoken to."""
        return self.control.peer is not None and self.control.peer.lost is None

    async def open(self, python: str) -> None:
        """Make it, start it, greet its supervisor. Raises NoSuchImage, NotStarted, EngineDown, SandboxError."""
        volumes = await self._engine.volumes_of(self._plan.image)
        # Not cancelled with the caller: the engine would go on making it, and nobody would know when it can be removed.
        self._config = self._plan.config(self._engine, self._box, python, self.run, volumes)
        self._making = asyncio.ensure_future(self._engine.create(self.name, self._config))
        self._id = await asyncio.shield(self._making)
        if not self._box.shared:
            await self._engine.upload(self._id, INSIDE, await asyncio.to_thread(guest_archive))
        stream = self._stream = await self._engine.attach(self._id)
        await self._engine.start(self._id)
        writer = InputWriter(stream)
        protocol = self.control.protocol(lambda: None)
        self._pumps = [asyncio.ensure_future(writer.run()), asyncio.ensure_future(self._pump(stream, protocol))]
        await self.control.greet(writer, seal=True)

    async def _pump(self, stream: Stream, protocol: asyncio.Protocol) -> None:
        try:
            while (message := await stream.read_out()) is not None:
                if message.stream == STDOUT:
                    protocol.data_received(message.data)
                else:
                    self._words = (self._words + message.data.decode("utf-8", "replace"))[-LAST_WORDS:]
        except Exception as error:  # of the connection, whatever the client makes of it
            self._words = self._words or str(error)
        if self._closing is None:
            why = await self._why()
            self.control.lost(why, why)

    async def _why(self) -> str:
        """Why its streams have ended, in words."""
        said = f": {self._words.strip()}" if self._words.strip() else ""
        try:
            async with asyncio.timeout(END_SECONDS):
                state = await self._engine.last_state(self._id)
            status = 0 if state is None else int(state["ExitCode"])
        except TimeoutError:
            return LOST
        except SandboxError:
            return "the Docker engine stopped or restarted, and its container with it"
        except NOT_AN_ENGINE:
            return LOST  # what answers in its place says nothing of it
        if state is None:
            return "its container was removed"
        if state.get("OOMKilled") and status != 0:
            return f"its container ran out of memory: it may have {self._plan.memory_on(self._engine):,} bytes (option `memory`)"
        if status == 137:
            return "its container was killed"
        if status == 0:
            return LOST  # its supervisor saw that too, and ended
        return f"its container ended with status {status}{said}"

    async def has_ended(self) -> bool:
        """Whether it is lost, after a moment in which that is learned: an engine refuses what is asked of a dead one at once."""
        await asyncio.wait(self._pumps[1:], timeout=2 * END_SECONDS)
        return not self.lives

    async def upload(self, folder: str, archive: Any) -> None:
        """Copy files into it, where it shares none with the host. Raises SandboxError."""
        await self._engine.upload(self._id, folder, archive)

    async def rename(self, run: str) -> None:
        """Name it after the run that takes it over; that it cannot be renamed is no reason not to."""
        self.run, name = run, _name(run)
        with contextlib.suppress(SandboxError):
            await self._engine.rename(self._id, name)
            self.name = name

    async def close(self) -> None:
        """Kill and remove it. A second call waits for the first, and tries again where that failed.

        Raises:
            SandboxError: the engine could not be told, or did not answer within CLOSE_SECONDS.
        """
        if self._closing is None or (self._closing.done() and (self._closing.cancelled() or self._closing.exception() is not None)):
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def leave(self) -> None:
        """``close`` where nobody can do anything about its failure: that is logged."""
        try:
            await self.close()
        except SandboxError as error:
            logger.warning(
                "the container %s could not be removed; `arlm clean` removes it once this process has ended (%s)", self.name, error
            )

    async def _close(self) -> None:
        try:
            if self._making is not None:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await asyncio.wait({self._making})
                    await self._remove()
        except TimeoutError:
            raise EngineDown(f"the Docker engine did not answer within {CLOSE_SECONDS:g} s") from None
        finally:
            if self._making is not None and not self._making.cancel() and not self._making.cancelled():
                self._making.exception()  # read: whoever waited has been told
            for pump in self._pumps:
                pump.cancel()
            if self._pumps:
                await asyncio.wait(self._pumps)
            if self._stream is not None:
                await let_go(self._stream)
            self.control.lost("the container was removed")  # also where the loop's end had stopped the pump

    async def _remove(self) -> None:
        """Remove it, also where it is not known whether the engine makes it: the loop's end has cut its answer off, or it was late."""
        assert self._making is not None
        unknown = self._making.cancelled() or isinstance(self._making.exception(), EngineDown)
        while not await self._engine.remove(self._id) and unknown:
            try:
                await self._engine.create(self.name, self._config)
            except NameTaken:  # it is being made, and cannot be seen yet
                await asyncio.sleep(LOOK_SECONDS)
            except NoSuchImage:
                return


class _Control(Control):
    """A supervisor's connection that knows why the kernel kills workers in a container, and what kills all of them at once.

    Args:
        memory: bytes that the container may have.
        leave: removes the container.
    """

    def __init__(self, memory: int, leave: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._memory = memory
        self._leave = leave

    async def killed(self, answer: asyncio.Future[Any]) -> None:
        """See Control. A supervisor that what it hunts leaves no CPU has no end of it: when nobody else is there, the container goes."""
        await asyncio.wait({answer}, timeout=LAST_SECONDS)
        if not answer.done() and all(worker.doomed or worker.holds for worker in self._workers.values()):
            await self._leave()
        await super().killed(answer)

    def _end(self, worker: ForkedWorker, how: Exit) -> None:
        if how.status == -signal.SIGKILL and not how.reason:
            why = f"its container may have run out of memory, of which it has {self._memory:,} bytes: option `memory`"
            how = replace(how, reason=f"it was killed (signal 9; {why})")
        super()._end(worker, how)


def _name(run: str) -> str:
    return f"arlm-{run or 'place'}-{secrets.token_hex(4)}"


async def open_container(engine: Engine, plan: Plan, box: Box, run: str) -> Container:
    """Have a container for a run or session, with a supervisor that answers; the image is pulled when it is missing.

    Raises:
        SandboxError: it cannot be had; nothing is left of the attempt.

    Cancelled, it removes what it has made first.
    """
    try:
        return await _open_with_some_python(engine, plan, box, run)
    except NoSuchImage:
        await pull(engine, plan.image)
    return await _open_with_some_python(engine, plan, box, run)


async def _open_with_some_python(engine: Engine, plan: Plan, box: Box, run: str) -> Container:
    for python in PYTHONS:
        container = Container(engine, plan, box, run)
        try:
            await container.open(python)
        except NotStarted as error:
            await finish(container.leave, what=container.name)
            if not any(words in str(error) for words in NO_PROGRAM):
                raise
        except BaseException:
            await finish(container.leave, what=container.name)
            raise
        else:
            return container
    raise SandboxError(
        f"the image {plan.image!r} has no Python: neither {' nor '.join(PYTHONS)} can be started in it; it needs 3.9 or later"
    )
