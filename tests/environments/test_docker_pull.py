"""An image that the engine lacks is pulled before the run begins, and the run's listeners hear how far that has come."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

import arlm
from arlm.environments import docker_engine, docker_pull
from arlm.events import AnyEvent, EnvironmentProgress
from arlm.testing.scripted import ScriptedLM
from docker_engine import Engine
from docker_places import asking, docker, final, image_with, left_on
from docker_registry import Registry, registry

pytestmark = pytest.mark.docker

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def nothing_is_left_on_the_engine(engine: Engine) -> Iterator[None]:
    yield
    assert left_on(engine.url) == []


@asynccontextmanager
async def to_pull(engine: Engine, *, stalls: bool = False) -> AsyncIterator[Registry]:
    """An image that the engine has not; its last layer is one that nobody has."""
    with image_with(engine, {"/extra": secrets.token_hex(2 * MIB)}, base=engine.image) as image:
        serving = registry(engine, image, stalls=stalls)
        served = await serving.__aenter__()
    try:
        yield served
    finally:
        await serving.__aexit__(None, None, None)
        with asking(engine.url) as asked:
            asked.event_hooks = {}
            asked.delete(f"/images/{served.image}", params={"force": True})


async def test_a_missing_image_is_pulled_and_progress_is_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_pull, "TELL_SECONDS", 0.0)
    events: list[AnyEvent] = []
    async with to_pull(engine) as served:
        environment = docker(engine, image=served.image)
        model = ScriptedLM([final("str(len(open('/extra').read()))")] * 2)
        first = await arlm.run("q", model=model, environment=environment, on_event=events.append)
        assert first.answer == str(4 * MIB)
        told = [event.text for event in events if isinstance(event, EnvironmentProgress)]
        assert told[0] == f"pulling the image {served.image}"
        assert told[-1] == f"the image {served.image} is there"
        shown = [found for text in told if (found := re.fullmatch(rf"pulling the image {served.image}: ([\d,]+) of ([\d,]+) MiB", text))]
        assert shown, told
        assert int(shown[-1][2].replace(",", "")) >= 4
        assert {event.run_id for event in events} == {first.run_id}
        events.clear()
        await arlm.run("q", model=model, environment=environment, on_event=events.append)
    assert not any(isinstance(event, EnvironmentProgress) for event in events)


async def test_a_pull_that_is_cancelled_is_given_up_by_the_engine(engine: Engine) -> None:
    async with to_pull(engine, stalls=True) as served:
        task = asyncio.ensure_future(arlm.run("q", model=ScriptedLM(), environment=docker(engine, image=served.image)))
        await served.stalled.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await served.dropped.wait()


async def test_a_timeout_of_the_run_holds_for_the_pull(engine: Engine) -> None:
    async with to_pull(engine, stalls=True) as served:
        with pytest.raises(arlm.RunTimeout):
            await arlm.run("q", model=ScriptedLM(), environment=docker(engine, image=served.image), timeout=1.0)
        await served.dropped.wait()


@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])
async def test_a_page_in_the_registry_s_place_is_an_error_of_readable_length(size: int, engine: Engine) -> None:
    async def page(request: web.Request) -> web.Response:
        return web.Response(status=200 if request.path == "/v2/" else 403, text="<html>" + "x" * size)

    app = web.Application()
    app.router.add_get("/{path:.*}", page)
    async with serving(app) as port:
        with pytest.raises(arlm.SandboxError) as caught:
            await arlm.run("q", model=ScriptedLM(), environment=docker(engine, image=f"127.0.0.1:{port}/x:1"))
    words = str(caught.value)
    assert "error parsing HTTP 403 response body" in words
    assert "<html>xxxx" in words
    assert words.endswith("pull, load or build it there, or name one that is there by the environment's option `image`")
    assert len(words) < 1_500


async def test_a_pull_that_the_engine_refuses_without_a_word_tells_the_status(engine: Engine) -> None:
    with pytest.raises(arlm.SandboxError, match="could not be pulled: HTTP status 503; pull, load or build it there"):
        await pulled_from([b""], status=503)


async def test_a_pull_that_says_what_nobody_can_read_is_an_error(engine: Engine) -> None:
    with pytest.raises(arlm.SandboxError, match="could not be pulled: <html>"):
        await pulled_from([b"<html>\n"])
    with pytest.raises(arlm.SandboxError, match="could not be pulled: the engine says more than can be read"):
        await pulled_from([b"x" * 3 * MIB + b"\n"])
    with pytest.raises(arlm.SandboxError, match="could not be pulled: no such thing; pull"):
        await pulled_from([b'{"status": "pulling"}\r\n', b'{"error": "no such thing"}\r\n'])


async def pulled_from(parts: list[bytes], status: int = 200) -> None:
    """Pull from an engine that answers so."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        return response

    async def said(request: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": "1.41", "ID": "x"})

    app = web.Application()
    app.router.add_get("/{path:.*}", said)
    app.router.add_post("/{path:.*}", answer)
    async with serving(app) as port, docker_engine.open_engine(f"tcp://127.0.0.1:{port}") as asked:
        await docker_pull.pull(asked, "x:1")


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[int]:
    """The port of a web server."""
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
