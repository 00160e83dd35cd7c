"""Sandboxes: machines somewhere that take files, run one program, and are reached by HTTP alone. What an adapter has to say of one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..lifetimes import finish
from ..server.handler import LMHandler
from ..server.poller import LOST_SECONDS, WAIT_SECONDS
from .base import Environment, Place
from .brokered import BrokeredPlace, Sandbox

__all__ = ["Reach", "Sandbox", "SandboxEnvironment"]

START_SECONDS = 600.0  # a cloud that makes an image first takes minutes
CLOSE_SECONDS = 60.0  # a cloud makes a machine in seconds, and one that was given up half made may go on costing
IDLE_SECONDS = 120.0  # of a broker without a word of the host's, after which a broker ends, and with it all that runs there


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How a started broker is reached.

    Attributes:
        url: from the host, without a path.
        headers: that the gateway wants in each request.
        port: that it listens on, inside.
    """

    url: str
    port: int
    headers: Mapping[str, str] = field(default_factory=dict)


class SandboxEnvironment(Environment):
    """An environment whose places are sandboxes. An adapter writes ``create``; all else is shared.

    Attributes:
        own_image: whether what a sandbox's disk holds is there for cells alone, so that workers may read all of it.
        network: whether cells may use the network, as far as the sandbox has one.
        idle_seconds: how long what runs there outlives a host that says nothing.
        wait_seconds: how long a request waits for news there at most, where the gateway allows it.
        lost_seconds: how long nothing may get through, in one direction or in both, until a fresh sandbox takes over.
        start_seconds: how long creating a sandbox and starting the broker in it may take, together.
        close_seconds: how long is waited for the end of sandboxes, and of their making, when a place is left.
    """

    own_image = True
    network = False
    idle_seconds = IDLE_SECONDS
    wait_seconds = WAIT_SECONDS
    lost_seconds = LOST_SECONDS
    start_seconds = START_SECONDS
    close_seconds = CLOSE_SECONDS

    @abstractmethod
    async def create(self) -> Sandbox:
        """Have a new sandbox. Raises SandboxError, with nothing left of the attempt.

        It is not cancelled: who asked waits for its end, ``close_seconds`` at most, and destroys what it made.
        """

    @asynccontextmanager
    async def open(self, handler: LMHandler, scratch: Path) -> AsyncIterator[Place]:
        """See Environment. Leaving it destroys the sandbox."""
        place = BrokeredPlace(self, handler)
        try:
            await place.open()
            yield place
        finally:
            await finish(place.close, what=f"the sandbox of {self.name}", seconds=self.close_seconds)
