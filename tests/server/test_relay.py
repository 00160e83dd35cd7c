"""Relayed workers share the supervisor's connection: one that does not read, or sends too much, loses its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from arlm.environments import relay
from arlm.environments.control import Control, ForkedWorker
from arlm.guest import wire
from arlm.server import peer
from arlm.server.handler import LMHandler
from arlm.server.peer import Peer
from held import held


class Pipe(asyncio.Transport):
    """A supervisor's input that takes nothing until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = bytearray()
        self.closed = False

    def write(self, data: bytes) -> None:
        self.waiting += data

    def get_write_buffer_size(self) -> int:
        return len(self.waiting)

    def take(self) -> list[wire.Message]:
        data, self.waiting = bytes(self.waiting), bytearray()
        return wire.Decoder().feed(data)

    def close(self) -> None:
        self.closed = True


class Relayed:
    """A supervisor without a process, and a handler."""

    def __init__(self, handler: LMHandler, control: Control, pipe: Pipe) -> None:
        self.handler, self.control, self.pipe = handler, control, pipe

    async def worker(self, name: str) -> tuple[ForkedWorker, Peer]:
        ticket = self.handler.expect(name, [])
        worker = self.control.worker(self.handler.connection())
        self.feed(worker, {"hello": wire.VERSION, "token": ticket.token})
        return worker, await ticket.peer()

    def feed(self, worker: ForkedWorker, *messages: wire.Message) -> None:
        assert worker.relay is not None
        worker.relay.feed(b"".join(b"".join(wire.encode(message)) for message in messages))


@pytest.fixture
async def relayed() -> AsyncIterator[Relayed]:
    async with held(LMHandler(transport="tcp")) as handler:
        control, pipe = Control(), Pipe()
        protocol = control.protocol(lambda: None)
        greeting = asyncio.ensure_future(control.greet(pipe))
        await asyncio.sleep(0)
        protocol.data_received(b"".join(wire.encode({"hello": wire.VERSION})))
        await greeting
        yield Relayed(handler, control, pipe)


async def test_a_worker_that_does_not_read_is_lost_alone(relayed: Relayed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "MAX_UNSENT", 1_000_000)
    _, quiet = await relayed.worker("quiet")
    _, greedy = await relayed.worker("greedy")
    quiet.note({"note": "x" * 100_000})
    for _ in range(20):
        greedy.note({"note": "x" * 100_000})
    assert "the worker does not read" in str(greedy.lost)
    quiet.note({"note": "still here"})  # the other's bytes still wait, and count for nobody
    assert quiet.lost is None
    assert relayed.control.peer is not None
    assert relayed.control.peer.lost is None


async def test_what_the_supervisor_has_taken_no_longer_counts(relayed: Relayed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "MAX_UNSENT", 1_000_000)
    worker, known = await relayed.worker("a worker")
    assert worker.relay is not None
    for _ in range(20):
        known.note({"note": "x" * 600_000})
        assert worker.relay.get_write_buffer_size() > 600_000
        assert len(relayed.pipe.take()) >= 1
        assert worker.relay.get_write_buffer_size() == 0
    assert known.lost is None


async def test_a_worker_that_is_not_read_for_a_while_loses_nothing(relayed: Relayed) -> None:
    worker, known = await relayed.worker("a worker")
    heard: asyncio.Queue = asyncio.Queue()
    known.on_note = heard.put_nowait
    assert worker.relay is not None
    worker.relay.pause_reading()
    relayed.feed(worker, {"note": "first"})
    relayed.feed(worker, {"note": "second"})
    worker.relay.ended()
    assert heard.empty()
    worker.relay.resume_reading()
    assert [await heard.get(), await heard.get()] == [{"note": "first"}, {"note": "second"}]
    assert await known.wait_lost() == "the connection was closed by the other side"


async def test_a_worker_that_sends_on_without_end_while_it_is_not_read_is_lost(relayed: Relayed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "KEPT_BYTES", 1000)
    worker, known = await relayed.worker("a worker")
    _, other = await relayed.worker("another")
    assert worker.relay is not None
    worker.relay.pause_reading()
    relayed.feed(worker, {"note": "x" * 900})
    assert known.lost is None
    relayed.feed(worker, {"note": "x" * 900})
    assert known.lost == "more than 1,000 bytes came while earlier requests waited"
    assert other.lost is None
