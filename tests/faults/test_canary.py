"""A key is never seen again: not in frames, logs, events, errors, results or on the terminal, whatever fails, and whoever repeats it."""

import asyncio
import base64
import functools
import json
import logging
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from canary import Canary

import arlm
import commandline
from arlm.clients import retry
from arlm.clients.openai import OpenAILM
from arlm.clients.resolve import resolve_model
from arlm.environments.process import ProcessREPL
from arlm.events import AnyEvent
from arlm.testing.provider import ScriptedProvider
from arlm.testing.provider_script import Script
from arlm.testing.scripted import ScriptedLM
from arlm.testing.tap import Tap

FINAL = "```repl\nanswer.update(content='done', ready=True)\n```"
CLOSED = "http://127.0.0.1:9/v1"  # the discard port, where nothing listens


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Canary:
    """The key is in the environment, all loggers talk, and retries do not wait."""
    canary = Canary()
    for name in ("OPENAI_API_KEY", "OPENROUTER_API_KEY", "AZURE_OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, canary.key)
    monkeypatch.setattr(retry, "RetryPolicy", functools.partial(retry.RetryPolicy, first_wait=0.001, attempts=3))
    caplog.set_level(logging.DEBUG)
    return canary


def test_the_search_finds_a_key_in_every_form_and_half_of_one(canary: Canary) -> None:
    hidden = RuntimeError("outer")
    hidden.__context__ = ValueError("inner", {"header": canary.key})
    hidden.__suppress_context__ = True
    forms: list[object] = [
        f"Incorrect API key provided: {canary.key}.",
        canary.secret[5:25],
        canary.key.encode(),
        {"a": [canary.key]},
        hidden,
        base64.b64encode(f"user:{canary.key}".encode()).decode(),
        canary.key.encode().hex(),
        canary.key[::-1],
    ]
    for form in forms:
        with pytest.raises(AssertionError, match="the key is in a form"):
            canary.look("a form", form)
    canary.look("nothing", "sk-canary-*** and all else")


# -- a provider that repeats what it is told ---------------------------------------------------------------------------------------------


def reply(status: int, body: str | bytes, kind: str = "application/json", *headers: str, cut: int = 0) -> bytes:
    body = body.encode() if isinstance(body, str) else body
    head = [f"HTTP/1.1 {status} Said", f"Content-Type: {kind}", f"Content-Length: {len(body) + cut}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


def told(message: object) -> str:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": None}})


# Each is given the request's head, with its Authorization header, and the bare key.
ECHOES: dict[str, Callable[[str, str], bytes]] = {
    **{
        f"{code} in its message": lambda head, _, code=code: reply(code, told(head))
        for code in (400, 401, 403, 404, 413, 422, 429, 500, 529)
    },
    "401 as OpenAI words it": lambda _, key: reply(401, told(f"Incorrect API key provided: {key}. You can find your API key at …")),
    "400 in a long message": lambda _, key: reply(400, told("x" * 480 + key + "y" * 100)),
    "400 in a message that is no text": lambda head, _: reply(400, told({"headers": {"authorization": head}})),
    "400 where a word was expected": lambda _, key: reply(400, json.dumps({"error": key})),
    "400 as plain text": lambda head, _: reply(400, head, "text/plain"),
    "400 as plain text, cut in the key": lambda _, key: reply(400, "x" * 60 + key, "text/plain"),
    "400 as a page": lambda head, _: reply(400, f"<html><body>{head}</body></html>", "text/html"),
    "500 that is no text": lambda head, _: reply(500, b"\xff\xfe" + head.encode(), "application/octet-stream"),
    "302 to it": lambda _, key: reply(302, "", "text/plain", f"Location: http://127.0.0.1:9/?key={key}"),
    "200 and no JSON": lambda head, _: reply(200, head),
    "200 and no text": lambda head, _: reply(200, b"\xff\xfe" + head.encode()),
    "200 and JSON that is cut": lambda _, key: reply(200, '{"choices": [{"message": {"content": "' + key),
    "200 and another JSON": lambda _, key: reply(200, json.dumps({"choices": key, "key": key})),
    "200 and an error": lambda head, _: reply(200, told(head)),
    "200 and a refusal": lambda _, key: reply(200, json.dumps({"choices": [{"message": {"refusal": f"not with {key}"}}]})),
    "200 and a body that is cut off": lambda head, _: reply(200, head, cut=1000),
    "no HTTP": lambda head, _: head.encode(),
    "a head that is no head": lambda head, _: b"HTTP/1.1 200 OK\r\n\x00" + head.encode() + b"\r\n\r\n",
    "a status that is none": lambda _, key: f"HTTP/1.1 {key} OK\r\n\r\n".encode(),
    "a length that is none": lambda _, key: f"HTTP/1.1 200 OK\r\nContent-Length: {key}\r\n\r\n".encode(),
    "a chunk that is none": lambda _, key: f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{key}\r\n".encode(),
    "an encoding that is none": lambda head, _: reply(200, head, "text/plain", "Content-Encoding: gzip"),
    "a header too long": lambda head, key: reply(200, "", "text/plain", f"X: {key * 400}"),
}


@asynccontextmanager
async def echoing(canary: Canary, echo: Callable[[str, str], bytes]) -> AsyncIterator[str]:
    """A provider that answers each request in this way; yields its base URL. That the key was in every request is checked at the end."""
    heads: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(echo(heads[-1].replace("\r\n", " "), canary.key))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    assert heads
    assert all(canary.key in head for head in heads)


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
async def test_no_error_of_a_provider_that_repeats_the_key_has_it(
    echo: Callable[[str, str], bytes], canary: Canary, caplog: pytest.LogCaptureFixture
) -> None:
    async with echoing(canary, echo) as url:
        lm = OpenAILM("m", base_url=url, timeout=20)
        with pytest.raises(arlm.ProviderError) as caught:
            await lm.acompletion("x")
    canary.look("the error", caught.value)
    canary.look("the model's repr", lm)
    canary.look("the logs", caplog.text)
    assert canary.seen["the error"] > 100


PROXIED = {"its password": "http://user:{key}@127.0.0.1:9", "its name": "http://{key}@127.0.0.1:9"}


@pytest.mark.parametrize("proxy", PROXIED.values(), ids=PROXIED)
async def test_no_error_of_a_proxy_has_its_password(
    proxy: str, canary: Canary, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.format(key=canary.key))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(arlm.ConnectionFailed) as caught:
        await OpenAILM("m", base_url="http://provider.invalid/v1", timeout=20).acompletion("x")
    canary.look("the error", caught.value)
    canary.look("the logs", caplog.text)


URLS = (
    "ftp://user:{key}@host/v1",
    "http://user:{key}@host/v1",
    "http:///{key}@",
    "user:{key}@host",
    "ftp://host/v1?key={key}",
    "x://[{key}",
)


@pytest.mark.parametrize("url", URLS)
def test_no_error_about_a_base_url_has_what_may_be_a_key_in_it(url: str, canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url.format(key=canary.key))
    with pytest.raises(arlm.ConfigError) as caught:
        resolve_model("openai/m")
    canary.look("the error", caught.value)


async def test_no_error_of_a_call_shows_a_key_in_the_query_of_its_url(canary: Canary) -> None:
    with pytest.raises(arlm.ConnectionFailed, match=re.escape("http://127.0.0.1:9/v1")) as caught:
        await OpenAILM("m", base_url=f"{CLOSED}?key={canary.key}", api_key="sk-other").acompletion("x")
    canary.look("the error", caught.value)


# -- whole runs --------------------------------------------------------------------------------------------------------------------------

SNOOP = """
import gc, glob, os, subprocess, sys
found = [dict(os.environ), sys.argv, subprocess.run(["env"], capture_output=True, text=True).stdout]
for path in ["/proc/self/environ", f"/proc/{os.getppid()}/environ", *glob.glob("/proc/[0-9]*/environ"), *glob.glob("/proc/*/cmdline")]:
    try:
        found.append(open(path, "rb").read())
    except OSError as error:
        found.append(repr(error))
for thing in gc.get_objects():
    if isinstance(thing, (str, bytes, dict)) and "canary" in repr(thing)[:10_000]:
        found.append(repr(thing)[:1000])
print(found)
answer.update(content=repr(found), ready=True)
"""

CELLS: dict[str, str] = {
    "sub-calls": "r = llm_query_batched(['a', 'b'])\nprint(r)",
    "a snoop": SNOOP,
    "a tool that fails": "fetch('x')",
    "a tool that is called wrongly": "fetch(1, 2, 3)",
    "an unknown model": "print(llm_query('x', model='openai/other'))",
    "an error": "1 / 0",
    "a cell without end": "while True: pass",
    "a worker that dies": "import os\nos._exit(3)",
}


def fetch(url: str) -> str:
    """A tool that has the key at hand when it fails."""
    key = os.environ["OPENAI_API_KEY"]
    headers = {"Authorization": f"Bearer {key}"}
    raise LookupError(f"nothing at {url} with {len(headers)} headers")


class Witness:
    """A run, with everything of it that somebody may see."""

    def __init__(self, canary: Canary, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], folder: Path) -> None:
        self.canary = canary
        self.environment = Tap(ProcessREPL())
        self.events: list[AnyEvent] = []
        self._caplog = caplog
        self._capfd = capfd
        self._folder = folder

    async def run(self, **options: object) -> arlm.Result | BaseException:
        """Run, and look everywhere."""
        asyncio.get_running_loop().set_debug(True)
        asyncio.get_running_loop().slow_callback_duration = 0.0  # every step is logged, with the task's repr

        def on_event(event: AnyEvent) -> None:
            self.events.append(event)
            if event.type == "run_started":
                raise ValueError("an on_event that fails")

        rlm = arlm.RLM(environment=self.environment, log_dir=self._folder, on_event=on_event, tools={"fetch": fetch}, **options)  # type: ignore[arg-type]
        end: arlm.Result | BaseException
        try:
            end = await rlm.run("q", context="c" * 100_000)
        except Exception as error:
            end = error
        self._look(rlm, end)
        return end

    def _look(self, rlm: arlm.RLM, end: arlm.Result | BaseException) -> None:
        look = self.canary.look
        for stream in self.environment.heard:
            look("frames", bytes(stream))
        for message in self.environment.messages:
            look("messages", message)
        for event in self.events:
            look("events", event)
            look("events", event.to_dict())
        for path in self._folder.iterdir():
            look("the log", path.read_bytes())
        look("the end", end)
        if isinstance(end, arlm.Result):
            look("the trajectory", end.trajectory())
            look("the usage", end.usage)
        elif isinstance(end, arlm.LimitError) and end.partial is not None:
            look("the trajectory", end.partial.trajectory())
        look("the RLM's repr", rlm)
        look("the logs", self._caplog.text)
        look("the logs", repr([record.__dict__ for record in self._caplog.records]))
        printed = self._capfd.readouterr()
        look("the terminal", printed.out + printed.err)


@pytest.fixture
def witness(canary: Canary, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Witness:
    return Witness(canary, caplog, capfd, tmp_path)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
async def test_no_run_shows_the_key_whatever_its_cells_do(cell: str, witness: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [f"```repl\n{cell}\n```", FINAL]
    async with ScriptedProvider(Script(turns=turns, key=witness.canary.key)) as provider:
        monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
        end = await witness.run(model="openai/m", cell_timeout=0.3 if "while" in cell else 30)
        assert (await provider.stats())["rejected"] == 0  # the key did go out
    assert isinstance(end, arlm.Result), end
    assert min(witness.canary.seen[where] for where in ("frames", "messages", "events", "the log", "the logs", "the trajectory")) > 100


RUNS: dict[str, Callable[[str, str], bytes]] = {
    name: ECHOES[name]
    for name in (
        "401 as OpenAI words it",
        "400 as plain text, cut in the key",
        "200 and no text",
        "a length that is none",
        "200 and an error",
    )
}


@pytest.mark.parametrize("echo", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("who", ["the root", "a sub-call"])
async def test_no_run_that_fails_shows_the_key(who: str, echo: Callable[[str, str], bytes], witness: Witness) -> None:
    root = ScriptedLM(
        ["```repl\nr = llm_query_batched(['a', 'b'])\nprint(r)\n```", "```repl\nanswer.update(content=r[0], ready=True)\n```"]
    )
    async with echoing(witness.canary, echo) as url:
        failing = OpenAILM("m", base_url=url, timeout=20)
        end = await witness.run(**({"model": failing} if who == "the root" else {"model": root, "sub_model": failing}))
    if who == "the root":
        assert isinstance(end, arlm.ProviderError)
    else:
        assert isinstance(end, arlm.Result)
        assert end.answer.startswith("Error: ")


async def test_no_run_that_reaches_nobody_or_runs_out_of_time_shows_the_key(witness: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", CLOSED)
    assert isinstance(await witness.run(model="openai/m"), arlm.ConnectionFailed)
    async with ScriptedProvider(Script(faults=["stall"])) as provider:
        monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
        assert isinstance(await witness.run(model="openai/m", timeout=0.3), arlm.RunTimeout)


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["for people", "JSON"])
async def test_the_command_that_fails_shows_the_key_nowhere(form: tuple[str, ...], canary: Canary) -> None:
    async with echoing(canary, ECHOES["401 as OpenAI words it"]) as url:
        variables = {"OPENAI_API_KEY": canary.key, "OPENAI_BASE_URL": url}
        done = await commandline.arlm("run", "q", "--model", "openai/m", *form, **variables)
    canary.look("the terminal", done.out + done.err)
    assert done.code == 3, done


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["for people", "JSON"])
async def test_the_doctor_says_that_there_is_a_key_and_not_which(form: tuple[str, ...], canary: Canary) -> None:
    done = await commandline.arlm("doctor", *form, OPENAI_API_KEY=canary.key, OPENAI_BASE_URL=f"{CLOSED}?key={canary.key}")
    canary.look("the terminal", done.out + done.err)
    assert "OPENAI_API_KEY" in done.out
    assert done.code == 0, done
