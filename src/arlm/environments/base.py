"""What an environment is: configuration that opens a *place*; a place starts *workers*; a REPL runs in a worker."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ..context import ContextFile
from ..lifetimes import CLEANUP_SECONDS
from ..server.handler import LMHandler, Ticket
from ..types import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a worker ended.

    Attributes:
        status: the exit status; negative for a signal, as ``subprocess`` gives it. None when the whole place was lost.
        output: what it had printed and nobody had read yet.
        reason: the limit that it exceeded, in words; empty when that is not why it ended.
    """

    status: int | None
    output: str = ""
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        match self.status:
            case None:
                return "the place it ran in was lost"
            case -9:
                return "it was killed (signal 9; the system's memory may have run out)"
            case 70:
                return "it lost its connection to the host"
            case 71:
                return "its connection thread failed (out of memory?)"
            case status if status < 0:
                return f"it was ended by signal {-status}"
            case status:
                return f"it exited with status {status}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A context in place: ``name`` and ``aliases`` in the namespace, read from ``path`` as the worker sees it; or ``value``."""

    name: str
    aliases: tuple[str, ...]
    path: str = ""
    kind: str = "text"
    value: str | None = None

    def args(self) -> dict[str, JSON]:
        """As the worker's ``load`` takes it."""
        if self.value is not None:
            return {"name": self.name, "aliases": list(self.aliases), "value": self.value}
        return {"name": self.name, "aliases": list(self.aliases), "path": self.path, "kind": self.kind}


class Worker(ABC):
    """A running worker process.

    Attributes:
        exited: done once the process is gone, however it went.
    """

    exited: asyncio.Future[Exit]

    @abstractmethod
    async def kill(self) -> None:
        """Kill the worker and every process below it; returns when they are gone. Harmless when they are. The order is given before the
        first await, so a cancelled kill still kills."""

    @abstractmethod
    async def cpu_seconds(self) -> float:
        """CPU time that the worker and the processes below it have used; 0.0 where the place cannot say."""


class Place(ABC):
    """Where workers run: this machine, a container, a sandbox."""

    @abstractmethod
    async def start_worker(self, ticket: Ticket, *, memory_limit: int | None, contexts: Sequence[tuple[str, str]] = ()) -> Worker:
        """Start a worker that will connect with the ticket's token.

        Args:
            memory_limit: bytes, or None.
            contexts: path (as ``put`` gave it) and kind of what it will be asked to load: a place may have them ready.

        Raises:
            SandboxError: it could not be started.
        """

    @abstractmethod
    async def put(self, file: ContextFile) -> str:
        """Make a context readable for workers; returns its path there. The file stays as it is until it is dropped."""

    def where(self, path: str) -> str:
        """Where a context is now, by the path that ``put`` gave: a place that was replaced may have it elsewhere."""
        return path

    async def drop(self, path: str) -> None:  # noqa: B027 - a place that reads the host's own files has nothing to take away
        """A context that no worker reads any more, by its path there, may be taken away."""


class Environment(ABC):
    """A kind of place, with its options. Third parties register one in the entry-point group ``arlm.environments``.

    Attributes:
        name: as ``environment=`` names it.
        transport: how workers reach the handler, where the environment insists: ``"unix"`` or ``"tcp"``.
        close_seconds: how long leaving one of its places may take; then it is given up, with an error in the log.
    """

    name: ClassVar[str]
    transport: Literal["unix", "tcp"] | None = None
    close_seconds: float = CLEANUP_SECONDS

    def check(self, *, memory_limit: int | None) -> None:  # noqa: B027 - an environment that can do everything has nothing to refuse
        """Raise ConfigError for what the environment cannot do, before anything is started.

        Args:
            memory_limit: bytes per worker, or None.
        """

    @abstractmethod
    def open(self, handler: LMHandler, scratch: Path) -> AbstractAsyncContextManager[Place]:
        """Open a place.

        Args:
            handler: what the place's workers connect to.
            scratch: a private folder of the host, removed after the place is closed.

        Leaving the context kills every worker of the place, also when the block is cancelled.

        Raises:
            SandboxError: the place cannot be opened; nothing is left of the attempt.
        """

    async def sweep(self, *, everything: bool = False) -> list[str]:
        """Remove what dead hosts left outside this machine's processes: containers, sandboxes. ``arlm clean`` calls it.

        Args:
            everything: also what belongs to living hosts, and what nobody can tell of: all that carries arlm's label.

        Returns:
            a line for each thing removed; none where an environment leaves nothing, as those do that do not override this.

        Without ``everything`` only that goes whose host is dead for certain (``owner.is_dead``) or has no use for it any more. May be
        called at any time, by several at once: what another has removed meanwhile is no error. Cancelled, it stops; what was removed by
        then stays removed.

        Raises:
            SandboxError: what is there cannot be looked at or removed: no engine, no permission, no answer.
            ConfigError: the same for want of a key or of a package.
        """
        return []
