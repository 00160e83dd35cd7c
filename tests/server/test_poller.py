"""The Poller: two streams over requests of which any may be lost, late, cut, repeated, or answered by somebody else."""

from __future__ import annotations

import asyncio
import gzip
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import pytest_asyncio
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arlm.broker.streams import COMMANDS, SUPERVISOR, Packet
from arlm.errors import SandboxError
from arlm.server import asking, poller
from arlm.server.asking import Asker, Failed
from arlm.testing.gateway import Gateway, open_gateway
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
    Fault,
    OldReply,
    Rates,
    Replay,
    only,
)
from brokers import TOKEN, Echo, Heard, Wrap, open_echo, polling
from certificates import self_signed
from gateway_schedules import schedules

FAULTS: dict[str, Fault] = {
    "drop request": DropRequest(),
    "drop reply": DropReply(),
    "reply dropped with 502": DropReply(status=502),
    "delay request": DelayRequest(seconds=0.02),
    "delay reply": DelayReply(seconds=0.02),
    "duplicate": Duplicate(later=0.01, reply="second"),
    "replay": Replay(newer=2),
    "cut request": CutRequest(),
    "request cut and reframed": CutRequest(reframed=True),
    "cut reply": CutReply(),
    "reply cut and reframed": CutReply(reframed=True),
    "cut head": CutReply(keep=0.0),
    "old reply": OldReply(back=2),
    "close idle": CloseIdle(),
    "corrupt request": Corrupt(side="request"),
    "corrupt reply": Corrupt(at=0.1),
    "a page with 200": AnswerInstead(status=200, html=True),
    **{f"status {status}": AnswerInstead(status=status, requests=3) for status in (302, 400, 401, 403, 404, 413, 429, 500, 502, 503, 504)},
}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "PAUSES", (0.002, 0.02))


@pytest_asyncio.fixture
async def echo() -> AsyncIterator[Echo]:
    async with open_echo() as it:
        yield it


@pytest_asyncio.fixture
async def gateway(echo: Echo) -> AsyncIterator[Gateway]:
    async with open_gateway(echo.url) as it:
        yield it


async def goes_round(it: poller.Poller, heard: Heard, data: bytes) -> None:
    """Send bytes, in several pieces, and wait until they are back: these and no others."""
    begin = len(heard.data)
    for piece in (data[:1], data[1 : len(data) // 2], data[len(data) // 2 :]):
        it.send(SUPERVISOR, piece)
    await heard.until(lambda: len(heard.data) >= begin + len(data) or heard.lost)
    assert heard.lost == []
    assert bytes(heard.data[begin:]) == data


# -- what gateways do --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
async def test_whatever_happens_to_requests_all_comes_once_and_in_order(fault: str, gateway: Gateway) -> None:
    heard = Heard()
    async with polling(gateway.url, heard) as it:
        await goes_round(it, heard, b"before")
        gateway.plan = only([FAULTS[fault], None] * 8, path="/respond" if "request" in fault else None)
        for number in range(10):
            await goes_round(it, heard, b"%d" % number * 20)
        gateway.plan = None
        await goes_round(it, heard, b"after")
    assert gateway.counts[type(FAULTS[fault]).__name__] >= 3
    assert bytes(heard.data) == b"before" + b"".join(b"%d" % number * 20 for number in range(10)) + b"after"


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(schedule=schedules(most=25, longest_s=0.01), sizes=st.lists(st.sampled_from([3, 100, 70_000, 600_000]), min_size=1, max_size=5))
async def test_over_any_schedule_all_comes_once_and_in_order(gateway: Gateway, schedule: list[Fault | None], sizes: list[int]) -> None:
    heard, sent = Heard(), b""
    async with open_echo() as fresh, polling_from(gateway, fresh, heard) as it:
        gateway.plan = schedule
        for number, size in enumerate(sizes):
            data = bytes([number]) * size
            sent += data
            await goes_round(it, heard, data)
        await gateway.until(lambda: gateway.strays == 0)
        await goes_round(it, heard, b"last")
    assert bytes(heard.data) == sent + b"last"


@asynccontextmanager
async def polling_from(gateway: Gateway, echo: Echo, heard: Heard) -> AsyncIterator[poller.Poller]:
    gateway.plan, gateway.upstream = None, echo.url
    async with polling(gateway.url, heard) as it:
        yield it


@pytest.mark.parametrize("seed", range(3))
async def test_half_of_all_requests_may_go_wrong_while_megabytes_pass(gateway: Gateway, seed: int) -> None:
    share = 0.05
    rates = Rates(
        drop_request=share,
        drop_reply=share,
        delay_request=share,
        delay_reply=share,
        duplicate=share,
        replay=share,
        cut_request=share,
        cut_reply=share,
        answer=share,
        old_reply=share,
        corrupt=share,
        seconds=0.01,
        statuses=(200, 400, 401, 403, 404, 502, 503, 504),
        outage=3,
        seed=seed,
    )
    heard, sent = Heard(), b""
    async with polling(gateway.url, heard) as it:
        gateway.plan = rates
        for number in range(60):
            data = bytes([number]) * (150_000 if number % 5 else 1_000_000)
            sent += data
            it.send(SUPERVISOR, data)
            await heard.until(lambda: len(heard.data) > len(sent) - 2_000_000)  # noqa: B023 - at once
        await heard.until(lambda: len(heard.data) >= len(sent))
    assert bytes(heard.data) == sent
    assert heard.lost == []


async def test_opening_goes_through_faults_too(gateway: Gateway) -> None:
    gateway.plan = [DropRequest(), AnswerInstead(status=502, requests=2), AnswerInstead(status=200, html=True), CutReply(), DropReply()]
    heard = Heard()
    async with polling(gateway.url, heard) as it:
        await goes_round(it, heard, b"data")


async def test_connections_that_a_gateway_resets_are_made_anew(gateway: Gateway) -> None:
    heard = Heard()
    async with polling(gateway.url, heard) as it:
        for number in range(5):
            await goes_round(it, heard, b"data%d" % number)
            await gateway.until(lambda: gateway.in_flight == 1)
            assert gateway.reset_connections() >= 1


async def test_polls_become_shorter_where_a_gateway_does_not_wait(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "SHORTEST_SECONDS", 0.01)
    heard = Heard()
    async with open_gateway(echo.url, limit_s=0.15) as gateway, polling(gateway.url, heard, wait_seconds=2.0) as it:
        async with asyncio.timeout(30):
            await gateway.until(lambda: gateway.counts["requests"] >= 14)
        assert 2 <= gateway.counts["limit"] <= 6
        await goes_round(it, heard, b"data")


class Impatient:
    """What answers polls that would wait longer than ``patience`` with 504, as long as it has one."""

    def __init__(self) -> None:
        self.patience: float | None = 0.1
        self.waits: list[float] = []
        self.polled = asyncio.Event()

    def wrap(self, app: Any) -> Any:
        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            query = parse_qs(scope["query_string"].decode())
            if scope["path"] != "/pending" or query["wait"] == ["0"]:
                await app(scope, receive, send)
                return
            self.waits.append(float(query["wait"][0]))
            self.polled.set()
            if self.patience is None or self.waits[-1] <= self.patience:
                await app(scope, receive, send)
                return
            await asyncio.sleep(self.patience)
            await send({"type": "http.response.start", "status": 504, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

        return wrapped

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self.polled.clear()
                await self.polled.wait()


async def test_polls_become_longer_again_when_a_gateway_waits_as_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "SHORTEST_SECONDS", 0.01)
    monkeypatch.setattr(poller, "QUIET_POLLS", 1)
    gateway, heard = Impatient(), Heard()
    async with open_echo(gateway.wrap) as echo, polling(echo.url, heard, wait_seconds=0.4) as it:
        await gateway.until(lambda: gateway.waits[-1:] == [0.1])
        gateway.patience = None
        await gateway.until(lambda: gateway.waits[-1] == 0.4)
        await goes_round(it, heard, b"data")


async def test_what_is_too_long_for_a_gateway_is_tried_ever_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "SHORTEST_SECONDS", 0.01)
    monkeypatch.setattr(poller, "QUIET_POLLS", 1)
    monkeypatch.setattr(poller, "PAUSES", (0.001, 0.002))
    gateway, heard = Impatient(), Heard()
    gateway.patience = 0.02
    async with open_echo(gateway.wrap) as echo, polling(echo.url, heard, wait_seconds=0.04):
        await gateway.until(lambda: len(gateway.waits) >= 70)
    longer = [number for number, wait in enumerate(gateway.waits) if wait == 0.04]
    begun = [number for number in longer if number - 1 not in longer]
    gaps = [later - earlier for earlier, later in pairwise(begun)]
    assert len(gaps) >= 3
    assert gaps == sorted(gaps)
    assert gaps[-1] >= 4 * gaps[0]


MEGABYTE = 1024 * 1024


def takes_a_megabyte(status: int, refused: list[int]) -> Wrap:
    """What answers longer requests with a status, and notes their sizes."""

    def wrap(app: Any) -> Any:
        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            size = int(dict(scope["headers"]).get(b"content-length", b"0"))
            if size <= MEGABYTE:
                await app(scope, receive, send)
                return
            refused.append(size)
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

        return wrapped

    return wrap


def gives_a_megabyte(status: int, refused: list[int]) -> Wrap:
    """What gives a status in the place of longer answers, and notes their sizes."""

    def wrap(app: Any) -> Any:
        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            async def send_some(message: Any) -> None:
                if message["type"] == "http.response.start":
                    size = int(dict(message["headers"])[b"content-length"])
                    if size > MEGABYTE:
                        refused.append(size)
                        message = {**message, "status": status, "headers": [(b"content-length", b"0")]}
                elif len(message["body"]) > MEGABYTE:
                    message = {**message, "body": b""}
                await send(message)

            await app(scope, receive, send_some)

        return wrapped

    return wrap


async def test_packets_become_smaller_where_a_gateway_says_that_it_takes_no_more() -> None:
    heard, refused = Heard(), list[int]()
    async with open_echo(takes_a_megabyte(413, refused)) as echo, polling(echo.url, heard) as it:
        await goes_round(it, heard, b"12345678" * MEGABYTE)
        await goes_round(it, heard, b"12345678" * MEGABYTE)
    assert 1 <= len(refused) <= 3


@pytest.mark.parametrize("status", [400, 502])
async def test_packets_become_smaller_where_large_ones_fail_for_no_stated_reason(status: int) -> None:
    heard, refused = Heard(), list[int]()
    async with open_echo(takes_a_megabyte(status, refused)) as echo, polling(echo.url, heard) as it:
        await goes_round(it, heard, b"12345678" * MEGABYTE)
        await goes_round(it, heard, b"12345678" * MEGABYTE)
    assert len(refused) >= 2


@pytest.mark.parametrize("status", [413, 500, 502])
async def test_a_broker_is_asked_for_less_where_large_answers_do_not_pass(status: int) -> None:
    heard, refused = Heard(), list[int]()
    async with open_echo(gives_a_megabyte(status, refused)) as echo, polling(echo.url, heard):
        echo.relay.send(SUPERVISOR, b"12345678" * MEGABYTE)
        await heard.until(lambda: len(heard.data) == 8 * MEGABYTE or heard.lost)
        assert heard.lost == []
    assert len(refused) >= 2
    assert heard.data == b"12345678" * MEGABYTE


def slow_beyond(size: int, stalled: list[int]) -> Wrap:
    """What stops in the middle of longer answers, as a slow way does for as long as anybody waits."""

    def wrap(app: Any) -> Any:
        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            async def send_slowly(message: Any) -> None:
                body = message.get("body", b"")
                if len(body) > size:
                    stalled.append(len(body))
                    await send({**message, "body": body[:1000], "more_body": True})
                    while (await receive())["type"] != "http.disconnect":
                        pass
                else:
                    await send(message)

            await app(scope, receive, send_slowly)

        return wrapped

    return wrap


async def test_a_way_on_which_a_large_packet_takes_too_long_is_slow_and_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(asking, "TRANSFER_SECONDS", 0.5)
    heard, stalled = Heard(), list[int]()
    async with open_echo(slow_beyond(3 * MEGABYTE, stalled)) as echo, polling(echo.url, heard, lost_seconds=0.5):
        echo.relay.send(SUPERVISOR, b"12345678" * MEGABYTE)
        await heard.until(lambda: len(heard.data) == 8 * MEGABYTE or heard.lost)
        assert heard.lost == []
    assert len(stalled) >= 1
    assert heard.data == b"12345678" * MEGABYTE


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_a_broker_that_was_restarted_is_told_from_the_one_before(gateway: Gateway) -> None:
    heard = Heard()
    async with polling(gateway.url, heard) as it, open_echo() as other:
        await goes_round(it, heard, b"data")
        gateway.upstream = other.url
        gateway.reset_connections()
        await heard.until(lambda: heard.lost)
        assert it.lost == "the broker was restarted, and what ran there is gone"
        it.send(SUPERVISOR, b"more")
        assert it.unsent(SUPERVISOR) == 0
    assert heard.lost == ["the broker was restarted, and what ran there is gone"]
    assert other.relay.epoch != ""


async def test_answers_of_the_broker_before_do_not_count_for_its_successor(gateway: Gateway) -> None:
    async with polling(gateway.url, before := Heard()) as it:
        await goes_round(it, before, b"data")
        await goes_round(it, before, b"data")
    heard = Heard()
    async with open_echo() as other:
        gateway.upstream = other.url
        gateway.plan = [OldReply(), OldReply(back=2), OldReply(back=3)]
        async with polling(gateway.url, heard) as it:
            await goes_round(it, heard, b"fresh")
            gateway.plan = [OldReply(back=4), OldReply(back=3)] * 2
            gateway.reset_connections()
            await goes_round(it, heard, b"fresh")
    assert gateway.counts["OldReply"] >= 5
    assert heard.lost == []
    assert bytes(heard.data) == b"freshfresh"


async def test_a_gateway_that_is_down_for_long_is_the_end_and_says_what_it_said(gateway: Gateway) -> None:
    heard = Heard()
    async with polling(gateway.url, heard, lost_seconds=0.2) as it:
        await goes_round(it, heard, b"data")
        gateway.plan = [AnswerInstead(status=503, seconds=60.0)]
        gateway.reset_connections()
        it.send(SUPERVISOR, b"unheard")
        await heard.until(lambda: heard.lost)
    assert len(heard.lost) == 1
    assert re.match(r"nothing came from the sandbox's broker for \d s \(last: status 503", heard.lost[0])


@pytest.mark.parametrize(("path", "what"), [("/respond", "nothing could be sent to"), ("/pending", "no poll was answered by")])
async def test_a_gateway_that_lets_one_direction_through_alone_is_the_end_too(path: str, what: str, gateway: Gateway) -> None:
    heard = Heard()
    async with polling(gateway.url, heard, wait_seconds=0.05, lost_seconds=1.0) as it:
        await goes_round(it, heard, b"data")
        gateway.plan = lambda seen: AnswerInstead(status=403) if seen.path == path else None
        async with asyncio.timeout(20):
            while not heard.lost:
                it.send(SUPERVISOR, b"more")
                await asyncio.sleep(0.01)  # so that there is something to send all the time
    assert re.match(rf"{what} the sandbox's broker for \d s \(last: status 403", heard.lost[0])


async def test_a_gateway_that_was_down_for_less_is_not(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    heard = Heard()
    async with polling(gateway.url, heard, lost_seconds=30.0) as it:
        await goes_round(it, heard, b"data")
        gateway.plan = [AnswerInstead(status=503, requests=25)]
        gateway.reset_connections()
        await goes_round(it, heard, b"late")
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


async def test_silence_counts_from_the_last_answer_though_a_poll_takes_long(gateway: Gateway) -> None:
    heard = Heard()
    async with polling(gateway.url, heard, wait_seconds=20.0, lost_seconds=0.6) as it:
        await gateway.until(lambda: gateway.in_flight == 1)
        gateway.plan = only([DropReply()], path="/pending")
        async with asyncio.timeout(30):
            await gateway.until(lambda: gateway.counts["DropReply"] == 1)
        await goes_round(it, heard, b"data")
    assert heard.lost == []


async def test_whether_the_sandbox_is_there_is_asked_once_several_requests_have_failed(gateway: Gateway) -> None:
    asked = []

    async def is_gone() -> str | None:
        asked.append(gateway.counts["requests"])
        return "it was deleted" if len(asked) > 2 else None

    heard = Heard()
    async with polling(gateway.url, heard, is_gone=is_gone) as it:
        await goes_round(it, heard, b"data")
        async with asyncio.timeout(20):
            await gateway.until(lambda: gateway.in_flight == 1 and gateway.log[-1].path.startswith("/pending"))
        before = gateway.counts["requests"]
        gateway.upstream = None
        gateway.reset_connections()
        await heard.until(lambda: heard.lost)
    assert heard.lost == ["it was deleted"]
    assert asked[0] - before in (2, 3)  # the first failure is the poll that was under way, which aiohttp may ask once more
    assert [later - earlier for earlier, later in pairwise(asked)] == [3, 3]


async def test_a_question_whether_it_is_there_that_nobody_answers_is_given_up(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "GONE_SECONDS", 0.01)
    heard = Heard()
    async with polling(gateway.url, heard, is_gone=asyncio.Event().wait, lost_seconds=0.2):  # type: ignore[arg-type]
        gateway.upstream = None
        gateway.reset_connections()
        await heard.until(lambda: heard.lost)
    assert heard.lost[0].startswith("nothing came")


async def test_a_question_whether_it_is_there_that_fails_is_no_answer(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    asked = 0

    async def is_gone() -> str | None:
        nonlocal asked
        asked += 1
        raise ConnectionError("the provider is not there: s3cret")

    heard = Heard()
    async with polling(gateway.url, heard, is_gone=is_gone) as it:
        gateway.plan = [AnswerInstead(status=503, requests=7)]
        gateway.reset_connections()
        await goes_round(it, heard, b"data")
    assert asked >= 1
    assert "whether the sandbox is there could not be asked: ConnectionError" in caplog.text
    assert "s3cret" not in caplog.text


async def test_closing_does_not_wait_for_a_question_that_does_not_end(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "GONE_GRACE_SECONDS", 0.01)
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def is_gone() -> str | None:
        asked.set()
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                pass  # as an SDK that tidies up for as long as it takes
        return None

    async with asyncio.timeout(20):
        async with polling(gateway.url, Heard(), is_gone=is_gone):
            gateway.upstream = None
            gateway.reset_connections()
            await asked.wait()
    go_on.set()


async def test_a_wrong_token_is_an_error_that_says_so(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "START_SECONDS", 0.1)
    with pytest.raises(SandboxError, match=r"its broker was not heard of: .*status 401: .*the token is not valid here"):
        async with polling(gateway.url, Heard(), token="another-t0ken"):
            pass


async def test_nobody_there_is_an_error_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "START_SECONDS", 0.1)
    async with open_gateway(None) as gateway:
        with pytest.raises(SandboxError, match=r"its broker was not heard of: .*status 502"):
            async with polling(gateway.url, Heard()):
                pass


async def test_what_cannot_be_taken_ends_the_connection_and_is_logged(echo: Echo, caplog: pytest.LogCaptureFixture) -> None:
    heard = Heard()

    def fails(_channel: int, _data: bytes) -> None:
        raise LookupError("ours")

    heard.receive = fails  # type: ignore[method-assign]
    async with polling(echo.url, heard) as it:
        it.send(SUPERVISOR, b"data")
        await heard.until(lambda: heard.lost)
    assert heard.lost == ["its connection ended: LookupError"]
    assert "the connection to a broker ended by a fault" in caplog.text


async def test_closing_ends_it_from_any_state(echo: Echo) -> None:
    never = poller.Poller(echo.url, TOKEN, receive=lambda *_: None, on_lost=lambda _: None)
    await never.close()
    heard = Heard()
    async with polling(echo.url, heard) as it:
        await it.close()
        it.send(SUPERVISOR, b"data")
        assert (it.lost, it.unsent(SUPERVISOR)) == ("it was closed", 0)
    assert heard.lost == []


# -- what it costs -----------------------------------------------------------------------------------------------------


async def test_a_healthy_connection_waits_for_no_timer_and_asks_twice_a_call(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    async def pause(_self: object) -> None:
        pytest.fail("it paused")

    monkeypatch.setattr(poller._Pauses, "pause", pause)
    heard = Heard()
    async with polling(gateway.url, heard, wait_seconds=60.0, lost_seconds=180.0) as it:
        before = gateway.counts["requests"]
        for number in range(50):
            heard.data.clear()
            it.send(SUPERVISOR, b"%d" % number)
            await heard.until(lambda: heard.data)
        assert 100 <= gateway.counts["requests"] - before <= 102
    assert heard.lost == []


async def test_what_is_sent_together_travels_together(gateway: Gateway) -> None:
    heard = Heard()
    async with polling(gateway.url, heard) as it:
        before = gateway.counts["requests"]
        for _ in range(3_000):
            it.send(SUPERVISOR, b"small ")
        await heard.until(lambda: len(heard.data) == 18_000)
        assert gateway.counts["requests"] - before < 100


# -- what a stranger may not do ----------------------------------------------------------------------------------------

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[str]:
    """A server that answers everything so; its URL."""
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def speaking(speak: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """A server that says bytes after a request's head; its URL."""
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await reader.readuntil(b"\r\n\r\n")
            await speak(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            running.discard(task)
            writer.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)


@asynccontextmanager
async def asking_of(url: str, **headers: str) -> AsyncIterator[Asker]:
    asker = Asker(url, TOKEN, headers)
    try:
        yield asker
    finally:
        await asker.close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_and_the_token_stays_here(status: int) -> None:
    seen: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.Response()

    async with answering(elsewhere) as other:

        async def redirect(_request: web.Request) -> web.Response:
            return web.Response(status=status, headers={"location": other + "/pending", "set-cookie": "a=b"})

        async with answering(redirect) as url, asking_of(url) as asker:
            for method in ("GET", "POST"):
                with pytest.raises(Failed, match=f"status {status}"):
                    await asker.ask(method, "/pending", {}, b"x" if method == "POST" else None, 5.0)  # type: ignore[arg-type]
    assert seen == []


async def test_no_cookie_is_kept_and_headers_are_what_was_told() -> None:
    seen: list[dict[str, str]] = []

    async def look(request: web.Request) -> web.Response:
        seen.append({name.lower(): value for name, value in request.headers.items()})
        return web.Response(headers={"set-cookie": "a=b"})

    async with answering(look) as url, asking_of(url, authorization="Bearer gateway-s3cret") as asker:
        for _ in range(2):
            with pytest.raises(Failed):
                await asker.ask("GET", "/pending", {}, None, 5.0)
    assert [set(headers) - {"host", "accept", "user-agent"} for headers in seen] == [
        {"x-arlm-token", "authorization", "accept-encoding"}
    ] * 2


async def test_an_answer_that_was_compressed_all_the_same_is_told_from_one_that_was_cut() -> None:
    async def compress(request: web.Request) -> web.Response:
        packet = Packet("e", 0, 1, [(SUPERVISOR, b"x" * 1000)], request.query["asked"])
        return web.Response(body=gzip.compress(packet.pack()), headers={"content-encoding": "gzip"})

    async with answering(compress) as url, asking_of(url) as asker:
        with pytest.raises(Failed, match=r"^the gateway compressed the answer \('gzip'\)"):
            await asker.ask("GET", "/pending", {}, None, 5.0)


@pytest.mark.parametrize("status", [200, 401])
async def test_a_page_that_repeats_the_request_does_not_bring_secrets_into_messages(status: int) -> None:
    async def repeat(request: web.Request) -> web.Response:
        return web.Response(status=status, text=f"{dict(request.headers)}")

    async with answering(repeat) as url, asking_of(url, authorization="Bearer gateway-s3cret") as asker:
        with pytest.raises(Failed) as caught:
            await asker.ask("GET", "/pending", {}, None, 5.0)
    assert TOKEN not in str(caught.value)
    assert "gateway-s3cret" not in str(caught.value)
    assert TOKEN not in repr(asker)


async def test_an_error_does_not_carry_along_what_another_library_says_of_the_request() -> None:
    async def hang_up(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        pass

    async with speaking(hang_up) as url, asking_of(url) as asker:
        with pytest.raises(Failed) as caught:
            await asker.ask("GET", "/pending", {}, None, 5.0)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


async def test_a_certificate_that_the_environment_names_is_trusted_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = self_signed(tmp_path)
    async with open_echo(certificate=certificate) as echo:
        async with asking_of(echo.url) as asker:
            with pytest.raises(Failed, match="certificate"):
                await asker.ask("GET", "/pending", {}, None, 5.0)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        heard = Heard()
        async with polling(echo.url, heard) as it:
            await goes_round(it, heard, b"data")


async def test_the_environments_proxy_is_used_and_its_password_stays_out_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    async def pass_on(request: web.Request) -> web.Response:
        seen.append((request.host, request.headers["proxy-authorization"][:6]))
        if len(seen) > 1:
            return web.Response(status=502, text="for proxy-us3r and proxy-passw0rd nothing is there")
        return web.Response(body=Packet("e", 0, 1, [], request.query["asked"]).pack())

    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with answering(pass_on) as proxy:
        monkeypatch.setenv("http_proxy", proxy.replace("://", "://proxy-us3r:proxy-passw0rd@"))
        async with asking_of("http://sandbox.invalid") as asker:
            assert (await asker.ask("GET", "/pending", {}, None, 5.0)).epoch == "e"
            with pytest.raises(Failed, match=r"for \*\*\* and \*\*\* nothing is there"):
                await asker.ask("GET", "/pending", {}, None, 5.0)
    assert seen == [("sandbox.invalid", "Basic ")] * 2


@pytest.mark.parametrize("status", [b"200 OK", b"502 Bad Gateway"])
async def test_an_endless_body_is_read_to_a_limit(status: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "BODY_BYTES", 1024 * 1024)
    written = 0

    async def endless(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 " + status + b"\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            written += 0x10000
            await writer.drain()

    async with speaking(endless) as url, asking_of(url) as asker:
        with pytest.raises(Failed, match="the body is too long"):
            await asker.ask("GET", "/pending", {}, None, 20.0)
    assert written < 16 * 1024 * 1024  # the limit, and what buffers between hold


async def test_a_body_that_drips_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "TRANSFER_SECONDS", 0.1)

    async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.01)

    async with speaking(drip) as url, asking_of(url) as asker:
        with pytest.raises(Failed, match="TimeoutError"):
            await asker.ask("GET", "/pending", {}, None, 0.1)


async def test_silence_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with speaking(silent) as url, asking_of(url) as asker:
        with pytest.raises(Failed, match=r"Timeout"):
            await asker.ask("GET", "/pending", {}, None, 0.05)


async def test_a_refusal_of_a_body_that_is_not_read_is_heard() -> None:
    async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno")
        await asyncio.Event().wait()

    async with speaking(refuse) as url, asking_of(url) as asker:
        async with asyncio.timeout(20):
            with pytest.raises(Failed, match="status 401: 'no'"):
                await asker.ask("POST", "/respond", {}, b"x" * 8_000_000, 60.0)


PARTS = [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200\r\n", b"HTTP/9.9 0 \r\n", b"content-length: -1\r\n", b"content-length: 5\r\n"]
PARTS += [b"transfer-encoding: chunked\r\n", b"content-encoding: gzip\r\n", b"\r\n", b"zz\r\n", b"5\r\n", b"{}\n", b"\xff\x00"]


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(said=st.lists(st.sampled_from(PARTS) | st.binary(max_size=20), max_size=8).map(b"".join))
async def test_any_bytes_for_an_answer_are_a_failed_request(said: bytes) -> None:
    async def say(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.write_eof()
        await writer.drain()

    async with speaking(say) as url, asking_of(url) as asker:
        with pytest.raises(Failed):
            await asker.ask("GET", "/pending", {}, None, 5.0)


# -- a broker that is none ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def fake(pending: Packet, respond: Packet) -> AsyncIterator[str]:
    """A server that answers polls and posts with these packets, and the first poll with none."""
    polls = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal polls
        given, epoch = (respond, pending.epoch), pending.epoch
        if request.path == "/pending":
            polls += 1
            given = (pending if polls > 1 else Packet(epoch, 0, 1, []), epoch)
        packet = given[0]
        return web.Response(body=Packet(packet.epoch, packet.after, packet.first, packet.pieces, request.query["asked"]).pack())

    async with answering(answer) as url:
        yield url


async def test_a_broker_that_forgets_what_was_not_taken_is_given_up() -> None:
    heard = Heard()
    async with fake(Packet("e", 0, 5, [(SUPERVISOR, b"late")]), Packet("e", 0, 1, [])) as url, polling(url, heard):
        await heard.until(lambda: heard.lost)
    assert heard.lost == ["its broker does not keep what it was not told to forget: pieces from 5 came after 0"]
    assert heard.data == b""


async def test_a_broker_that_takes_nothing_is_given_up() -> None:
    heard = Heard()
    async with fake(Packet("e", 0, 1, []), Packet("e", 0, 1, [])) as url, polling(url, heard) as it:
        it.send(COMMANDS, b"{}")
        await heard.until(lambda: heard.lost)
    assert heard.lost == ["its broker did not take what it was sent: from 1 on after 0"]


async def test_a_broker_that_claims_to_have_what_was_never_sent_changes_nothing() -> None:
    heard = Heard()
    async with fake(Packet("e", 99, 1, [(SUPERVISOR, b"once")]), Packet("e", 1, 1, [])) as url, polling(url, heard) as it:
        await heard.until(lambda: heard.data)
        it.send(COMMANDS, b"{}")
        assert it.unsent(COMMANDS) == 2
    assert bytes(heard.data) == b"once"
