"""The LMHandler and bad peers, over real sockets: each loses its own connection, with the reason, and nothing else is touched."""

from __future__ import annotations

import asyncio
import os
import stat
import struct
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from raw_guest import Host, RawGuest, open_host

from arlm.errors import ProtocolError, SandboxError
from arlm.guest import wire
from arlm.server import connection, heavy, peer
from arlm.server.handler import UNIX_PATH_BYTES, LMHandler
from arlm.server.peer import CallError, PeerLost

if TYPE_CHECKING:
    from arlm.server.peer import Peer


@pytest.fixture
async def healthy(host: Host) -> AsyncIterator[None]:
    """A second connection that works before and after whatever the test does to its own."""
    guest, known = await host.guest("healthy")
    await works(guest, known)
    yield
    await works(guest, known)
    assert known.lost is None


async def works(guest: RawGuest, known: Peer) -> None:
    await guest.send({"id": 1, "call": "echo", "args": {"value": "both ways"}})
    assert await guest.receive() == {"id": 1, "ok": "both ways"}
    asked = known.start_call("anything", {"x": 1})
    message = await guest.receive()
    assert (message["call"], message["args"]) == ("anything", {"x": 1})
    await guest.send({"id": message["id"], "ok": [1]})
    assert await asked == [1]


async def test_a_token_opens_one_connection_and_names_its_functions(host: Host) -> None:
    ticket = host.handler.expect("name", [{"name": "f"}])
    guest = await host.dial()
    assert await guest.hello(ticket.token) == {"hello": wire.VERSION, "functions": [{"name": "f"}]}
    assert (await ticket.peer()).name == "name"


async def test_tokens_are_long_and_differ(host: Host) -> None:
    tokens = {host.ticket().token for _ in range(100)}
    assert len(tokens) == 100
    assert min(map(len, tokens)) >= 40


HELLOS = {
    "a wrong token": ({"hello": wire.VERSION, "token": "wrong"}, "the token is not valid"),
    "an empty token": ({"hello": wire.VERSION, "token": ""}, "the token is not valid"),
    "a token of lone surrogates": ({"hello": wire.VERSION, "token": "\ud800"}, "the token is not valid"),
    "no token": ({"hello": wire.VERSION}, "the hello has no token"),
    "a token that is no str": ({"hello": wire.VERSION, "token": 5}, "the hello has no token"),
    "another version": (
        {"hello": wire.VERSION + 1, "token": "x"},
        f"this host speaks version {wire.VERSION} of the wire, not {wire.VERSION + 1}",
    ),
    "no version": ({"token": "x"}, "neither request"),
    "a version that is no number": ({"hello": "1", "token": "x"}, "wrong shape"),
    "a request instead": ({"id": 1, "call": "echo", "args": {}}, "the first message is not a hello"),
    "an answer instead": ({"id": 1, "ok": 1}, "the first message is not a hello"),
    "no JSON": (wire.frame(b"GET / HTTP/1.1"), "not JSON"),
    "HTTP": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "longer than"),
    "TLS": (bytes.fromhex("16030100c8010000c40303") + bytes(200), "longer than"),
    "no object": (wire.frame(b"[1]"), "not a JSON object but list"),
    "a frame too large for a hello": (struct.pack(">I", connection.HELLO_FRAME + 1), "longer than"),
    "a message too large for a hello": (
        b"".join(wire.frame(wire.dumps({"frag": 1, "data": "x" * 50_000, "last": False}).encode()) for _ in range(2)),
        "characters are under way",
    ),
}


@pytest.mark.parametrize(("message", "reason"), HELLOS.values(), ids=HELLOS)
@pytest.mark.usefixtures("healthy")
async def test_a_bad_hello_is_refused_with_the_reason(host: Host, message: wire.Message | bytes, reason: str) -> None:
    guest = await host.dial()
    await guest.send(message)
    assert reason in await guest.ended()


@pytest.mark.usefixtures("healthy")
async def test_a_token_is_good_for_one_connection(host: Host) -> None:
    ticket = host.ticket()
    first, second = await host.dial(), await host.dial()
    await first.hello(ticket.token)
    await second.send({"hello": wire.VERSION, "token": ticket.token})
    assert await second.ended() == "the token is not valid"
    (await ticket.peer()).note({"note": "still here"})
    assert await first.receive() == {"note": "still here"}


@pytest.mark.usefixtures("healthy")
async def test_a_token_that_was_given_up_is_not_valid(host: Host) -> None:
    ticket = host.ticket()
    ticket.give_up("no longer needed")
    guest = await host.dial()
    await guest.send({"hello": wire.VERSION, "token": ticket.token})
    assert await guest.ended() == "the token is not valid"
    with pytest.raises(PeerLost, match="no longer needed"):
        await ticket.peer()


async def test_a_stranger_who_says_nothing_is_sent_away(transport: str) -> None:
    async with open_host(transport, hello_seconds=0.05) as host:
        guest = await host.dial()
        assert await guest.ended() == "no hello came in time"
        known, _ = await host.guest()
        await known.send({"id": 1, "call": "echo", "args": {"value": 1}})
        assert await known.receive() == {"id": 1, "ok": 1}


BREACHES = {
    "not JSON": (wire.frame(b"{"), "not JSON"),
    "an empty frame": (wire.frame(b""), "not JSON"),
    "not UTF-8": (wire.frame(b"\xff"), "not JSON"),
    "not an object": (wire.frame(b"[]"), "not a JSON object but list"),
    "an oversize frame": (struct.pack(">I", wire.MAX_FRAME + 1), "longer than"),
    "a message of no kind": ({"something": 1}, "neither request"),
    "a request without an id": ({"call": "echo", "args": {}}, "needs a positive whole number as id"),
    "a request without arguments": ({"id": 1, "call": "echo"}, "needs a method name and an object of arguments"),
    "a second hello": ({"hello": wire.VERSION, "token": "x"}, "a second hello"),
    "an error without a type": ({"id": 1, "error": {}}, "an error answer needs a type and a message"),
    "a cancel without an id": ({"cancel": None}, "a cancel needs the id"),
    "too many fragments": (
        b"".join(wire.frame(wire.dumps({"frag": n, "data": "x", "last": False}).encode()) for n in range(wire.MAX_UNFINISHED + 1)),
        "fragmented messages are under way",
    ),
}


@pytest.mark.parametrize(("message", "reason"), BREACHES.values(), ids=BREACHES)
@pytest.mark.usefixtures("healthy")
async def test_a_broken_rule_ends_the_connection_with_the_reason(host: Host, message: wire.Message | bytes, reason: str) -> None:
    guest, known = await host.guest()
    asked = known.start_call("pending", {})
    await guest.send(message)
    assert reason in await guest.ended()
    assert reason in await host.lost(known)
    with pytest.raises(PeerLost):
        await asked


@pytest.mark.usefixtures("healthy")
async def test_a_request_id_used_twice_at_once_ends_the_connection(host: Host) -> None:
    guest, known = await host.guest()
    request = {"id": 7, "call": "hang", "args": {}}
    await guest.send(request, request)
    assert "request id 7 is used twice at once" in await guest.ended()
    assert "used twice" in await host.lost(known)
    await host.until(lambda: host.under_way == 0)


async def test_a_request_id_may_be_used_again_after_its_answer(host: Host) -> None:
    guest, _ = await host.guest()
    for value in range(3):
        await guest.send({"id": 7, "call": "echo", "args": {"value": value}})
        assert await guest.receive() == {"id": 7, "ok": value}


@pytest.mark.usefixtures("healthy")
async def test_a_message_of_more_values_than_memory_should_hold_ends_the_connection(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heavy, "MAX_VALUES", 1000)
    monkeypatch.setattr(heavy, "WHOLE_VALUES", 900)
    monkeypatch.setattr(heavy, "LIGHT_BYTES", 2000)
    guest, known = await host.guest()
    asked = known.start_call("report", {})
    number = (await guest.receive())["id"]
    await guest.send({"id": number, "ok": [[]] * 990})
    assert await asked == [[]] * 990
    await guest.send({"id": 99, "ok": [[]] * 1000})
    assert "more than 1,000 values" in await guest.ended()
    await host.lost(known)


@pytest.mark.usefixtures("healthy")
async def test_an_empty_fragment_that_is_not_the_last_ends_the_connection(host: Host) -> None:
    guest, known = await host.guest()
    await guest.send({"frag": 1, "data": "", "last": False})
    assert await guest.ended() == "a fragment that is not the last is empty"
    await host.lost(known)


@pytest.mark.parametrize("cut", [1, 4, 10])
@pytest.mark.usefixtures("healthy")
async def test_a_peer_that_vanishes_in_mid_frame_is_lost_with_the_reason(host: Host, cut: int) -> None:
    guest, known = await host.guest()
    await guest.send(wire.encode({"id": 1, "call": "echo", "args": {}})[0][:cut])
    await guest.close()
    assert await host.lost(known) == "the connection ended in the middle of a frame"


@pytest.mark.usefixtures("healthy")
async def test_a_peer_that_vanishes_in_mid_message_is_lost_with_the_reason(host: Host) -> None:
    guest, known = await host.guest()
    await guest.send({"frag": 1, "data": "x", "last": False})
    await guest.close()
    assert await host.lost(known) == "the connection ended in the middle of a message"


@pytest.mark.usefixtures("healthy")
async def test_a_peer_that_closes_is_lost_and_its_calls_are_cancelled(host: Host) -> None:
    guest, known = await host.guest()
    asked = known.start_call("pending", {})
    await guest.send({"id": 1, "call": "hang", "args": {}})
    await host.until(lambda: host.under_way == 1)
    await guest.close()
    assert await host.lost(known) == "the connection was closed by the other side"
    with pytest.raises(PeerLost, match="closed by the other side") as caught:
        await asked
    assert isinstance(caught.value, ProtocolError)
    await host.until(lambda: host.cancelled == ["hang"])
    with pytest.raises(PeerLost):
        known.start_call("too late", {})


@pytest.mark.usefixtures("healthy")
async def test_a_peer_that_says_bye_is_lost_with_its_words(host: Host) -> None:
    guest, known = await host.guest("the guest")
    await guest.send({"bye": "I have " + "very " * 1000 + "good reasons"})
    reason = await host.lost(known)
    assert reason.startswith("the guest left: I have very")
    assert len(reason) < 600


@pytest.mark.usefixtures("healthy")
async def test_a_peer_that_stops_reading_is_let_go(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    guest, known = await host.guest()
    guest.writer.transport.pause_reading()
    monkeypatch.setattr(peer, "MAX_UNSENT", 1_000_000)
    for _ in range(100):
        if known.lost is not None:
            break
        known.note({"note": "x" * 500_000})
    assert await host.lost(known) == "guest does not read: 1,000,000 bytes wait for it"


async def test_a_peer_that_takes_nothing_for_long_is_let_go(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HIGH_WATER", 100_000)
    async with open_host(transport, stall_seconds=0.05) as host:
        guest, known = await host.guest()
        guest.writer.transport.pause_reading()
        for _ in range(20):
            known.note({"note": "x" * 500_000})
        assert await host.lost(known) == "the other side stopped reading"
        other, _ = await host.guest()
        await other.send({"id": 1, "call": "echo", "args": {"value": 1}})
        assert await other.receive() == {"id": 1, "ok": 1}


async def test_a_peer_that_reads_slowly_is_kept(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HIGH_WATER", 100_000)
    async with open_host(transport, stall_seconds=5) as host:
        guest, known = await host.guest()
        for _ in range(20):
            known.note({"note": "x" * 500_000})
        for _ in range(20):
            assert len((await guest.receive())["note"]) == 500_000
        assert known.lost is None


async def test_leaving_the_handler_ends_every_connection(transport: str) -> None:
    async with open_host(transport) as host:
        guest, known = await host.guest()
        stranger = await host.dial()
        ticket = host.ticket()
        await host.handler.__aexit__(None, None, None)
        with pytest.raises(PeerLost, match="the handler was closed"):
            await ticket.peer()
        assert await host.lost(known)
        await guest.ended()
        await stranger.ended()
        with pytest.raises((ConnectionError, FileNotFoundError)):
            await host.dial()


async def test_a_connection_that_is_made_after_the_handlers_end_is_ended(transport: str) -> None:
    async with open_host(transport) as host:
        early = host.handler.connection()
        await host.handler.__aexit__(None, None, None)
        for late in (early, host.handler.connection()):
            transport_double = _Transport()
            late.connection_made(transport_double)
            assert transport_double.aborted


class _Transport(asyncio.Transport):
    aborted = False

    def abort(self) -> None:
        self.aborted = True


async def test_the_socket_is_private() -> None:
    with tempfile.TemporaryDirectory(prefix="arlm-") as folder:
        async with LMHandler(directory=Path(folder)) as handler:
            assert stat.S_IMODE(os.stat(handler.address["unix"]).st_mode) == 0o600
            assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    async with LMHandler(transport="tcp") as handler:
        assert handler.address["tcp"][0] == "127.0.0.1"


async def test_a_path_too_long_for_a_unix_socket_gives_tcp_or_an_error(tmp_path: Path) -> None:
    long = tmp_path / ("x" * UNIX_PATH_BYTES)
    async with LMHandler(directory=long) as handler:
        assert "tcp" in handler.address
    with pytest.raises(SandboxError, match="use transport='tcp'"):
        async with LMHandler(directory=long, transport="unix"):
            pass


async def test_an_unknown_method_is_an_error_answer_and_the_connection_stays(host: Host) -> None:
    guest, known = await host.guest()
    await guest.send({"id": 1, "call": "no_such", "args": {}}, {"id": 2, "call": "echo", "args": {"value": "here"}})
    answers = {message["id"]: message for message in (await guest.receive(), await guest.receive())}
    assert answers[1]["error"] == {"type": "LookupError", "message": "unknown method 'no_such'"}
    assert answers[2]["ok"] == "here"
    assert known.lost is None


async def test_an_answer_to_an_unknown_id_is_ignored(host: Host) -> None:
    guest, known = await host.guest()
    await guest.send({"id": 999, "ok": 1}, {"id": 998, "error": {"type": "E", "message": "m"}}, {"cancel": 997})
    await works(guest, known)


async def test_a_call_error_reaches_the_host_as_one(host: Host) -> None:
    guest, known = await host.guest()
    asked = known.start_call("f", {})
    message = await guest.receive()
    await guest.send({"id": message["id"], "error": {"type": "ValueError", "message": "no"}})
    with pytest.raises(CallError, match="no") as caught:
        await asked
    assert caught.value.kind == "ValueError"


async def test_an_error_of_the_guest_is_cut(host: Host) -> None:
    guest, known = await host.guest()
    asked = known.start_call("f", {})
    message = await guest.receive()
    await guest.send({"id": message["id"], "error": {"type": "E" * 100_000, "message": "m" * 100_000}})
    with pytest.raises(CallError) as caught:
        await asked
    assert (len(caught.value.kind), len(str(caught.value))) == (peer.KIND_CHARS, peer.ERROR_CHARS)
