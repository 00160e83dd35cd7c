"""The model that is taken when none is given: a provider's whose key is set, else one of a server that answers."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import arlm
from arlm.clients import default_model, servers
from arlm.clients.packages import MODULES, is_installed
from arlm.clients.rows import ROWS
from arlm.clients.servers import ask_server, ask_servers
from arlm.errors import ConfigError
from arlm.testing import Script, ScriptedProvider
from commandline import NO_SERVERS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Reply = Callable[[str], Awaitable[bytes]]

ANSWER = "```repl\nanswer.update(content='forty-two', ready=True)\n```"
DEFAULTS = [row for row in ROWS.values() if row.default_model]


@pytest.fixture(autouse=True)
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NO_SERVERS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def all_sdks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every SDK is there: those that are not installed as packages that must not be imported."""
    for row in ROWS.values():
        if not is_installed(row):
            folder = tmp_path.joinpath(*MODULES[row.package].split("."))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").write_text("raise AssertionError('an SDK was imported to see whether it is there')")
    monkeypatch.syspath_prepend(str(tmp_path))


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Make these modules impossible to import."""
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


@contextlib.asynccontextmanager
async def answering(reply: Reply) -> AsyncIterator[str]:
    """A server that gives a connection ``await reply(head)``; its host and port."""

    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        try:
            writer.write(await reply((await reader.readuntil(b"\r\n\r\n")).decode()))
            await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client or the test has ended
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for task in serving:
            if task is not None:
                task.cancel()


def said(body: bytes, status: int = 200, more: str = "") -> bytes:
    return f"HTTP/1.1 {status} Said\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


def listing(*names: str) -> bytes:
    data = ", ".join(f'{{"id": "{name}"}}' for name in names)
    return said(f'{{"object": "list", "data": [{data}]}}'.encode())


# -- a key that is set --------------------------------------------------------------------------------------------------


def test_every_sdk_has_the_name_it_is_imported_by() -> None:
    assert {row.package for row in ROWS.values()} == set(MODULES)


@pytest.mark.usefixtures("all_sdks")
@pytest.mark.parametrize("first", range(len(DEFAULTS)), ids=[row.name for row in DEFAULTS])
async def test_the_first_provider_with_a_key_is_taken_and_the_reason_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    for row in DEFAULTS[first:]:
        monkeypatch.setenv(row.key_variables[-1], "some-key")
    taken = await default_model()
    assert taken.lm.name == f"{DEFAULTS[first].name}/{DEFAULTS[first].default_model}"
    assert taken.reason == f"{DEFAULTS[first].key_variables[-1]} is set"


async def test_a_key_whose_sdk_is_missing_is_passed_over_and_the_reason_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "anthropic", "google.genai")
    for name in ("ANTHROPIC_API_KEY", "GEMINI_API_KEY", "OPENROUTER_API_KEY"):
        monkeypatch.setenv(name, "some-key")
    taken = await default_model()
    assert taken.lm.name == "openrouter/openai/gpt-5-mini"
    assert taken.reason == (
        "OPENROUTER_API_KEY is set; ANTHROPIC_API_KEY is set, but anthropic is not installed: pip install 'arlm[anthropic]'; "
        "GEMINI_API_KEY is set, but google-genai is not installed: pip install 'arlm[gemini]'"
    )


async def test_where_nothing_else_is_found_the_error_says_how_to_install_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "anthropic")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-very-secret-key")
    with pytest.raises(ConfigError, match=r"ANTHROPIC_API_KEY is set, but .* pip install 'arlm\[anthropic\]'; set one of") as caught:
        await default_model()
    assert "secret" not in str(caught.value)


async def test_a_key_that_cannot_be_used_is_an_error_rather_than_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\nsecret")
    monkeypatch.setenv("OPENROUTER_API_KEY", "key")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        await default_model()


async def test_with_a_key_no_server_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def reply(head: str) -> bytes:
        asked.append(head)
        return listing("llama")

    async with answering(reply) as at:
        monkeypatch.setenv("OLLAMA_HOST", at)
        monkeypatch.setenv("OPENAI_API_KEY", "key")
        assert (await default_model()).lm.name == "openai/gpt-5-mini"
    assert asked == []


# -- a server of one's own ----------------------------------------------------------------------------------------------


async def test_without_a_key_the_first_model_of_a_server_that_answers_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedProvider(Script(models=("meta/llama", "second"))) as provider:
        monkeypatch.setenv("VLLM_BASE_URL", provider.url)
        taken = await default_model()
    assert taken.lm.name == "vllm/meta/llama"
    assert taken.reason == f"it answers at {provider.url.removeprefix('http://').removesuffix('/v1')}"


async def test_ollama_comes_before_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedProvider(Script(models=("from-ollama",))) as ollama, ScriptedProvider(Script(models=("from-vllm",))) as vllm:
        monkeypatch.setenv("OLLAMA_HOST", ollama.root)
        monkeypatch.setenv("VLLM_BASE_URL", vllm.url)
        assert (await default_model()).lm.name == "ollama/from-ollama"


async def test_models_that_do_not_chat_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("nomic-embed-text:latest", "all-minilm:33m", "bge-m3", "mxbai-embed-large", "qwen3:8b")
    async with ScriptedProvider(Script(models=names)) as ollama, ScriptedProvider(Script(models=("from-vllm",))) as vllm:
        monkeypatch.setenv("OLLAMA_HOST", ollama.root)
        monkeypatch.setenv("VLLM_BASE_URL", vllm.url)
        assert (await default_model()).lm.name == "ollama/qwen3:8b"
        await ollama.configure({"models": names[:4]})
        assert (await default_model()).lm.name == "vllm/from-vllm"


async def test_servers_without_a_model_that_chats_are_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedProvider(Script(models=())) as ollama:
        monkeypatch.setenv("OLLAMA_HOST", ollama.root)
        with pytest.raises(ConfigError, match=r"127.0.0.1:\d+ has no model that can chat; set one of .*start a server \(ollama, vllm\)"):
            await default_model()


async def test_both_servers_are_asked_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "SERVER_S", 20.0)
    both = asyncio.Barrier(2)

    async def reply(_head: str) -> bytes:
        await both.wait()  # neither is answered before the other was asked
        return listing("llama")

    async with answering(reply) as ollama, answering(reply) as vllm:
        monkeypatch.setenv("OLLAMA_HOST", ollama)
        monkeypatch.setenv("VLLM_BASE_URL", f"http://{vllm}/v1")
        assert [server.models for server in await ask_servers()] == [("llama",), ("llama",)]


async def test_a_server_that_says_nothing_is_left_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "SERVER_S", 0.05)

    async def reply(_head: str) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    async with answering(reply) as at:
        monkeypatch.setenv("OLLAMA_HOST", at)
        server = await ask_server(ROWS["ollama"])
    assert not server.answers
    assert server.problem == f"nothing answers at {at}; start it, or set OLLAMA_HOST"


@pytest.mark.parametrize(
    "reply",
    [
        said(b"<html>"),
        said(b"[]"),
        said(b'{"models": []}'),
        said(b'{"data": [7]}'),
        said(b'{"data": "llama"}'),
        said(b"[" * 100_000),
        said(b"\xff\xfe"),
        said(b'{"error": "no"}', status=404),
        said(b"", status=302, more="Location: http://127.0.0.1:9/\r\n"),
        said(b"x" * (servers.MOST_BYTES + 70_000)),
        b"HTTP/1.1 200 Said\r\nContent-Length: 100\r\n\r\n{",
        b"220 mail.example.com ESMTP\r\n",
        b"",
    ],
    ids=str,
)
async def test_whatever_else_answers_there_is_no_server_and_no_error(monkeypatch: pytest.MonkeyPatch, reply: bytes) -> None:
    async def answer(_head: str) -> bytes:
        return reply

    async with answering(answer) as at:
        monkeypatch.setenv("VLLM_BASE_URL", f"http://{at}/v1")
        server = await ask_server(ROWS["vllm"])
        assert not server.answers
        assert server.models == ()
        assert re.search(f"(something else|nothing) answers at {at}; start it, or set VLLM_BASE_URL", server.problem or "")
        with pytest.raises(ConfigError):
            await default_model()


async def test_a_base_url_that_is_none_is_no_error_of_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_BASE_URL", "nonsense")
    assert "VLLM_BASE_URL" in ((await ask_server(ROWS["vllm"])).problem or "")


async def test_servers_are_asked_directly_and_not_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with ScriptedProvider(Script(models=("llama",))) as provider:
        monkeypatch.setenv("VLLM_BASE_URL", provider.url)
        assert (await ask_server(ROWS["vllm"])).models == ("llama",)


async def test_a_key_goes_only_where_its_owner_said_that_the_server_is(monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[str] = []

    async def reply(head: str) -> bytes:
        heads.append(head)
        return listing("llama")

    for row in ROWS.values():
        for name in row.key_variables:
            monkeypatch.setenv(name, f"key-of-{row.name}")
    async with answering(reply) as at:
        monkeypatch.delenv("VLLM_BASE_URL")
        await ask_server(replace(ROWS["vllm"], base_url=f"http://{at}/v1"))  # what happens to listen on the usual port
        monkeypatch.setenv("VLLM_BASE_URL", f"http://{at}/v1")
        await ask_server(ROWS["vllm"])
        monkeypatch.setenv("OLLAMA_HOST", at)
        await ask_server(ROWS["ollama"])
    assert [re.findall("key-of-.*", head.strip()) for head in heads] == [[], ["key-of-vllm\r"], []]


async def test_a_server_that_wants_a_key_is_not_taken_and_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedProvider(Script(models=("llama",), key="vllm-secret")) as provider:
        monkeypatch.setenv("VLLM_BASE_URL", provider.url)
        with pytest.raises(ConfigError, match="wants a key: set VLLM_API_KEY and VLLM_BASE_URL"):
            await default_model()
        monkeypatch.setenv("VLLM_API_KEY", "wrong-secret")
        with pytest.raises(ConfigError, match="does not accept the key in VLLM_API_KEY") as caught:
            await default_model()
        assert "wrong-secret" not in str(caught.value)
        monkeypatch.setenv("VLLM_API_KEY", "vllm-secret")
        assert (await default_model()).lm.name == "vllm/llama"


async def test_a_cancelled_choice_closes_its_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "SERVER_S", 20.0)
    asked, left = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        left.set()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        choosing = asyncio.ensure_future(default_model())
        await asked.wait()
        choosing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await choosing
        await left.wait()


# -- in a run -----------------------------------------------------------------------------------------------------------


async def test_a_run_without_a_model_names_the_one_it_took_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[arlm.events.AnyEvent] = []
    async with ScriptedProvider(Script(turns=(ANSWER,), models=("llama",))) as provider:
        monkeypatch.setenv("OLLAMA_HOST", provider.root)
        result = await arlm.run("What?", context="c", on_event=events.append)
        assert result.answer == "forty-two"
        assert list(result.usage.models) == ["ollama/llama"]
        await arlm.run("What?", context="c", model="ollama/other", on_event=events.append)
    began = [event for event in events if isinstance(event, arlm.events.RunStarted)]
    assert [event.model for event in began] == ["ollama/llama", "ollama/other"]
    assert [event.model_reason for event in began] == [f"it answers at {provider.root.removeprefix('http://')}", None]


async def test_a_run_without_any_model_ends_before_anything_is_started() -> None:
    with pytest.raises(ConfigError, match="no model was given and no key was found: set one of OPENAI_API_KEY, ANTHROPIC_API_KEY"):
        await arlm.run("What?", context="c")
