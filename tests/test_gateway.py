"""The gateway: what upstream saw and what the client saw, with each thing that can go wrong."""

import asyncio
import json
from contextlib import AsyncExitStack, suppress

import httpx
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings

from arlm.testing.gateway import Entry, Gateway, open_gateway
from arlm.testing.gateway_faults import (
    AnswerInstead,
    CloseIdle,
    Corrupt,
    CutReply,
    CutRequest,
    DelayReply,
    DelayRequest,
    DropReply,
    DropRequest,
    Duplicate,
    OldReply,
    Rates,
    Replay,
    Seen,
    only,
)
from arlm.testing.gateway_upstream import KEPT_BYTES, KEPT_PATHS
from gateway_schedules import schedules
from gateway_upstream import SHORT, Upstream, open_upstream, wired

LATE_S = 0.4  # a delay that others overtake: what overtakes takes milliseconds
SECRET = "canary-5up3r-53cr3t"


@pytest_asyncio.fixture
async def upstream():
    async with open_upstream() as it:
        yield it


@pytest_asyncio.fixture
async def gateway(upstream):
    async with open_gateway(upstream.url) as it:
        yield it


@pytest_asyncio.fixture
async def client(gateway):
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as it:
        yield it


async def test_a_request_and_its_reply_pass_as_they_are(upstream, gateway, client):
    reply = await client.post(
        "/a/b?c=d%20e", content="hello", headers={"X-Own": "1", "Connection": "keep-alive, x-between", "X-Between": "2"}
    )
    assert (reply.status_code, reply.text, reply.headers["x-number"]) == (200, "1:hello", "1")
    (arrived,) = upstream.arrived
    assert arrived[:3] == ("POST", "/a/b?c=d%20e", "hello")
    assert arrived.headers["x-own"] == "1"
    assert arrived.headers["host"] == gateway.url.removeprefix("http://")
    assert "x-between" not in arrived.headers
    assert gateway.log == [Entry("POST", "/a/b?c=…", None)]


async def test_a_megabyte_passes_in_both_directions(client):
    text = "x" * 2**20
    assert (await client.post("/", content=text)).text == f"1:{text}"


async def test_a_reply_is_passed_on_piece_by_piece(upstream, client):
    async with client.stream("GET", "/chunks") as reply:
        pieces = reply.aiter_raw()
        assert await anext(pieces) == b"first "
        upstream.release.set()
        assert await anext(pieces) == b"second"


async def test_a_request_is_passed_on_piece_by_piece(gateway):
    saw_first, arrived = asyncio.Event(), bytearray()

    async def raw(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.extend(await reader.readuntil(b"first\r\n"))
        saw_first.set()
        arrived.extend(await reader.readuntil(b"0\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
        writer.close()

    async def pieces():
        yield b"first"
        await saw_first.wait()
        yield b"second"

    async with await asyncio.start_server(raw, "127.0.0.1", 0) as server, httpx.AsyncClient(timeout=30) as client:
        gateway.upstream = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        reply = await client.post(gateway.url, content=pieces())
    assert reply.text == "until the end"
    assert bytes(arrived).endswith(b"\r\n\r\n5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n")


async def test_requests_sent_together_are_answered_in_order_on_one_connection(upstream, gateway):
    async with wired(gateway.url) as wire:
        wire.ask("POST", "/", "one")
        wire.ask("POST", "/", "two")
        wire.ask("GET", "/empty")
        wire.ask("HEAD", "/")
        wire.ask("POST", "/", "last", connection="close")
        said = await wire.rest()
    assert upstream.bodies == ["one", "two", "", "", "last"]
    assert [said.count(it) for it in ("1:one", "2:two", "204 No Content", "x-number: 4", "5:last")] == [1] * 5
    assert said.index("1:one") < said.index("2:two") < said.index("204") < said.index("x-number: 4") < said.index("5:last")
    assert said.split("HTTP/1.1")[4].endswith("\r\n\r\n")


async def test_a_client_that_waits_for_100_continue_gets_it(upstream, gateway):
    async with wired(gateway.url) as wire:
        wire.writer.write(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\nconnection: close\r\ncontent-length: 2\r\n\r\n")
        assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.writer.write(b"ok")
        assert (await wire.rest()).endswith("1:ok")


async def test_a_reply_that_comes_before_the_body_was_read_arrives(gateway):
    async with httpx.AsyncClient(timeout=30) as client:
        for _ in range(2):
            reply = await client.post(f"{gateway.url}/early", content=b"x" * 2**23)
            assert (reply.status_code, reply.text) == (413, "too long")


async def test_a_held_request_is_answered_when_upstream_answers(upstream, gateway, client):
    held = asyncio.create_task(client.get("/hold"))
    await upstream.until(1)
    assert (await client.get("/other")).text == "2:"
    assert gateway.in_flight == 1
    upstream.release.set()
    assert (await held).text == "1:"


async def test_two_hundred_requests_are_in_flight_at_once(upstream, gateway):
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60, limits=limits) as client:
        calls = [asyncio.create_task(client.post("/hold", content=f"call {number}")) for number in range(200)]
        await upstream.until(200)
        assert gateway.in_flight == gateway.most_in_flight == 200
        upstream.release.set()
        replies = await asyncio.gather(*calls)
    assert [reply.text.partition(":")[2] for reply in replies] == [f"call {number}" for number in range(200)]
    assert sorted(upstream.bodies) == sorted(f"call {number}" for number in range(200))
    assert gateway.in_flight == 0


@pytest.mark.parametrize(("method", "said"), [("GET", "204 No Content"), ("GET", "304 Not Modified"), ("HEAD", "200 OK")])
async def test_a_reply_that_has_no_body_ends_with_its_head(gateway, method, said):
    async def raw(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 {said}\r\n\r\n".encode())
        await reader.read()  # stays open as long as the gateway wants it
        writer.close()

    async with await asyncio.start_server(raw, "127.0.0.1", 0) as server, wired(gateway.url) as wire:
        gateway.upstream = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for _ in range(2):
            wire.ask(method, "/")
            assert await wire.reader.readuntil(b"\r\n\r\n") == f"HTTP/1.1 {said}\r\n\r\n".encode()


async def test_when_a_client_leaves_upstream_is_left_too(upstream, gateway):
    async with wired(gateway.url) as wire:
        wire.ask("GET", "/hold")
        await upstream.until(1)
    await upstream.until_left(1)
    await gateway.until(lambda: gateway.counts["left"] == 1)
    assert gateway.in_flight == 0


async def test_a_client_that_leaves_in_mid_body_leaves_upstream_a_short_one(upstream, gateway):
    async with wired(gateway.url) as wire:
        wire.writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf")
        await gateway.until(lambda: gateway.log)
    await upstream.until(1)
    assert upstream.bodies == [SHORT]


async def test_a_client_that_resets_in_mid_body_leaves_upstream_a_short_one(upstream, gateway):
    async with wired(gateway.url) as wire:
        wire.writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await gateway.until(lambda: gateway.log)
        wire.reset()
    await upstream.until(1)
    await gateway.until(lambda: gateway.counts["left"] == 1)
    assert upstream.bodies == [SHORT]


async def test_a_client_that_resets_an_idle_connection_disturbs_nobody(gateway, client):
    async with wired(gateway.url) as wire:
        wire.ask("GET", "/empty")
        await wire.reader.readuntil(b"\r\n\r\n")
        wire.reset()
    assert (await client.post("/", content="next")).text == "2:next"
    assert gateway.counts["left"] == 0


async def test_chunks_with_extensions_and_trailers_are_read(upstream, gateway):
    async with wired(gateway.url) as wire:
        wire.ask("POST", "/", transfer_encoding="chunked", connection="close")
        wire.writer.write(b"4;ext=1\r\nfour\r\n00B\r\n more bytes\r\n0\r\ntrailer: x\r\n\r\n")
        assert (await wire.rest()).endswith("1:four more bytes")


@pytest.mark.parametrize("plan", [None, [DropReply()]], ids=["streamed", "whole"])
@pytest.mark.parametrize("chunk", ["-5\r\nfour\r\n", "3\r\nfour\r\n"])
async def test_a_body_of_broken_chunks_is_an_error_on_both_sides(upstream, gateway, plan, chunk):
    gateway.plan = plan
    async with wired(gateway.url) as wire:
        wire.ask("POST", "/", transfer_encoding="chunked")
        wire.writer.write(chunk.encode())
        assert (await wire.rest()).startswith("HTTP/1.1 502")
    assert {*upstream.bodies} <= {SHORT}


async def test_a_request_over_the_limit_is_504_and_its_connection_goes_on(upstream):
    async with open_gateway(upstream.url, limit_s=0.1) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        assert (await client.get("/hold")).status_code == 504
        await upstream.until_left(1)
        assert (await client.get("/")).text == "2:"
        assert gateway.counts["limit"] == 1


async def test_a_reply_over_the_limit_is_cut(upstream):
    async with open_gateway(upstream.url, limit_s=0.2) as gateway, wired(gateway.url) as wire:
        wire.ask("GET", "/chunks")
        said = await wire.rest()
    assert said.endswith("6\r\nfirst \r\n")


async def test_an_idle_connection_is_closed(upstream):
    async with open_gateway(upstream.url, idle_s=0.05) as gateway, wired(gateway.url) as wire:
        wire.ask("POST", "/", "one")
        assert (await wire.rest()).endswith("1:one")
        assert gateway.counts["idle"] == 1


async def test_without_an_upstream_it_answers_for_it_until_there_is_one(upstream):
    async with open_gateway() as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        assert (await client.post("/", content="early")).status_code == 502
        gateway.absent = AnswerInstead(status=503, html=True)
        assert (await client.post("/", content="early")).headers["content-type"] == "text/html; charset=utf-8"
        gateway.upstream = "http://127.0.0.1:1"
        assert (await client.post("/", content="early")).status_code == 503
        gateway.upstream = upstream.url
        assert (await client.post("/", content="now")).text == "1:now"
        assert gateway.counts["absent"] == 3


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "127.0.0.1:1", "http://127.0.0.1", "http://127.0.0.1:1/base"])
async def test_an_upstream_it_cannot_reach_is_refused(url):
    with pytest.raises(ValueError, match="http://HOST:PORT"):
        async with open_gateway(url):
            pass


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.0",
        "\x16\x03\x01",
        "GET / HTTP/1.1\r\nno colon",
        "POST / HTTP/1.1\r\ncontent-length: -1",
        "POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked",
        "GET / HTTP/1.1\r\nlong: " + "x" * 70_000,
    ],
    ids=lambda head: repr(head[:40]),
)
async def test_what_is_no_request_gets_400_and_does_not_reach_upstream(upstream, gateway, head):
    async with wired(gateway.url) as wire:
        wire.writer.write(f"{head}\r\n\r\n".encode("latin-1"))
        assert (await wire.reader.readline()).startswith(b"HTTP/1.1 400 ")
        await gateway.until(lambda: gateway.counts["malformed"] == 1)
    assert upstream.arrived == gateway.log == []


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200", b"what?\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"])
async def test_an_upstream_that_breaks_off_or_talks_nonsense_is_502(said):
    async def raw(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"ask")
        writer.write(said)
        writer.close()

    async with (
        await asyncio.start_server(raw, "127.0.0.1", 0) as server,
        open_gateway(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as gateway,
        httpx.AsyncClient() as client,
    ):
        assert (await client.post(gateway.url, content="ask")).status_code == 502
        assert gateway.counts["broken"] == 1


# The faults


async def reset(gateway: Gateway, body: str | None = "lost") -> None:
    """Ask, and see the connection reset before any reply."""
    async with wired(gateway.url) as wire:
        wire.ask("POST", "/", body)
        with pytest.raises(ConnectionResetError):
            await wire.rest()


async def test_a_dropped_request_resets_the_client_and_never_arrives(upstream, gateway, client):
    gateway.plan = [DropRequest()]
    await reset(gateway)
    assert (await client.post("/", content="next")).text == "1:next"
    assert upstream.bodies == ["next"]
    assert gateway.log == [Entry("POST", "/", "DropRequest"), Entry("POST", "/", None)]
    assert gateway.counts["DropRequest"] == 1


async def test_a_dropped_reply_resets_the_client_after_upstream_has_answered(upstream, gateway):
    gateway.plan = [DropReply()]
    await reset(gateway)
    assert upstream.bodies == ["lost"]


async def test_a_dropped_reply_can_look_like_a_bad_gateway(upstream, gateway, client):
    gateway.plan = [DropReply(status=502)]
    assert (await client.post("/", content="lost")).status_code == 502
    assert upstream.bodies == ["lost"]


async def test_a_delayed_request_is_overtaken(upstream, gateway, client):
    gateway.plan = [DelayRequest(seconds=LATE_S)]
    first = asyncio.create_task(client.post("/", content="first"))
    await gateway.until(lambda: gateway.log)
    assert (await client.post("/", content="second")).text == "1:second"
    assert (await first).text == "2:first"


async def test_a_delayed_request_arrives_though_its_client_has_left(upstream, gateway):
    gateway.plan = [DelayRequest(seconds=0.05)]
    async with wired(gateway.url) as wire:
        wire.ask("POST", "/", "left")
        await gateway.until(lambda: gateway.strays == 1)
    await upstream.until(1)
    assert upstream.bodies == ["left"]
    await gateway.until(lambda: gateway.strays == 0)


async def test_a_delayed_reply_is_overtaken(upstream, gateway, client):
    gateway.plan = [DelayReply(seconds=LATE_S)]
    first = asyncio.create_task(client.post("/", content="first"))
    await upstream.until(1)
    assert (await client.post("/", content="second")).text == "2:second"
    assert not first.done()
    assert (await first).text == "1:first"


@pytest.mark.parametrize("later", [0.0, 0.01])
@pytest.mark.parametrize("which", ["first", "second"])
async def test_a_duplicated_request_arrives_twice_and_is_answered_once(upstream, gateway, later, which):
    gateway.plan = [Duplicate(later=later, reply=which)]
    async with wired(gateway.url) as wire:
        wire.ask("POST", "/", "twin", connection="close")
        said = await wire.rest()
    await upstream.until(2)
    await gateway.until(lambda: gateway.strays == 0)
    assert upstream.bodies == ["twin", "twin"]
    assert said.count("HTTP/1.1 200") == said.count(":twin") == 1


async def test_the_second_reply_of_a_late_duplicate_is_that_of_the_copy(gateway, client):
    gateway.plan = [Duplicate(later=LATE_S, reply="second"), None]
    twin = asyncio.create_task(client.post("/", content="twin"))
    await gateway.until(lambda: gateway.log)
    await client.post("/", content="between")
    assert (await twin).text == "3:twin"


async def test_a_replayed_request_arrives_again_after_newer_ones(upstream, gateway, client):
    gateway.plan = [Replay(newer=2)]
    texts = [(await client.post(f"/{body}", content=body)).text for body in ("old", "new", "newer")]
    assert texts == ["1:old", "2:new", "3:newer"]
    await upstream.until(4)
    assert upstream.bodies == ["old", "new", "newer", "old"]
    assert gateway.log[-1] == Entry("POST", "/old", "Replay")
    assert gateway.counts["copies"] == 1
    await gateway.until(lambda: gateway.strays == 0)


async def test_a_cut_request_ends_upstreams_body_early(upstream, gateway):
    gateway.plan = [CutRequest(keep=0.5)]
    await reset(gateway, "whole body")
    await upstream.until(1)
    assert upstream.bodies == [SHORT]


async def test_a_reframed_cut_request_is_a_shorter_one(upstream, gateway, client):
    gateway.plan = [CutRequest(keep=0.5, reframed=True)]
    assert (await client.post("/", content="whole body")).text == "1:whole"
    assert upstream.arrived[0].headers["content-length"] == "5"


async def test_a_request_without_a_body_cannot_be_cut(upstream, gateway, client):
    gateway.plan = [CutRequest(status=502)] * 2
    assert (await client.get("/")).status_code == 200
    assert (await client.post("/", content="body")).status_code == 502
    assert [it.fault for it in gateway.log] == [None, "CutRequest"]


@pytest.mark.parametrize(("keep", "left"), [(0.0, ""), (0.5, "1:whol"), (0.999, "1:whole bod")])
async def test_a_cut_reply_keeps_its_length_and_closes(upstream, gateway, keep, left):
    gateway.plan = [CutReply(keep=keep)]
    async with wired(gateway.url) as wire:
        wire.ask("POST", "/", "whole body")
        head, _, body = (await wire.rest()).partition("\r\n\r\n")
    assert "content-length: 12" in head.lower()
    assert body == left
    assert upstream.bodies == ["whole body"]


async def test_a_cut_reply_is_an_error_to_an_http_client(gateway, client):
    gateway.plan = [CutReply()]
    with pytest.raises(httpx.RemoteProtocolError):
        await client.post("/", content="whole body")


async def test_a_cut_reply_without_a_body_is_cut_in_its_head(gateway):
    gateway.plan = [CutReply()]
    async with wired(gateway.url) as wire:
        wire.ask("GET", "/empty")
        said = await wire.rest()
    assert said.startswith("HTTP/1.1 204")
    assert not said.endswith("\r\n\r\n")


async def test_a_reframed_cut_reply_is_a_shorter_one(gateway, client):
    gateway.plan = [CutReply(keep=0.5, reframed=True)]
    reply = await client.post("/", content="whole body")
    assert (reply.status_code, reply.text, reply.headers["content-length"]) == (200, "1:whol", "6")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 502, 503, 504])
async def test_the_gateway_answers_for_upstream(upstream, gateway, client, status):
    gateway.plan = [AnswerInstead(status=status)]
    reply = await client.post("/", content="unheard")
    assert reply.status_code == status
    assert str(status) in reply.json()["error"]
    assert (await client.post("/", content="heard")).text == "1:heard"
    assert upstream.bodies == ["heard"]


async def test_the_gateway_answers_with_a_page(upstream, gateway, client):
    gateway.plan = [AnswerInstead(status=200, html=True)]
    reply = await client.get("/")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert reply.text.startswith("<!doctype html>")
    assert upstream.arrived == []


async def test_an_outage_covers_a_number_of_requests_and_takes_nothing_more_from_the_plan(upstream, gateway, client):
    gateway.plan = [AnswerInstead(status=503, requests=3), AnswerInstead(status=401)]
    assert [(await client.get("/")).status_code for _ in range(5)] == [503, 503, 503, 401, 200]
    assert gateway.counts["AnswerInstead"] == 4


async def test_an_outage_in_seconds_covers_all_requests_until_it_is_over(upstream, gateway, client):
    gateway.plan = [AnswerInstead(status=503, seconds=3600)]
    assert [(await client.get("/")).status_code for _ in range(3)] == [503] * 3
    gateway.plan = [AnswerInstead(status=503, seconds=0.01)]
    while (await client.get("/")).status_code == 503:
        pass
    assert len(upstream.arrived) == 1


async def test_an_old_reply_of_the_same_path_is_given_again(upstream, gateway, client):
    gateway.plan = [OldReply(), None, None, OldReply(), OldReply(back=2), OldReply(back=9)]
    texts = [(await client.post(path, content=body)).text for path, body in [("/a", "0"), ("/a", "1"), ("/b", "2")]]
    texts += [(await client.post("/a", content="unheard")).text for _ in range(3)]
    assert texts == ["1:0", "2:1", "3:2", "2:1", "1:0", "1:0"]
    assert upstream.bodies == ["0", "1", "2"]
    assert [it.fault for it in gateway.log] == [None, None, None, "OldReply", "OldReply", "OldReply"]


async def test_only_the_latest_replies_are_kept(upstream, gateway, client):
    for number in range(KEPT_PATHS + 1):
        await client.post(f"/{number}")
    await client.post("/long", content="x" * (KEPT_BYTES + 1))
    gateway.plan = [OldReply()] * 3
    faults = [(await client.post(path), gateway.log[-1].fault)[1] for path in ("/0", "/long", f"/{KEPT_PATHS}")]
    assert faults == [None, None, "OldReply"]


async def test_a_connection_closed_while_idle_has_given_its_reply(gateway):
    gateway.plan = [CloseIdle()]
    async with wired(gateway.url) as wire:
        wire.ask("POST", "/", "one")
        said = await wire.rest()
    assert said.endswith("1:one")
    assert "connection: close" not in said.lower()


async def test_bytes_of_a_body_are_corrupted_on_either_side(upstream, gateway, client):
    gateway.plan = [Corrupt(side="request", at=0.0, count=2), Corrupt(at=0.9)]
    await client.post("/", content="abcd")
    assert upstream.bodies == ["\x9e\x9dcd"]
    assert (await client.post("/", content="abcd")).content == b"2:abc\x9b"


async def test_all_connections_are_reset_at_once(upstream, gateway):
    async with wired(gateway.url) as idle, wired(gateway.url) as waiting:
        idle.ask("GET", "/empty")
        await idle.reader.readuntil(b"\r\n\r\n")
        waiting.ask("GET", "/hold")
        await upstream.until(2)
        assert gateway.reset_connections() == 2
        for wire in (idle, waiting):
            with pytest.raises(ConnectionResetError):
                await wire.rest()
        await upstream.until_left(1)


# Plans


async def test_a_function_sees_number_method_and_path(upstream, gateway, client):
    seen: list[Seen] = []

    def plan(it: Seen) -> DropReply | None:
        seen.append(it)
        return DropReply(status=502) if it.path == "/respond" else None

    gateway.plan = plan
    statuses = [(await client.get("/pending?token=x")).status_code, (await client.post("/respond")).status_code]
    assert statuses == [200, 502]
    assert seen == [Seen(number=1, method="GET", path="/pending"), Seen(number=2, method="POST", path="/respond")]


async def test_a_plan_for_one_path_is_used_up_by_that_path_alone(gateway, client):
    gateway.plan = only([AnswerInstead(status=401), AnswerInstead(status=403)], path="/respond", method="POST")
    asked = [("POST", "/pending"), ("POST", "/respond"), ("GET", "/respond"), ("POST", "/respond"), ("POST", "/respond")]
    assert [(await client.request(*it)).status_code for it in asked] == [200, 401, 200, 403, 200]


async def test_rates_draw_the_same_faults_from_the_same_seed(upstream, gateway, client):
    rates = Rates(drop_reply=0.2, answer=0.2, close_idle=0.2, old_reply=0.1, statuses=(401, 503), outage=2, seed=5)
    runs = []
    for _ in range(2):
        gateway.plan = rates
        gateway.log.clear()
        for _ in range(60):
            with suppress(httpx.TransportError):
                await client.post("/", content="x")
        runs.append([it.fault for it in gateway.log])
    assert runs[0][1:] == runs[1][1:]  # the first one may be an old reply only in the second run
    assert {None, "DropReply", "AnswerInstead", "CloseIdle", "OldReply"} == set(runs[0])


def test_rates_are_shares():
    Rates(**dict.fromkeys(["drop_request", "drop_reply", "delay_request", "delay_reply", "duplicate", "replay", "answer"], 1 / 7))
    with pytest.raises(ValueError, match=r"these are 1\.2"):
        Rates(drop_request=0.6, drop_reply=0.6)
    with pytest.raises(ValueError, match="shares"):
        Rates(drop_request=-0.1)
    with pytest.raises(ValueError, match="share of a body"):
        CutReply(keep=1.0)


async def test_what_a_plan_raises_is_raised_at_the_blocks_end(upstream):
    def plan(seen: Seen) -> None:
        raise ZeroDivisionError(seen.path)

    async def run() -> None:
        async with open_gateway(upstream.url, plan=plan) as gateway, httpx.AsyncClient() as client:
            with pytest.raises(httpx.TransportError):
                await client.get(f"{gateway.url}/asked")

    with pytest.raises(ZeroDivisionError, match="/asked"):
        await run()


async def test_no_token_is_logged_or_shown(upstream, gateway, client, capfd, caplog):
    gateway.plan = [Replay(newer=9), DropReply(status=502), Duplicate(), CutReply(keep=0.9), OldReply(), DelayReply(seconds=0)]
    targets = [f"/x?token={SECRET}&cursor=17&wait=20", f"/x?{SECRET}", f"/x?{SECRET}==", "/x?pin=1234567890", "/x?flag", "/x"]
    for target in targets:
        with suppress(httpx.TransportError):
            await client.post(target, content=SECRET, headers={"x-arlm-token": SECRET})
    assert [it.path for it in gateway.log] == ["/x?token=…&cursor=17&wait=20", "/x?…", "/x?…", "/x?pin=…", "/x?…", "/x"]
    held = [repr(vars(gateway)), repr(vars(gateway._acts)), repr(vars(gateway._acts.kept)), repr(gateway.log)]
    assert SECRET in str(upstream.arrived)
    assert not any(SECRET in it for it in (*held, caplog.text, *capfd.readouterr()))


# Its end


async def test_leaving_the_block_closes_what_is_under_way(upstream):
    async with AsyncExitStack() as stack:
        async with open_gateway(upstream.url, plan=[Duplicate(), DelayRequest(seconds=3600)]) as gateway:
            wires = [await stack.enter_async_context(wired(gateway.url)) for _ in range(4)]
            for wire in wires[:3]:
                wire.ask("POST", "/hold", "x")
            await gateway.until(lambda: gateway.in_flight == 3 and gateway.strays == 3)
            await upstream.until(3)
        assert gateway.strays == gateway.in_flight == 0
        assert [await wire.rest() for wire in wires] == [""] * 4
        await upstream.until_left(3)
    with pytest.raises(httpx.ConnectError):
        httpx.get(gateway.url)


async def test_a_cancelled_block_leaves_nothing(upstream):
    opened = asyncio.get_running_loop().create_future()

    async def work() -> None:
        async with open_gateway(upstream.url) as gateway, httpx.AsyncClient(timeout=30) as client:
            opened.set_result(gateway)
            await client.get(f"{gateway.url}/hold")

    task = asyncio.create_task(work())
    gateway = await opened
    await upstream.until(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await upstream.until_left(1)
    assert gateway.in_flight == 0


# Any schedule


async def follow(schedule, count: int = 12) -> None:
    """Ask `count` times, a few at once, then once more without faults."""
    async with open_upstream() as upstream, open_gateway(upstream.url, plan=schedule) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:

            async def ask(number: int) -> str | None:
                try:
                    reply = await client.post(f"/{number % 2}", json={"call": number})
                except httpx.TransportError:
                    return None
                return reply.text if reply.status_code == 200 else None

            said = await asyncio.gather(*[ask(number) for number in range(count)])
            await gateway.until(lambda: gateway.strays == 0 and gateway.in_flight == 0)
            gateway.plan = None
            whole = await client.post("/", json={"call": "last"})
        await gateway.until(lambda: gateway.strays == 0)
        await check(upstream, gateway, whole)
        if not any(schedule):
            assert [json.loads(it.partition(":")[2])["call"] for it in said] == list(range(count))
            assert len(upstream.arrived) == count + 1


async def check(upstream: Upstream, gateway: Gateway, whole: httpx.Response) -> None:
    faults = [it.fault for it in gateway.log]
    assert whole.status_code == 200
    assert whole.text.endswith(':{"call":"last"}')
    assert gateway.counts["requests"] + gateway.counts["copies"] == len(faults)
    unseen = faults.count("DropRequest") + faults.count("AnswerInstead") + faults.count("OldReply")
    expected = len(faults) - unseen + faults.count("Duplicate")
    await upstream.until(expected)
    assert len(upstream.arrived) == expected
    assert upstream.bodies.count(SHORT) <= faults.count("CutRequest")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(schedule=schedules(most=12, longest_s=0.02))
def test_after_any_schedule_the_gateway_is_whole_and_has_counted_right(schedule):
    asyncio.run(follow(schedule))
