"""Each way a call can fail: which error, and a message that says what to do."""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import json
import re
import socket
import traceback
from typing import TYPE_CHECKING, Any

import pytest

from arlm.clients.chat_wire import ChatWire
from arlm.clients.endpoint import Endpoint, endpoint_of
from arlm.clients.failures import TOLD_CHARS, Teller, retry_after
from arlm.clients.openai import OpenAILM
from arlm.clients.remote import read
from arlm.clients.rows import ROWS
from arlm.clients.wire import Reply
from arlm.errors import AuthError, BadRequest, ConnectionFailed, ContextTooLong, Overloaded, ProviderError, RateLimited, Refused

if TYPE_CHECKING:
    from arlm.testing import ScriptedProvider

KEY = "sk-a-very-secret-key"


def lm_of(server: Any, **options: Any) -> OpenAILM:
    return OpenAILM("small", **{"base_url": server.url, "api_key": KEY, **options})


def error_of(endpoint: Endpoint, status: int, headers: dict[str, str], body: bytes) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        read(Teller(endpoint), ChatWire(endpoint.row), Reply(status, headers, body), "m")
    return caught.value


async def failure(lm: OpenAILM, prompt: str = "x") -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await lm.acompletion(prompt)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert KEY not in shown
    assert caught.value.provider == lm.provider
    return caught.value


@pytest.mark.parametrize(
    ("fault", "kind", "status", "said"),
    [
        ("429", RateLimited, 429, "too many requests"),
        ("500", Overloaded, 500, "the provider failed"),
        ("503", Overloaded, 503, "the provider failed"),
        ("529", Overloaded, 529, "overloaded"),
        ("reset", ConnectionFailed, None, "was cut"),
        ("cut", ConnectionFailed, None, "was cut"),
        ("invalid_json", ConnectionFailed, 200, "not valid JSON"),
        ("html", BadRequest, 200, "is the base URL http://127.0.0.1.* right"),
    ],
)
async def test_each_fault_is_its_own_error(
    provider: ScriptedProvider, fault: str, kind: type[ProviderError], status: int | None, said: str
) -> None:
    await provider.configure({"faults": [fault]})
    lm = lm_of(provider)
    error = await failure(lm)
    assert type(error) is kind
    assert error.status == status
    assert re.search(said, str(error))
    assert lm.get_usage_summary().total.failed == 1
    assert (await lm.acompletion("after")).text == "after"


async def test_a_wrong_key_names_its_variable_and_hides_the_key(provider: ScriptedProvider) -> None:
    await provider.configure({"key": "another"})
    error = await failure(lm_of(provider))
    assert type(error) is AuthError
    assert "OPENAI_API_KEY" in str(error)
    assert "***" in str(error)


async def test_an_unknown_model_says_what_to_check(provider: ScriptedProvider) -> None:
    await provider.configure({"missing_models": ["small"]})
    error = await failure(lm_of(provider))
    assert type(error) is BadRequest
    assert "model's name" in str(error)


async def test_a_path_that_is_not_there_shows_the_base_url() -> None:
    async def not_found(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\nConnection: close\r\n\r\nnot found")
        writer.close()

    async with await asyncio.start_server(not_found, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v9"
        error = await failure(OpenAILM("m", api_key=KEY, base_url=url))
    assert type(error) is BadRequest
    assert url in str(error)
    assert "model's name" in str(error)


async def test_a_prompt_that_does_not_fit_is_its_own_error(provider: ScriptedProvider) -> None:
    await provider.configure({"context_chars": 100})
    error = await failure(lm_of(provider), "x" * 101)
    assert type(error) is ContextTooLong
    assert "maximum context length is 25 tokens" in str(error)


async def test_a_server_that_is_not_there_shows_the_url_tried() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    error = await failure(OpenAILM("m", provider="vllm", base_url=url))
    assert type(error) is ConnectionFailed
    assert f"{url} cannot be reached" in str(error)


async def test_a_host_that_does_not_exist_is_said_to_be_not_found() -> None:
    error = await failure(OpenAILM("m", api_key=KEY, base_url="http://no-such-host.invalid/v1"))
    assert type(error) is ConnectionFailed
    assert "no-such-host.invalid" in str(error)


async def test_https_to_a_server_that_speaks_http_is_a_failed_connection(provider: ScriptedProvider) -> None:
    error = await failure(lm_of(provider, base_url=provider.url.replace("http:", "https:")))
    assert type(error) is ConnectionFailed


async def test_a_call_that_gets_no_reply_in_time_is_a_failed_connection_and_is_closed(provider: ScriptedProvider) -> None:
    await provider.configure({"faults": ["stall"]})
    error = await failure(lm_of(provider, timeout=0.05))
    assert type(error) is ConnectionFailed
    assert "no reply from" in str(error)
    assert "0.05 s" in str(error)


@pytest.mark.parametrize(
    ("headers", "seconds"), [({"retry_after": "7"}, 7.0), ({"retry_after_ms": "1500"}, 1.5), ({"retry_after": None}, None)]
)
async def test_a_rate_limit_carries_the_wait_that_was_asked_for(
    provider: ScriptedProvider, headers: dict[str, str | None], seconds: float | None
) -> None:
    await provider.configure({"faults": ["429"], **headers})
    assert (await failure(lm_of(provider))).retry_after == seconds


def test_retry_after_may_be_a_date() -> None:
    date = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=90)
    waited = retry_after({"retry-after": email.utils.format_datetime(date, usegmt=True)})
    assert waited is not None
    assert 80 < waited <= 90
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0


@pytest.mark.parametrize("value", ["soon", "", "nan", "99999999999999999999 GMT"])
def test_a_retry_after_that_is_none_is_ignored(value: str) -> None:
    assert retry_after({"retry-after": value}) is None


def body(message: str, code: str | None = None, **more: Any) -> bytes:
    return json.dumps({"error": {"message": message, "code": code, **more}}).encode()


@pytest.mark.parametrize(
    ("status", "reply", "kind"),
    [
        (400, body("bad", "context_length_exceeded"), ContextTooLong),
        (400, body("Requested tokens exceed context window of 4096"), ContextTooLong),
        (400, body("prompt is too long: 210000 tokens > 200000 maximum"), ContextTooLong),
        (400, body("unknown parameter"), BadRequest),
        (400, body("filtered", "content_filter"), Refused),
        (400, b"", BadRequest),
        (402, body("pay"), AuthError),
        (403, body("country"), AuthError),
        (413, b"too large", ContextTooLong),
        (418, b"teapot", BadRequest),
        (422, body("field required"), BadRequest),
        (429, body("You exceeded your current quota", "insufficient_quota"), AuthError),
        (308, b"", BadRequest),
        (502, b"<html>bad gateway</html>", Overloaded),
        (504, b"", Overloaded),
        (404, b'{"error": "model \'x\' not found, try pulling it first"}', BadRequest),
        (400, b'["odd"]', BadRequest),
        (500, b'{"error": null}', Overloaded),
    ],
)
def test_the_table_maps_what_providers_send(status: int, reply: bytes, kind: type[ProviderError]) -> None:
    error = error_of(endpoint_of(ROWS["openai"], api_key=KEY), status, {}, reply)
    assert type(error) is kind
    assert error.status == status
    assert str(error).startswith(f"openai {status}: ")


def test_a_plain_text_error_of_ollama_is_told() -> None:
    error = error_of(endpoint_of(ROWS["ollama"]), 404, {}, b'{"error": "model \'x\' not found, try pulling it first"}')
    assert "try pulling it first" in str(error)


def test_the_providers_own_words_are_bounded() -> None:
    error = error_of(endpoint_of(ROWS["openai"], api_key=KEY), 400, {}, body("word " * 10_000))
    assert len(str(error)) < TOLD_CHARS + 200


async def test_an_error_object_in_a_200_is_the_error_it_names() -> None:
    reply = body("upstream is busy", None).replace(b'"code": null', b'"code": 429')

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(reply)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + reply)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        error = await failure(OpenAILM("m", provider="openrouter", api_key=KEY, base_url=url))
    assert type(error) is RateLimited
    assert "upstream is busy" in str(error)
