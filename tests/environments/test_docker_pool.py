"""Containers kept ready before a run asks for one: each is used once, refilled, not given out dead, and gone with its event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

import arlm
from arlm.environments import docker_engine
from arlm.environments.docker import DockerREPL
from arlm.environments.docker_rooms import Room, _Pool
from arlm.loopbound import per_loop
from arlm.testing.scripted import ScriptedLM
from docker_engine import Engine
from docker_places import cell, containers, docker, final, kill, labels, left_on, road

pytestmark = pytest.mark.docker

WHERE = final("__import__('socket').gethostname()")  # a container's, unless told otherwise, is the beginning of its id
PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
def nothing_is_left_on_the_engine(engine: Engine) -> Iterator[None]:
    yield
    assert left_on(engine.url) == []


def pool(environment: DockerREPL) -> _Pool:
    """Its pool on the running event loop."""
    found: _Pool = per_loop(environment._rooms, lambda: _Pool(environment._rooms))
    return found


async def full(environment: DockerREPL) -> list[Room]:
    """What is ready once nothing is being filled any more."""
    while pool(environment)._filling:
        await asyncio.wait(pool(environment)._filling, timeout=PATIENCE_S)
    return list(pool(environment)._ready)


async def a_run(environment: DockerREPL) -> str:
    """A run's container: the beginning of its id."""
    result = await arlm.run("q", context="c" * 100_000, model=ScriptedLM([WHERE]), environment=environment)
    return str(result.answer)


@pytest.mark.parametrize("transport", ["unix", "elsewhere"])
def test_each_container_was_started_before_its_run_and_is_used_once(transport: str, engine: Engine) -> None:
    async def runs(environment: DockerREPL) -> list[str]:
        used = [await a_run(environment)]  # which finds the pool empty, and has it filled
        for _ in range(3):
            rooms = await full(environment)
            assert len(rooms) == 2
            ready = {each["Id"][:12]: each for each in containers(engine.url)}
            assert len(ready) == 2
            assert all(each["State"]["Running"] for each in ready.values())
            used.append(await a_run(environment))
            assert used[-1] in ready
        return used

    with road(transport, engine) as options:
        used = asyncio.run(runs(docker(engine, pool=2, **options)))
        assert left_on(engine.url) == []
    assert len(set(used)) == 4


def test_a_container_of_the_pool_is_named_after_the_run_that_takes_it(engine: Engine) -> None:
    async def runs() -> None:
        environment = docker(engine, pool=1)
        await a_run(environment)
        await full(environment)
        (waiting,) = containers(engine.url)
        assert labels(waiting)["arlm.run"] == "pool"

        def look(_messages: list[arlm.Message]) -> str:
            names.extend(each["Name"] for each in containers(engine.url) if each["Id"] == waiting["Id"])
            return WHERE

        names: list[str] = []
        result = await arlm.run("q", model=ScriptedLM([look]), environment=environment)
        (name,) = names
        assert name.startswith(f"/arlm-{result.run_id}-")

    asyncio.run(runs())


def test_one_whose_run_is_cancelled_while_it_is_renamed_is_removed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed, rename = asyncio.Event(), docker_engine.Engine.rename

    async def late(self: docker_engine.Engine, name: str, new: str) -> None:
        await rename(self, name, new)
        renamed.set()
        await asyncio.Event().wait()

    async def runs() -> None:
        environment = docker(engine, pool=1)
        await a_run(environment)
        await full(environment)
        (waiting,) = containers(engine.url)
        run = asyncio.create_task(a_run(environment))
        await renamed.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert waiting["Id"] not in {each["Id"] for each in containers(engine.url)}

    monkeypatch.setattr(docker_engine.Engine, "rename", late)
    asyncio.run(runs())


def test_runs_at_the_same_time_have_one_each(engine: Engine) -> None:
    async def runs() -> list[str]:
        environment = docker(engine, pool=2)
        await a_run(environment)
        await full(environment)
        used = await asyncio.gather(*(a_run(environment) for _ in range(5)))
        assert len(await full(environment)) == 2
        return used

    assert len(set(asyncio.run(runs()))) == 5


def test_one_that_died_while_it_waited_is_not_given_out(engine: Engine) -> None:
    async def runs() -> None:
        environment = docker(engine, pool=2)
        await a_run(environment)
        rooms = await full(environment)
        dead = {each["Id"][:12]: each["Id"] for each in containers(engine.url)}
        kill(engine.url, *dead.values())
        async with asyncio.timeout(PATIENCE_S):
            while any(room.container.lives for room in rooms):
                await asyncio.sleep(0)
        assert await a_run(environment) not in dead
        await full(environment)
        fresh = {each["Id"][:12] for each in containers(engine.url)}
        assert len(fresh) == 2
        assert not fresh & dead.keys()

    asyncio.run(runs())


def test_a_container_of_the_pool_that_is_killed_in_its_run_is_replaced(engine: Engine) -> None:
    async def runs() -> str:
        environment = docker(engine, pool=1)
        await a_run(environment)
        await full(environment)
        (waiting,) = containers(engine.url)

        def strike(_messages: list[arlm.Message]) -> str:
            kill(engine.url, waiting["Id"])
            return final("len(context)")

        model = ScriptedLM([cell("1"), strike, final("len(context)")])
        return str((await arlm.run("q", context="c" * 100_000, model=model, environment=environment)).answer)

    assert asyncio.run(runs()) == "100000"


def test_what_is_being_filled_when_the_loop_ends_is_removed_too(engine: Engine) -> None:
    async def runs() -> None:
        environment = docker(engine, pool=3)
        pool(environment)._fill()
        while not containers(engine.url):
            await asyncio.sleep(0)
        assert len(pool(environment)._filling) == 3

    asyncio.run(runs())
    assert left_on(engine.url) == []


def test_run_sync_in_a_row_leaves_nothing_between_its_loops(engine: Engine) -> None:
    environment = docker(engine, pool=1)
    for _ in range(2):
        assert arlm.run_sync("q", model=ScriptedLM([final("'yes'")]), environment=environment).answer == "yes"
        assert left_on(engine.url) == []


@pytest.mark.parametrize(
    ("url", "why"), [("tcp://127.0.0.1:1", "no Docker engine answers"), ("nonsense", "the address of the Docker engine, 'nonsense'")]
)
def test_a_pool_that_cannot_be_filled_says_so_and_runs_go_on(url: str, why: str, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    async def runs() -> str:
        environment = docker(engine, pool=1)
        rooms = environment._rooms
        pool(environment)._rooms = type(rooms)(plan=rooms.plan, engine=url, transport=None, size=1)
        used = await a_run(environment)
        await full(environment)
        return used

    assert asyncio.run(runs())
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told.startswith(f"a container for the pool could not be started: {why}")
