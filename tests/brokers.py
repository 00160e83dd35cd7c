"""Brokers to test against: one in this process whose supervisor says everything again, and sandboxes behind a gateway."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from arlm.broker.__main__ import listen
from arlm.broker.app import Broker
from arlm.broker.relay import Relay
from arlm.broker.streams import SUPERVISOR
from arlm.server.poller import Poller
from arlm.testing import conformance
from arlm.testing.gateway import Gateway
from arlm.testing.loopback import LoopbackREPL

TOKEN = "canary-host-t0ken"
PATIENCE_S = 30.0  # for what takes milliseconds; reached only by a failure
Wrap = Callable[[Any], Any]


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        await self.on_tick(0)
        while not self.should_exit:  # the original asks every 100 ms
            await asyncio.sleep(0.01)


@dataclass
class Echo:
    """A broker whose supervisor is ``cat``: what it is sent comes back."""

    url: str
    relay: Relay


@asynccontextmanager
async def served(app: Any, certificate: Path | None = None) -> AsyncIterator[str]:
    """An application on a port; its URL. With a certificate it speaks TLS."""
    with listen("127.0.0.1", 0) as sock:
        config = uvicorn.Config(
            app, http="h11", lifespan="off", log_level="critical", timeout_graceful_shutdown=0, ssl_certfile=certificate
        )
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            yield f"{'http' if certificate is None else 'https'}://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


@asynccontextmanager
async def open_echo(wrap: Wrap = lambda app: app, certificate: Path | None = None) -> AsyncIterator[Echo]:
    """An Echo; ``wrap`` may put something around its application."""
    pipe = asyncio.subprocess.PIPE
    supervisor = await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=pipe)
    assert supervisor.stdin is not None
    relay = Relay(supervisor)
    reading = asyncio.create_task(relay.read_supervisor())
    try:
        async with served(wrap(Broker(relay, TOKEN).app), certificate) as url:
            yield Echo(url, relay)
    finally:
        reading.cancel()
        supervisor.stdin.close()
        await asyncio.wait({reading})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await supervisor.wait()
        if supervisor.returncode is None:
            supervisor.kill()
            await supervisor.wait()


@dataclass
class Heard:
    """What a Poller passed on."""

    data: bytearray = field(default_factory=bytearray)
    lost: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def receive(self, channel: int, data: bytes) -> None:
        assert channel == SUPERVISOR
        self.data += data
        self.changed.set()

    def on_lost(self, reason: str) -> None:
        self.lost.append(reason)
        self.changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def polling(url: str, heard: Heard, **options: Any) -> AsyncIterator[Poller]:
    """An open Poller."""
    poller = Poller(url, options.pop("token", TOKEN), receive=heard.receive, on_lost=heard.on_lost, **options)
    try:
        await poller.open()
        yield poller
    finally:
        await poller.close()


def loopback(gateway: Gateway | None = None, **attributes: Any) -> LoopbackREPL:
    """The environment, its brokers behind a gateway: always the newest. ``attributes`` of the class are set."""

    def reach(url: str) -> str:
        assert gateway is not None
        gateway.upstream = url
        return gateway.url

    environment = LoopbackREPL(reach=None if gateway is None else reach)
    for name, value in attributes.items():
        assert hasattr(environment, name), name
        setattr(environment, name, value)
    return environment


def subject(environment: LoopbackREPL) -> conformance.Subject:
    """For ``open_bench``."""
    return conformance.Subject(name="loopback", environment=lambda: environment, alive=conformance.alive_here)
