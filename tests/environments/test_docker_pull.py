"""An image that the engine lacks is pulled before the run begins, and the run's listeners hear how far that has come."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

import arlm
from arlm.environments import docker_pull
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
