"""The host's end of a supervisor, wherever that is: workers are started, ended and relayed through one connection."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import anyio

from ..errors import SandboxError
from ..guest import wire
from ..server.connection import Connection
from ..server.peer import CallError, Peer, PeerLost, Transport
from .base import Exit, Worker
from .relay import RelayRoad, RelayTransport

KILL_SECONDS = 2.0  # for what was ordered of a supervisor; then it is asked whether it lives
ALIVE_SECONDS = 8.0  # for a supervisor to say so: it answers in milliseconds, also while it hunts processes
START_SECONDS = 30.0  # a cold disk and a loaded machine; normally 30 ms
REASON_CHARS = 500  # of why a worker ended
SUPERVISOR_UNSENT = 1024 * 1024 * 1024  # bytes; relayed workers are dropped long before, one by one

_numbers = itertools.count(1)


class Control:
    """The host's end of a supervisor's control connection: workers started, ended and relayed through it.

    Attributes:
        alive_seconds: for the supervisor to show that it lives.
    """

    alive_seconds = ALIVE_SECONDS

    def __init__(self) -> None:
        self.peer: Peer | None = None
        self._workers: dict[str, ForkedWorker] = {}
        self._road = RelayRoad()
        self._ready: asyncio.Future[None] | None = None
        self._nursing: asyncio.Future[None] | None = None
        self._nursery: ForkedWorker | None = None

    @property
    def idle(self) -> bool:
        """Whether no worker is alive."""
        return not any(worker is not self._nursery for worker in self._workers.values())

    def protocol(self, on_end: Callable[[], None]) -> _ControlProtocol:
        """The asyncio protocol that feeds this object."""
        self._ready = asyncio.get_running_loop().create_future()
        return _ControlProtocol(self, on_end)

    async def greet(self, transport: Transport, *, seal: bool = False) -> None:
        """Say hello over a fresh transport and wait for the answer. Raises SandboxError.

        Args:
            seal: have the supervisor close itself to its workers, where they are its user's and nothing else may close it.
        """
        peer = Peer(transport, "the supervisor")
        peer.on_note = self._on_note
        peer.max_unsent = SUPERVISOR_UNSENT
        self.peer = self._road.peer = peer
        for frame in wire.encode({"hello": wire.VERSION, "parent": os.getpid(), "seal": seal}):
            transport.write(frame)
        assert self._ready is not None
        with anyio.move_on_after(START_SECONDS) as scope:
            await self._ready
        if scope.cancelled_caught:
            raise SandboxError(f"the supervisor process did not answer within {START_SECONDS} s")

    def receive(self, message: wire.Message, size: int) -> None:
        """Take one message of the supervisor."""
        assert self.peer is not None
        assert self._ready is not None
        if "hello" in message:
            if not self._ready.done():
                self._ready.set_result(None)
        elif "bye" in message and not self._ready.done():
            self.lost(f"{message['bye']:.500}")
        else:
            self.peer.receive(message, size)

    def lost(self, reason: str, why: str = "") -> None:
        """The supervisor is gone, and with it all workers. ``why``: what is said of them, where more is known than that."""
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(SandboxError(f"the supervisor process ended while starting: {reason}"))
            self._ready.exception()  # read: nobody may be waiting any more
        if self.peer is not None:
            self.peer.lose(reason)
        for worker in list(self._workers.values()):
            self._end(worker, Exit(status=None, reason=why))

    def worker(self, relay: Connection | None = None) -> ForkedWorker:
        """A worker to be spawned; whoever asks kills it in the end, whether the spawning succeeded or was cancelled."""
        assert self.peer is not None
        name = f"w{next(_numbers)}"
        worker = self._workers[name] = ForkedWorker(self, name)
        if relay is not None:
            worker.relay = RelayTransport(self._road, name, relay)
        return worker

    async def spawn(self, worker: ForkedWorker, args: dict[str, Any]) -> None:
        """Fork a worker's process. ``args`` as the supervisor's ``spawn`` takes them, without the name. Raises SandboxError.

        Cancelled, it leaves no worker: one that was forked meanwhile is killed.
        """
        assert self.peer is not None
        try:
            await self.ask("spawn", {"worker": worker.name, **self._from_nursery(), **args})
        except (CallError, PeerLost) as error:
            self._end(worker, Exit(status=None))
            raise SandboxError(f"a worker could not be started: {error}") from error
        except BaseException:
            worker.order_kill()
            raise

    async def ask(self, method: str, args: dict[str, Any]) -> Any:
        """Ask the supervisor. Raises CallError; PeerLost also where it stands still: it is lost then."""
        assert self.peer is not None
        answer = self.peer.start_call(method, args)
        try:
            await self.answered({answer})
            return answer.result()
        finally:
            self.peer.forget(answer)

    async def answered(self, answers: set[asyncio.Future[Any]]) -> None:
        """Wait until the supervisor has answered. One that lives may take its time; one that says nothing is lost, with its workers."""
        while True:
            _, waiting = await asyncio.wait(answers, timeout=KILL_SECONDS)
            if not waiting or self.peer is None or self.peer.lost is not None:
                return
            sign = self.peer.start_call("cpu", {"worker": ""})
            await asyncio.wait({sign, *waiting}, timeout=self.alive_seconds, return_when=asyncio.FIRST_COMPLETED)
            if not sign.done() and not any(answer.done() for answer in waiting):
                why = f"its supervisor has not answered for {KILL_SECONDS + self.alive_seconds:g} s"
                self.lost(why, why)
                return
            self.peer.forget(sign)

    async def killed(self, answer: asyncio.Future[Any]) -> None:
        """Wait until the supervisor has answered an order to kill."""
        await self.answered({answer})

    async def nurse(self) -> None:
        """Have a process that workers are forked from in the supervisor's place: one that relays has what it relayed in its memory.

        Raises:
            SandboxError: there is none, and there can be none any more.
        """
        if self._nursing is None:
            self._nursing = asyncio.ensure_future(self._nurse())
            self._nursing.add_done_callback(lambda it: it.cancelled() or it.exception())  # read: whoever waits may be cancelled
        await asyncio.shield(self._nursing)
        if self._nursery is not None and self._nursery.exited.done():
            self.lost("the process that workers are forked from has ended")
            raise SandboxError("a worker could not be started: the process that workers are forked from has ended")

    async def _nurse(self) -> None:
        try:
            nursery, loading = self.hold([], None)
            await self.answered({loading})
            loading.result()
        except CallError as error:
            if sys.platform == "linux":
                raise SandboxError(f"a worker could not be started: {error}") from error
        except PeerLost as error:
            raise SandboxError(f"a worker could not be started: {error}") from error
        else:
            self._nursery = nursery

    def _from_nursery(self) -> dict[str, Any]:
        return {} if self._nursery is None else {"holder": self._nursery.name}

    def hold(self, files: Sequence[tuple[str, str]], memory_limit: int | None) -> tuple[ForkedWorker, asyncio.Future[Any]]:
        """Start a process that loads files (path, kind), for workers to be forked from; the future is done when it has.

        Whoever asks kills it in the end. Raises PeerLost.
        """
        assert self.peer is not None
        worker = self.worker()
        worker.holds = True

        def on_loaded(loading: asyncio.Future[Any]) -> None:
            if loading.cancelled() or loading.exception() is not None:
                self._end(worker, Exit(status=None))

        try:
            args = {"worker": worker.name, "files": [list(file) for file in files], "memory_limit": memory_limit, **self._from_nursery()}
            loading = self.peer.start_call("hold", args)
        except PeerLost:
            self._end(worker, Exit(status=None))
            raise
        loading.add_done_callback(on_loaded)
        return worker, loading

    def _on_note(self, message: wire.Message) -> None:
        worker = self._workers.get(str(message.get("worker")))
        if worker is None:
            return
        match message:
            case {"note": "exited", "status": int(status), "output": str(output)}:
                reason = message.get("reason") or ""
                self._end(worker, Exit(status=status, output=output, reason=str(reason)[:REASON_CHARS]))
            case {"note": "relay", "data": str(data)} if worker.relay is not None:
                worker.relay.feed(_relayed(data))
            case _:
                raise wire.WireError(f"the supervisor sent a note {message['note']!r:.80} that has not the right shape")

    def _end(self, worker: ForkedWorker, how: Exit) -> None:
        self._workers.pop(worker.name, None)
        if worker.relay is not None:
            worker.relay.ended()
        if not worker.exited.done():
            worker.exited.set_result(how)


def _relayed(data: str) -> bytes:
    try:
        return data.encode("latin-1")
    except UnicodeEncodeError:
        raise wire.WireError("the supervisor relayed what are no bytes") from None


class ForkedWorker(Worker):
    """A worker that a supervisor on this machine (or at the end of a pipe) forked.

    Attributes:
        holds: it runs no code of a model: others are forked from it.
        doomed: its death was ordered.
    """

    def __init__(self, control: Control, name: str) -> None:
        self.name = name
        self.holds = self.doomed = False
        self.relay: RelayTransport | None = None
        self.exited = asyncio.get_running_loop().create_future()
        self._control = control

    def order_kill(self) -> asyncio.Future[Any] | None:
        """Send the order now; the future is done when the tree is dead."""
        self.doomed = True
        peer = self._control.peer
        if self.exited.done() or peer is None or peer.lost is not None:
            return None
        answer = peer.start_call("kill", {"worker": self.name})
        return answer

    async def kill(self) -> None:
        """See Worker."""
        answer = self.order_kill()
        if answer is not None:
            await self._control.killed(answer)

    async def cpu_seconds(self) -> float:
        """See Worker."""
        if self._control.peer is None:
            return 0.0
        try:
            seconds = float((await self._control.ask("cpu", {"worker": self.name}))["seconds"])
        except (CallError, PeerLost, TypeError, KeyError, ValueError):
            return 0.0
        return seconds if math.isfinite(seconds) else 0.0


class _ControlProtocol(asyncio.Protocol):
    def __init__(self, control: Control, on_end: Callable[[], None]) -> None:
        self._control = control
        self._on_end = on_end
        self._decoder = wire.Decoder()

    def data_received(self, data: bytes) -> None:
        try:
            messages = self._decoder.feed(data)
            for message, size in zip(messages, self._decoder.sizes, strict=True):
                self._control.receive(message, size)
        except wire.WireError as error:
            self._control.lost(f"it said what is no message of a supervisor, such as a greeting ({error})")

    def connection_lost(self, exc: Exception | None) -> None:
        self._control.lost(f"the supervisor process ended{f': {exc}' if exc else ''}")
        self._on_end()
