"""What is not known of a container: whether an engine makes it, and what it is called. It is removed all the same."""

from __future__ import annotations

import asyncio
import logging

import pytest

import arlm
from arlm.environments import docker_container, docker_engine
from arlm.environments.docker import DockerREPL
from arlm.testing.scripted import ScriptedLM
from docker_double import double

pytest.importorskip("aiodocker")

PATIENCE_S = 20.0


def test_a_container_that_is_being_made_when_the_loop_ends_is_removed() -> None:
    with double() as engine:

        async def begin() -> None:
            rooms = DockerREPL(engine=engine.url)._rooms
            making = asyncio.create_task(rooms.make(None))
            assert await asyncio.to_thread(engine.asked.wait, PATIENCE_S)
            assert not making.done()

        asyncio.run(begin())
        assert len(engine.removed) == 1
        assert engine.made == set()


async def test_a_container_that_is_made_too_late_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_engine, "MAKE_SECONDS", 0.5)
    with double() as engine:
        with pytest.raises(arlm.SandboxError, match=r"the container could not be made: the Docker engine did not answer within 0\.5 s"):
            await arlm.run("q", model=ScriptedLM(), environment=DockerREPL(engine=engine.url))
        assert len(engine.removed) == 1
        assert engine.made == set()


async def test_that_one_could_not_be_removed_is_a_warning_with_what_removes_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(docker_engine, "MAKE_SECONDS", 0.5)
    monkeypatch.setattr(docker_container, "CLOSE_SECONDS", 0.5)
    with double(removes=False) as engine, pytest.raises(arlm.SandboxError):
        await arlm.run("q", model=ScriptedLM(), environment=DockerREPL(engine=engine.url))
    (told,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "could not be removed; `arlm clean` removes it once this process has ended" in told.getMessage()
    assert told.exc_info is None


async def test_a_container_that_is_half_removed_and_has_no_name_is_swept_by_its_id() -> None:
    with double([{"Id": "0123456789abcdef", "Names": [], "State": "dead", "Labels": {"arlm.owner": "somebody"}}]) as engine:
        assert await DockerREPL(engine=engine.url).sweep() == []
        assert await DockerREPL(engine=engine.url).sweep(everything=True) == ["container 0123456789ab"]
        assert engine.removed == ["0123456789abcdef"]


async def test_one_that_cannot_be_removed_keeps_none_of_the_others() -> None:
    names = ("one", "two", "three")
    listed = [{"Id": name, "Names": [f"/{name}"], "State": "dead", "Labels": {"arlm.owner": "somebody"}} for name in names]
    with double(listed, stuck=["two"]) as engine:
        with pytest.raises(arlm.SandboxError) as caught:
            await DockerREPL(engine=engine.url).sweep(everything=True)
        assert engine.removed == ["one", "three"]
    told = "container two: the container could not be removed: it is a zombie; removed were container one, container three"
    assert str(caught.value) == told
