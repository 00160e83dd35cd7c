"""`arlm models`, and what the terminal says of a model that nobody named."""

import asyncio
import importlib
import json
import re
import signal
import socket
from pathlib import Path

import pytest

from arlm.cli import listing
from arlm.clients.rows import ROWS
from arlm.testing import Script, ScriptedProvider
from commandline import ANSWER, NO_SERVERS, arlm, clean_environment, start

KEY = "sk-scripted-and-never-shown-0123456789"
CLOSED = "http://127.0.0.1:9"
REMOTE = [row.name for row in ROWS.values() if not row.local]


def everywhere(root, key=KEY):
    """Variables that lead every provider to one server."""
    return {
        **{name: key for row in ROWS.values() for name in row.key_variables[:1]},
        **{row.base_url_variable: f"{root}/v1" for row in ROWS.values() if row.dialect in ("openai", "portkey")},
        **dict.fromkeys(("ANTHROPIC_BASE_URL", "GOOGLE_GEMINI_BASE_URL", "AZURE_OPENAI_ENDPOINT", "OLLAMA_HOST"), root),
        "OPENAI_API_VERSION": "2024-10-21",
    }


@pytest.fixture
def sdk(request):
    """Skip where the provider's SDK is not installed: the extras are optional for tests too."""
    if ROWS[request.param].extra:
        pytest.importorskip({"anthropic": "anthropic", "gemini": "google.genai", "portkey": "portkey_ai"}[request.param])
    return request.param


@pytest.fixture
def at_home(monkeypatch):
    """This process's environment, as a command's would be."""

    def set_up(**variables):
        for name in list(importlib.import_module("os").environ):
            if name not in clean_environment():
                monkeypatch.delenv(name)
        for name, value in {**NO_SERVERS, **variables}.items():
            monkeypatch.setenv(name, value)

    return set_up


# -- a model that nobody named ------------------------------------------------------------------------------------------


async def test_the_terminal_says_which_model_was_taken_and_why(provider):
    done = await arlm("run", "What?", OPENAI_API_KEY=KEY, OPENAI_BASE_URL=provider.url)
    assert (done.code, done.out) == (0, "forty-two\n")
    assert done.err.startswith("model: openai/gpt-5-mini (OPENAI_API_KEY is set; name another with --model)\nopenai/gpt-5-mini; context:")


async def test_a_server_of_ones_own_is_taken_and_named(provider):
    await provider.configure({"turns": [ANSWER], "models": ["all-minilm", "qwen3:8b"]})
    done = await arlm("run", "What?", OLLAMA_HOST=provider.root)
    assert (done.code, done.out) == (0, "forty-two\n")
    at = provider.root.removeprefix("http://")
    assert f"model: ollama/qwen3:8b (it answers at {at}; name another with --model)\n" in done.err


async def test_a_model_that_was_named_is_not_explained_and_quiet_says_nothing(provider):
    found = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": provider.url}
    named, quiet = await asyncio.gather(arlm("run", "What?", "-m", "openai/x", **found), arlm("run", "What?", "-q", **found))
    assert "name another" not in named.err
    assert (quiet.code, quiet.out, quiet.err) == (0, "forty-two\n", "")


# -- the providers ------------------------------------------------------------------------------------------------------


def test_every_provider_is_listed_with_what_it_needs(here):
    done = here("models")
    assert (done.code, done.err) == (0, "")
    for row in ROWS.values():
        assert re.search(rf"^--  {row.name} ", done.out, re.MULTILINE)
        assert all(name in done.out for name in row.all_variables)
    assert re.search(r"^--  openai +needs a key: set OPENAI_API_KEY$", done.out, re.MULTILINE)
    assert re.search(
        r"^--  ollama +set: OLLAMA_HOST; nothing answers at 127.0.0.1:9; start it, or set OLLAMA_HOST$", done.out, re.MULTILINE
    )
    assert re.search(r"^ok  demo ", done.out, re.MULTILINE)
    assert "Without --model: none can be taken." in done.out


def test_variables_that_are_set_are_named_and_their_values_are_not(here, monkeypatch):
    for row in ROWS.values():
        for name in row.key_variables:
            monkeypatch.setenv(name, f"secret-of-{name}")
    monkeypatch.setenv("PORTKEY_CONFIG", "secret-config")
    for words in ((), ("--json",)):
        done = here("models", *words)
        assert done.code == 0
        assert "secret" not in done.out + done.err
    told = {provider["name"]: provider for provider in json.loads(done.out)["providers"]}
    assert told["openai"]["variables"] == {
        "OPENAI_API_KEY": True, "OPENAI_BASE_URL": False, "OPENAI_ORG_ID": False, "OPENAI_PROJECT_ID": False,
    }  # fmt: skip
    assert told["azure"]["problem"] == "needs its base URL: set AZURE_OPENAI_ENDPOINT"
    assert json.loads(done.out)["default"] == {"model": "openai/gpt-5-mini", "reason": "OPENAI_API_KEY is set"}


def test_azure_says_that_its_version_is_missing(here, monkeypatch):
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", CLOSED)
    assert re.search(r"^--  azure .*needs an API version: set OPENAI_API_VERSION", here("models").out, re.MULTILINE)


def test_a_missing_sdk_is_named_with_what_installs_it(here, monkeypatch):
    monkeypatch.setitem(importlib.import_module("sys").modules, "anthropic", None)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    done = here("models", "--json")
    (anthropic,) = [provider for provider in json.loads(done.out)["providers"] if provider["name"] == "anthropic"]
    assert (anthropic["usable"], anthropic["version"], anthropic["install"]) == (False, None, "pip install 'arlm[anthropic]'")
    assert "anthropic is not installed: pip install 'arlm[anthropic]'" in anthropic["problem"]
    assert "pip install 'arlm[anthropic]'" in json.loads(done.out)["default"]["reason"]


async def test_servers_of_ones_own_are_asked_without_check_and_others_are_not(provider):
    await provider.configure({"models": ["llama", "qwen"]})
    done = await arlm("models", "--json", **{**everywhere(CLOSED), "OLLAMA_HOST": provider.root})
    told = {provider["name"]: provider for provider in json.loads(done.out)["providers"]}
    assert done.code == 0
    assert (told["ollama"]["reach"], told["ollama"]["models"]) == ("reachable", ["llama", "qwen"])
    assert told["vllm"]["reach"] == "not reachable"
    assert {told[name]["reach"] for name in REMOTE} == {None}


async def test_check_says_who_is_reachable_and_how_many_models_there_are(provider):
    await provider.configure({"models": ["one", "two", "three"], "key": KEY})
    found = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": provider.url, "OPENROUTER_API_KEY": KEY, "OPENROUTER_BASE_URL": provider.url}
    done = await arlm("models", "--check", **found)
    assert done.code == 0
    assert re.search(r"^ok  openai +set: OPENAI_API_KEY, OPENAI_BASE_URL; reachable, 3 models$", done.out, re.MULTILINE)
    assert re.search(r"^ok  openrouter .*; reachable, 3 models$", done.out, re.MULTILINE)
    assert re.search(r"^--  vercel +needs a key: set AI_GATEWAY_API_KEY$", done.out, re.MULTILINE)


async def test_check_tells_a_refused_key_from_a_provider_that_is_not_there(provider):
    await provider.configure({"key": "another"})
    found = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": provider.url, "OPENROUTER_API_KEY": KEY, "OPENROUTER_BASE_URL": CLOSED}
    done = await arlm("models", "--check", **found)
    assert done.code == 3
    assert re.search(r"^!!  openai .*key refused: .* does not accept the key in OPENAI_API_KEY", done.out, re.MULTILINE)
    assert re.search(rf"^!!  openrouter .*not reachable: {CLOSED}", done.out, re.MULTILINE)
    assert KEY not in done.out + done.err


async def test_the_command_is_left_by_ctrl_c_at_once():
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        writer.close()

    asked = asyncio.Event()
    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        process = await start("models", "--check", quick=True, OPENAI_API_KEY=KEY, OPENAI_BASE_URL=url)
        await asked.wait()
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"arlm: interrupted\n")


def test_the_document_has_every_provider_with_its_variables_its_sdk_and_its_default_model():
    page = (Path(__file__).parents[2] / "docs" / "providers.md").read_text("utf-8")
    for row in ROWS.values():
        (line,) = re.findall(rf"^\| `{row.name}` \|.*$", page, re.MULTILINE)
        name, sdk, variables, model, _ = [cell.strip() for cell in line.strip("| ").split(" | ")]
        assert sdk == (f"{row.package}, `{row.extra}`" if row.extra else row.package)
        assert set(re.findall(r"`(\w+)`", variables)) == set(row.all_variables)
        assert model.strip("`").startswith(f"{name.strip('`')}/{row.default_model or ''}")
    named = re.search(r"^1\. The first of these .*?: (.*?), each", page, re.MULTILINE | re.DOTALL)
    assert re.findall(r"`(\w+)`", named[1]) == [row.name for row in ROWS.values() if row.default_model]


# -- the models of one --------------------------------------------------------------------------------------------------


async def test_the_models_of_a_provider_are_printed_with_their_prices(provider):
    await provider.configure({"models": ["made-up", "gpt-4o-mini"]})
    found = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": provider.url}
    text, told = await asyncio.gather(arlm("models", "openai", **found), arlm("models", "OpenAI", "--json", **found))
    assert text.code == 0
    assert [line.split() for line in text.out.splitlines()[1:]] == [["openai/gpt-4o-mini", "$0.15", "$0.60"], ["openai/made-up", "?", "?"]]
    assert json.loads(told.out)["models"] == [
        {"name": "openai/gpt-4o-mini", "input_usd_per_million": 0.15, "output_usd_per_million": 0.6},
        {"name": "openai/made-up", "input_usd_per_million": None, "output_usd_per_million": None},
    ]


async def test_the_models_of_a_server_of_ones_own_are_printed(provider):
    await provider.configure({"models": ["qwen3:8b", "all-minilm"]})
    done = await arlm("models", "ollama", OLLAMA_HOST=provider.root)
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()[1:]] == ["ollama/qwen3:8b", "ollama/all-minilm"]


def test_the_demo_has_one_model(here):
    assert "demo/demo" in here("models", "demo").out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("opnai",), 2, "unknown provider 'opnai'; did you mean 'openai'?; there is: openai, anthropic"),
        (("openrouter",), 2, "openrouter: needs a key: set OPENROUTER_API_KEY"),
        (("ollama",), 3, "ollama: nothing answers at 127.0.0.1:9; start it, or set OLLAMA_HOST"),
        (("openai",), 3, f"openai: {CLOSED}/v1 ("),
    ],
)
def test_what_cannot_be_listed_has_the_exit_code_of_its_reason(here, monkeypatch, words, code, said):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{CLOSED}/v1")
    done = here("models", *words, "--json")
    assert done.code == code
    assert done.err.startswith(f"arlm: {said}")
    assert json.loads(done.out)["error"]["exit_code"] == code
    assert KEY not in done.out + done.err


# -- how they are asked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sdk", REMOTE, indirect=True)
async def test_each_provider_is_asked_through_its_sdk(at_home, sdk):
    async with ScriptedProvider(Script(models=("m-2", "m-1"), key=KEY)) as provider:
        at_home(**everywhere(provider.root))
        assert await listing.ask(sdk) == listing.Listing(reach="reachable", models=("m-1", "m-2"))


@pytest.mark.parametrize("sdk", REMOTE, indirect=True)
async def test_a_refused_key_is_told_as_such_and_not_shown(at_home, sdk):
    async with ScriptedProvider(Script(key="another")) as provider:
        at_home(**everywhere(provider.root))
        told = await listing.ask(sdk)
    assert told.reach == "key refused"
    assert ROWS[sdk].key_variables[0] in told.text
    assert KEY[:12] not in told.text


@pytest.mark.parametrize("sdk", REMOTE, indirect=True)
async def test_a_provider_that_does_not_answer_is_not_reachable(at_home, monkeypatch, sdk):
    monkeypatch.setattr(listing, "LIST_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        root = f"http://127.0.0.1:{silent.getsockname()[1]}"
        at_home(**everywhere(root))
        told = await listing.ask(sdk)
    assert (told.reach, "no reply from http://127.0.0.1" in told.text) == ("not reachable", True)
    at_home(**everywhere(CLOSED))
    assert (await listing.ask(sdk)).reach == "not reachable"


async def served(at_home, reply, ask):
    """What ``ask()`` gives while a server answers with these bytes, and the heads that it was sent."""
    heads = []

    async def serve(reader, writer):
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode().lower())
        writer.write(reply)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        root = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        at_home(**everywhere(root), OPENAI_ORG_ID="org-secret", OPENAI_CUSTOM_HEADERS="X-Mine: custom-secret")
        return await ask(), heads


def said(status, body, more=""):
    return f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}\r\n{body}".encode()


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (said(404, '{"error": {"message": "no such thing"}}'), r"status 404 \(.*no such thing"),
        (said(500, "oh"), "status 500"),
        (said(302, "", f"Location: {CLOSED}/\r\n"), "status 302"),
        (said(200, "<html>"), "is no list of models"),
        (said(200, '{"data": 7}'), "is no list of models"),
    ],
    ids=["404", "500", "a redirect", "a web page", "other JSON"],
)
async def test_an_answer_that_is_no_list_is_an_error_of_its_own(at_home, reply, text):
    told, heads = await served(at_home, reply, lambda: listing.ask("openai"))
    assert told.reach == "error"
    assert re.search(text, told.text)
    assert len(heads) == 1  # neither tried again nor followed


async def test_what_is_meant_for_openai_goes_to_nobody_else(at_home):
    for name, given in (("openai", True), ("openrouter", False), ("vercel", False), ("portkey", False)):
        if ROWS[name].extra and importlib.util.find_spec("portkey_ai") is None:
            continue
        told, (head,) = await served(at_home, said(200, '{"data": []}'), lambda name=name: listing.ask(name))
        assert told.reach == "reachable"
        assert head.startswith("get /v1/models ")
        assert ("org-secret" in head, "custom-secret" in head) == (given, given)
        assert ("authorization: bearer" in head) == (name != "portkey")


async def test_all_are_asked_at_the_same_time(at_home):
    both = asyncio.Barrier(3)

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        await both.wait()  # nobody is answered before all were asked
        writer.write(said(200, '{"data": [{"id": "m", "object": "model", "created": 1, "owned_by": "x"}]}', "Connection: close\r\n"))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        at_home(**everywhere(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
        told = await listing.ask_all(["openai", "openrouter", "vercel"])
    assert {name: it.words() for name, it in told.items()} == dict.fromkeys(("openai", "openrouter", "vercel"), "reachable, 1 model")
