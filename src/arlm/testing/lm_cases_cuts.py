"""Cases about connections that are slow, cut, reset or not there."""

# ruff: noqa: D103 - the name of a case is its claim

from __future__ import annotations

import gzip
import socket
from typing import TYPE_CHECKING

import anyio

from ..errors import ConnectionFailed
from .lm_bench import failure_of
from .lm_canned import Canned, said
from .lm_case import Cases

if TYPE_CHECKING:
    from .lm_bench import Bench

CASES = Cases()
case = CASES.case

SOON = 0.05  # seconds; a timeout that a test can wait for
MUCH_LATER = 60 * SOON  # for a loaded machine, and still sooner than any timeout that is not the one asked for
LONG = 64_000  # tokens; a reply that may be so long has to be streamed


@case("server")
async def a_slow_first_byte_is_waited_for(bench: Bench) -> None:
    await bench.play(faults=["slow_first_byte"], slow=0.02)
    assert (await bench.ask("late")).text == "late"


@case("server")
async def a_first_byte_later_than_the_timeout_is_a_failed_connection_and_is_closed(bench: Bench) -> None:
    await bench.play(faults=["slow_first_byte"], slow=60)
    with anyio.fail_after(MUCH_LATER):
        error = await bench.fails(ConnectionFailed, lm=bench.another(timeout=SOON))
    assert f"{SOON:g} s" in str(error)
    assert error.retryable
    await bench.until(lambda stats: stats["aborted"] == 1 and stats["open_connections"] == 0)
    assert (await bench.ask("after")).text == "after"


@case("server")
async def a_body_that_stops_coming_is_a_failed_connection_after_the_timeout(bench: Bench) -> None:
    await bench.play(faults=["stall_body"])
    with anyio.fail_after(MUCH_LATER):
        await bench.fails(ConnectionFailed, lm=bench.another(timeout=SOON))
    await bench.until(lambda stats: stats["aborted"] == 1 and stats["open_connections"] == 0)


@case("server")
async def a_body_that_is_cut_is_a_failed_connection(bench: Bench) -> None:
    await bench.play(faults=["cut"])
    error = await bench.fails(ConnectionFailed)
    assert error.retryable
    assert (await bench.ask("after")).text == "after"
    whole = said(bench.speech.reply("x" * 100)).body
    async with bench.canned(*[Canned(body=whole[:size], length=len(whole)) for size in (0, 1, len(whole) // 2, len(whole) - 1)]) as (lm, _):
        for _ in range(4):
            await bench.fails(ConnectionFailed, lm=lm)


@case("server")
async def an_error_body_that_is_cut_is_a_failed_connection(bench: Bench) -> None:
    async with bench.canned(Canned(status=500, body=b'{"error"', length=100)) as (lm, _):
        await bench.fails(ConnectionFailed, lm=lm)


@case("server")
async def a_connection_that_is_reset_is_a_failed_connection(bench: Bench) -> None:
    await bench.play(faults=["reset"])
    assert (await bench.fails(ConnectionFailed)).status is None
    assert (await bench.ask("after")).text == "after"


@case("server")
async def a_server_that_is_not_there_is_a_failed_connection_that_names_it(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        root = f"http://127.0.0.1:{taken.getsockname()[1]}"
    error = await bench.fails(ConnectionFailed, lm=bench.another(root=root))
    assert root in str(error)


@case("server")
async def a_server_that_speaks_no_http_is_a_failed_connection(bench: Bench) -> None:
    root = bench.stage.root.replace("http:", "https:")
    assert (await failure_of(bench.another(root=root).acompletion("x"))).retryable


@case("server")
async def a_compressed_reply_is_read(bench: Bench) -> None:
    body = gzip.compress(said(bench.speech.reply("unpacked")).body)
    async with bench.canned(Canned(body=body, headers={"Content-Encoding": "gzip"})) as (lm, _):
        assert (await lm.acompletion("x")).text == "unpacked"  # type: ignore[union-attr]


@case("server")
async def a_connection_is_kept_and_used_again(bench: Bench) -> None:
    for _ in range(5):
        await bench.ask()
    assert (await bench.stats())["connections"] == 1
    assert (await bench.another().acompletion("x")).text == "x"  # type: ignore[union-attr]
    assert (await bench.stats())["connections"] == 1


@case("stream")
async def a_long_reply_is_streamed_and_read_as_a_whole(bench: Bench) -> None:
    text = "a line of text, é 😀 \u2028\n" * 5_000
    await bench.play(thinking="a secret thought", reasoning_tokens=5, cached_tokens=2, cache_write_tokens=3)
    whole = await bench.ask(text)
    streamed = await bench.ask(text, sampling={"max_tokens": LONG})
    assert (await bench.body())["stream"] is True
    assert (streamed.text, streamed.usage, streamed.finish_reason) == (text, whole.usage, "stop")


@case("stream")
async def a_stream_that_is_cut_is_a_failed_connection_with_what_was_billed(bench: Bench) -> None:
    for fault, timeout in (("cut", bench.stage.timeout), ("stall_body", SOON)):
        await bench.play(faults=[fault])
        lm = bench.another(timeout=timeout)
        error = await failure_of(lm.acompletion("x" * 400, sampling={"max_tokens": LONG}))
        assert type(error) is ConnectionFailed
        assert error.usage is not None
        assert error.usage.input_tokens == 100
        assert lm.get_usage_summary().total.input_tokens == 100


@case("stream")
async def a_stream_without_its_end_or_of_broken_json_is_a_failed_connection(bench: Bench) -> None:
    begun = b'event: message_start\ndata: {"type": "message_start", "message": {"usage": {"input_tokens": 1}}}\n\n'
    bodies = (b"", begun, begun + b"data: {\n\n", begun + b"data: null\n\n", b"nothing of a stream")
    async with bench.canned(*[Canned(body=body, kind="text/event-stream") for body in bodies]) as (lm, _):
        for body in bodies:
            error = await failure_of(lm.acompletion("x", sampling={"max_tokens": LONG}))
            assert (body, type(error)) == (body, ConnectionFailed)
    await bench.play(faults=["invalid_json"])
    error = await failure_of(bench.lm.acompletion("x", sampling={"max_tokens": LONG}))
    assert type(error) is ConnectionFailed
