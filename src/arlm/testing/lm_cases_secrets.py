"""Cases about the key: it reaches the provider and nobody else. Not errors, nor logs, nor events, nor what objects show of themselves."""

# ruff: noqa: D103 - the name of a case is its claim

from __future__ import annotations

import json
import logging
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ProviderError
from ..rlm import run
from .lm_bench import KEY, failure_of
from .lm_canned import Canned
from .lm_case import Cases

if TYPE_CHECKING:
    from ..clients.base import BaseLM
    from .lm_bench import Bench

CASES = Cases()
case = CASES.case

PIECE = 12  # characters of a key that may not be seen together
SOON = 0.05  # seconds


def shown(text: str) -> list[str]:
    """The pieces of the key that a text shows."""
    return [piece for piece in (KEY[start : start + PIECE] for start in range(len(KEY) - PIECE + 1)) if piece in text]


def is_silent(error: BaseException) -> None:
    """Neither the error nor one that it came from shows the key."""
    for text in (str(error), repr(error), repr(error.__dict__), *traceback.format_exception(error)):
        assert not shown(text), text


def is_silent_all_the_way(error: BaseException) -> None:
    """Nor does a variable of any function that it came through, as tools show them that report errors."""
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    for line in told.format():
        assert not shown(line), line


@contextmanager
def listening() -> Iterator[list[str]]:
    """All that anybody logs in the block, as text with tracebacks, at every level."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(f"{self.format(record)} {record.__dict__!r}")

    ear, root = Ear(level=logging.NOTSET), logging.getLogger()
    names = ("openai", "anthropic", "google_genai", "portkey_ai", "aiohttp", "asyncio", "httpx", "httpx2", "httpcore", "httpcore2", "arlm")
    loggers = [root, *map(logging.getLogger, names)]
    before = [logger.level for logger in loggers]
    root.addHandler(ear)
    try:
        for logger in loggers:
            logger.setLevel(logging.DEBUG)
        yield heard
    finally:
        root.removeHandler(ear)
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@case()
async def the_key_is_not_in_what_objects_show_of_themselves(bench: Bench) -> None:
    await bench.ask()
    for text in (repr(bench.lm), str(bench.lm), repr(bench.lm.rate_key), bench.lm.name, repr(bench.lm.get_usage_summary())):
        assert not shown(text)


@case("server")
async def the_key_is_not_in_errors_of_a_provider(bench: Bench) -> None:
    faults = ["401", "403", "413", "429", "500", "503", "529", "reset", "cut", "invalid_json", "html"]
    await bench.play(faults=faults)
    for _ in faults:
        is_silent(await failure_of(bench.lm.acompletion("x")))
    await bench.play(key="another")  # the provider repeats the key it was given
    is_silent(await failure_of(bench.lm.acompletion("x")))


def _repeating() -> list[Canned]:
    bodies = [
        {"error": {"message": f"Incorrect key {KEY}", "type": "invalid_request_error", "code": None}},
        {"error": f"Incorrect key {KEY}."},
        {"type": "error", "error": {"type": "authentication_error", "message": f"{KEY[:20]}…, sent as Bearer {KEY}"}},
        {"error": {"code": 400, "status": KEY, "message": f"x {KEY[3:]} y", "details": [{"reason": KEY}]}},
        {"message": f"key={KEY}&x", "status": "failure"},
    ]
    replies = [Canned(status=status, body=json.dumps(body).encode()) for body in bodies for status in (200, 400, 401, 429, 500)]
    page = f"<html>{KEY}</html>".encode()
    return [
        *replies,
        Canned(status=502, body=page, kind="text/html"),
        Canned(status=400, body=page, kind=f"text/html; key={KEY}"),
        Canned(body=page, kind="text/html"),
        Canned(body=b'{"broken": "' + KEY.encode()),
        Canned(status=418, body=b"x" * 70 + KEY.encode()),
        Canned(status=302, headers={"Location": f"http://127.0.0.1/{KEY}"}),
        Canned(status=429, headers={"Retry-After": KEY}),
        Canned(body=b'{"broken": "' + KEY.encode(), length=1_000),
        Canned(body=KEY.encode(), headers={"Content-Encoding": "gzip"}),
    ]


@case("server", "key")
async def the_key_is_not_in_errors_of_a_provider_that_repeats_it(bench: Bench) -> None:
    replies = _repeating()
    async with bench.canned(*replies) as (lm, _):
        for _ in replies:
            if (error := await _outcome(lm)) is not None:
                is_silent(error)


async def _outcome(lm: BaseLM) -> ProviderError | None:
    """The error that a call ends with, if it does; no variable here holds the key."""
    try:
        await lm.acompletion("x")
    except ProviderError as error:
        return error
    return None


async def _unconnected(bench: Bench) -> list[BaseLM]:
    """Clients whose next call finds no server, no TLS, or one that begins no reply, or ends none."""
    await bench.play(faults=["stall", "stall_body"])
    roots = ("http://127.0.0.1:1", "http://no-such-host.invalid", bench.stage.root.replace("http:", "https:"))
    return [*(bench.another(timeout=SOON) for _ in range(2)), *(bench.another(root=root) for root in roots)]


@case("server")
async def the_key_is_not_in_errors_of_a_connection(bench: Bench) -> None:
    for lm in await _unconnected(bench):
        is_silent(await failure_of(lm.acompletion("x")))


@case("server", "key")
async def the_key_is_in_no_variable_that_an_error_of_a_provider_came_by(bench: Bench) -> None:
    replies = _repeating()
    async with bench.canned(*replies) as (lm, _):
        for _ in replies:
            if (error := await _outcome(lm)) is not None:
                is_silent_all_the_way(error)


@case("server", "key")
async def the_key_is_in_no_variable_that_an_error_of_a_connection_came_by(bench: Bench) -> None:
    for lm in await _unconnected(bench):
        is_silent_all_the_way(await failure_of(lm.acompletion("x")))
    for fault in ("cut", "reset"):
        await bench.play(faults=[fault])
        is_silent_all_the_way(await failure_of(bench.lm.acompletion("x")))


@case("server")
async def the_key_is_not_in_logs_however_much_is_logged(bench: Bench) -> None:
    with listening() as heard:
        logging.getLogger("arlm").debug("heard at all")
        await bench.ask("x")
        await bench.play(faults=["401", "500", "cut", "reset"])
        for _ in range(4):
            await failure_of(bench.lm.acompletion("x"))
    assert any("heard at all" in text for text in heard)
    assert not [text for text in heard if shown(text)]


def _texts_in(folder: Path) -> list[str]:
    return [path.read_text("utf-8") for path in folder.rglob("*") if path.is_file()]


@case()
async def the_key_is_not_in_the_events_and_the_log_of_a_run(bench: Bench) -> None:
    code = "```repl\nanswer.update(content=llm_query('say it'), ready=True)\n```"
    script: dict[str, Any] = {"turns": [code], "sub": "upper"}
    if "server" not in bench.speech.without:
        script["faults"] = ["429"]
    await bench.play(**script, retry_after="0")
    seen: list[str] = []
    with tempfile.TemporaryDirectory() as folder, listening() as heard:
        result = await run("a question", model=bench.lm, on_event=lambda event: seen.append(repr(event)), log_dir=folder)
        written = _texts_in(Path(folder))
    assert result.answer == "SAY IT"
    assert seen
    assert written
    assert not [text for text in (*seen, *written, *heard, repr(result), json.dumps(result.trajectory())) if shown(text)]
