"""Cases about the time that a provider asks to be given."""

# ruff: noqa: D103 - the name of a case is its claim

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import Overloaded, ProviderError, RateLimited
from .lm_bench import failure_of
from .lm_canned import Canned, said
from .lm_case import Cases

if TYPE_CHECKING:
    from .lm_bench import Bench

CASES = Cases()
case = CASES.case

LONG_AGO = "Wed, 21 Oct 2015 07:28:00 GMT"
A_MINUTE_LATER = "Wed, 21 Oct 2015 07:29:00 GMT"

HEADERS: tuple[tuple[dict[str, str], float | None], ...] = (
    ({"Retry-After": "7"}, 7.0),
    ({"retry-after": "0"}, 0.0),
    ({"Retry-After": "0.5"}, 0.5),
    ({"retry-after-ms": "1500"}, 1.5),
    ({"Retry-After-Ms": "250", "Retry-After": "9"}, 0.25),
    ({"retry-after-ms": "soon", "Retry-After": "9"}, 9.0),
    ({"Retry-After": A_MINUTE_LATER, "Date": LONG_AGO}, 60.0),
    ({"Retry-After": LONG_AGO, "Date": A_MINUTE_LATER}, 0.0),
    ({"Retry-After": LONG_AGO}, 0.0),
    ({"Retry-After": "-3"}, 0.0),
    ({"Retry-After": "nan"}, None),
    ({"Retry-After": "in a while"}, None),
    ({"Retry-After": ""}, None),
    ({}, None),
)


@case("server")
async def retry_after_is_told_in_seconds(bench: Bench) -> None:
    await bench.play(faults=["429"], retry_after="7")
    assert (await bench.fails(RateLimited)).retry_after == 7.0


@case("server")
async def retry_after_in_milliseconds_is_told_in_seconds(bench: Bench) -> None:
    await bench.play(faults=["429"], retry_after=None, retry_after_ms="1500")
    assert (await bench.fails(RateLimited)).retry_after == 1.5


@case("server")
async def a_limit_without_retry_after_says_none(bench: Bench) -> None:
    await bench.play(faults=["429"], retry_after=None)
    assert (await bench.fails(RateLimited)).retry_after is None


@case("server")
async def an_overload_says_how_long_too(bench: Bench) -> None:
    await bench.play(faults=["503"], retry_after="3")
    assert (await bench.fails(Overloaded)).retry_after == 3.0


@case("server")
async def a_rate_that_is_passed_is_a_limit_with_its_wait(bench: Bench) -> None:
    await bench.play(rate=0.001, burst=1, retry_after="2")
    await bench.ask()
    error = await bench.fails(RateLimited)
    assert (error.status, error.retry_after) == (429, 2.0)


@case("server")
async def every_form_of_retry_after_is_understood(bench: Bench) -> None:
    for status in (429, 503):
        replies = [Canned(status=status, body=b"{}", headers=headers) for headers, _ in HEADERS]
        async with bench.canned(*replies) as (lm, _):
            for headers, seconds in HEADERS:
                error = await failure_of(lm.acompletion("x"))
                assert isinstance(error, ProviderError)
                assert (headers, error.retry_after) == (headers, seconds)


@case("server")
async def a_reply_with_a_date_far_ahead_is_no_error_of_its_own(bench: Bench) -> None:
    far = {"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}
    broken = {"Retry-After": "Fri, 99 Foo 99999 99:99:99 GMT"}
    async with bench.canned(Canned(status=429, headers=far), Canned(status=429, headers=broken), said(bench.speech.reply("x"))) as (lm, _):
        assert (await bench.fails(RateLimited, lm=lm)).retry_after > 1e9  # type: ignore[operator]
        assert (await bench.fails(RateLimited, lm=lm)).retry_after is None
        await lm.acompletion("x")
