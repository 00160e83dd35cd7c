"""Cases about calls that a provider turns down: which error, and what it says."""

# ruff: noqa: D103 - the name of a case is its claim

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ..errors import AuthError, BadRequest, ConnectionFailed, ContextTooLong, Overloaded, ProviderError, RateLimited
from .lm_bench import KEY, failure_of
from .lm_canned import Canned, said
from .lm_case import Cases
from .lm_failures import BY_STATUS, PUBLISHED

if TYPE_CHECKING:
    from .lm_bench import Bench

CASES = Cases()
case = CASES.case

NO_JSON = (
    b"",
    b"Service Unavailable",
    b"<!doctype html><html><body><h1>502 Bad Gateway</h1></body></html>",
    b'{"error": {"mess',
    b"[]",
    b"null",
    b"17",
    b'"text"',
    b"{}",
    b'{"error": null}',
    b'{"error": "text"}',
    b'{"error": []}',
    b'{"error": {"message": null, "type": null, "code": null, "details": null}}',
    b'{"error": {"message": 5, "type": 5, "code": {}, "details": [7]}}',
    b'{"type": "error"}',
    b"\xff\xfe\x00\x80",
)
NO_COMPLETIONS = (
    b"{}",
    b"[]",
    b"null",
    b'"text"',
    b"5",
    b'{"choices": []}',
    b'{"choices": [{}]}',
    b'{"choices": [{"message": null}]}',
    b'{"object": "list", "data": []}',
    b'{"output": null, "object": "response", "status": "completed"}',
    b'{"content": null, "type": "message", "stop_reason": null}',
    b'{"candidates": [7]}',
)


@case("server")
async def a_key_that_is_not_let_in_is_an_auth_error(bench: Bench) -> None:
    await bench.play(key="another")
    error = await bench.fails(AuthError)
    assert error.status in (400, 401)
    assert error.usage is None
    assert not error.retryable


@case("server")
async def an_unknown_model_is_a_bad_request_that_says_what_to_check(bench: Bench) -> None:
    await bench.play(missing_models=[bench.subject.models[0]])
    error = await bench.fails(BadRequest)
    assert error.status == 404
    assert "model" in str(error)


@case("server")
async def a_prompt_that_does_not_fit_is_an_error_of_its_own(bench: Bench) -> None:
    await bench.play(context_chars=100)
    error = await bench.fails(ContextTooLong, "x" * 101)
    assert error.status == 400
    assert not error.retryable
    assert (await bench.ask("x" * 100)).text == "x" * 100


@case("server")
async def each_status_is_its_own_error_and_the_next_call_is_answered(bench: Bench) -> None:
    statuses = (401, 403, 413, 429, 500, 502, 503, 504, 529)
    await bench.play(faults=[str(status) for status in statuses])
    for status in statuses:
        error = await bench.fails(BY_STATUS[status])
        assert error.status == status
        assert str(status) in str(error)
    assert (await bench.ask("after")).text == "after"
    total = bench.lm.get_usage_summary().total
    assert (total.calls, total.failed) == (len(statuses) + 1, len(statuses))


@case("server")
async def each_error_that_providers_publish_is_the_error_it_means(bench: Bench) -> None:
    published = PUBLISHED[bench.subject.wire]
    async with bench.canned(*[said(failure.body, failure.status) for failure in published]) as (lm, server):
        for failure in published:
            error = await failure_of(lm.acompletion("x"))
            assert (failure, type(error)) == (failure, failure.kind)
            assert error.status == (failure.told or failure.status), failure
            assert error.retry_after == failure.retry_after, failure
        assert server.asked == len(published)


@case("server")
async def a_status_whose_body_is_no_error_object_is_still_its_error(bench: Bench) -> None:
    async with bench.canned(*[Canned(status=status, body=body) for status in BY_STATUS for body in NO_JSON]) as (lm, _):
        for status, kind in BY_STATUS.items():
            for body in NO_JSON:
                error = await failure_of(lm.acompletion("x"))
                assert (status, body, type(error)) == (status, body, kind)
                assert error.status == status


@case("server")
async def json_that_is_no_completion_is_a_provider_error(bench: Bench) -> None:
    async with bench.canned(*[Canned(body=body) for body in NO_COMPLETIONS]) as (lm, _):
        for body in NO_COMPLETIONS:
            error = await failure_of(lm.acompletion("x"))
            assert (body, isinstance(error, BadRequest)) == (body, True)


@case("server")
async def a_web_page_is_a_bad_request_that_asks_about_the_url(bench: Bench) -> None:
    await bench.play(faults=["html"])
    error = await bench.fails(BadRequest)
    assert "base URL" in str(error)
    page = Canned(body=b"\n <html>a page under another name</html>")
    async with bench.canned(page) as (lm, _):
        await bench.fails(BadRequest, lm=lm)


@case("server")
async def broken_json_is_a_failed_connection(bench: Bench) -> None:
    await bench.play(faults=["invalid_json"])
    error = await bench.fails(ConnectionFailed)
    assert error.retryable
    whole = said(bench.speech.reply("x")).body
    async with bench.canned(Canned(body=b""), Canned(body=whole[:-3]), Canned(body=whole[:20] + b"\xff\xff" + whole[20:])) as (lm, _):
        for _ in range(3):
            await bench.fails(ConnectionFailed, lm=lm)


@case("server")
async def a_redirect_is_not_followed(bench: Bench) -> None:
    for status in (301, 302, 307, 308):
        redirect = Canned(status=status, headers={"Location": f"{bench.provider.url}/chat/completions"})
        async with bench.canned(redirect) as (lm, _):
            await bench.fails(BadRequest, lm=lm)
    assert (await bench.stats())["calls"] == 0


@case("server")
async def nothing_is_tried_again_inside_of_a_call(bench: Bench) -> None:
    faults = ["429", "500", "502", "503", "529", "reset", "cut", "invalid_json"]
    await bench.play(faults=faults, retry_after="0")
    for number in range(len(faults)):
        error = await failure_of(bench.lm.acompletion("x"))
        assert error.retryable
        assert (await bench.stats())["calls"] == number + 1


@case("server")
async def a_message_says_the_providers_own_words_in_bounds_and_on_one_line(bench: Bench) -> None:
    words = "first line\nsecond line " + "word " * 10_000
    body = {"type": "error", "error": {"message": words, "type": "invalid_request_error", "code": None}}
    async with bench.canned(said(body, 400)) as (lm, _):
        error = await bench.fails(BadRequest, lm=lm)
    assert "first line second line" in str(error)
    assert len(str(error)) < 1_000
    assert "\n" not in str(error)


@case("server")
async def an_error_body_of_megabytes_does_no_harm(bench: Bench) -> None:
    body = json.dumps({"error": {"message": f"{KEY} " * 50_000}}).encode()
    async with bench.canned(Canned(status=500, body=body)) as (lm, _):
        error = await bench.fails(Overloaded, lm=lm)
    assert len(str(error)) < 1_000


@case("stream")
async def an_error_in_the_middle_of_a_stream_is_the_error_it_names_with_what_was_billed(bench: Bench) -> None:
    await bench.play(faults=["stream_error"])
    error = await failure_of(bench.lm.acompletion("x" * 40, sampling={"max_tokens": 64_000}))
    assert type(error) is Overloaded
    assert error.usage is not None
    assert error.usage.input_tokens == 10


@case("server")
async def errors_know_their_provider_and_whether_to_try_again(bench: Bench) -> None:
    kinds: dict[int, type[ProviderError]] = {401: AuthError, 429: RateLimited, 529: Overloaded}
    await bench.play(faults=[str(status) for status in kinds])
    for kind in kinds.values():
        error = await bench.fails(kind)
        assert error.retryable == (kind is not AuthError)
        assert str(error).startswith(bench.lm.provider)
