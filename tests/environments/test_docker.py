"""The lifetime of a container: it is there for a run, labelled with it, and gone with it, however the run ends."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import arlm
from arlm.environments.docker import DockerREPL
from arlm.environments.owner import owner
from arlm.testing import Script, ScriptedProvider
from arlm.testing.checkpoints import act_at, count_steps
from arlm.testing.scripted import ScriptedLM
from commandline import start
from docker_engine import Engine
from docker_places import cell, containers, docker, final, hosts, labels, left_on, road, volumes

pytestmark = pytest.mark.docker

ROUNDS = float(os.environ.get("ARLM_FAULT_ROUNDS", "1"))  # above 1, every step is taken
FORWARD = cell("x = 1")


@pytest.fixture(autouse=True)
def nothing_is_left_on_the_engine(engine: Engine) -> Iterator[None]:
    yield
    assert left_on(engine.url) == []


class Seen:
    """A step of a script that looks at the engine, and then does what it is given to do."""

    def __init__(self, engine: Engine, then: Any) -> None:
        self.engine = engine
        self.then = then
        self.containers: list[dict[str, Any]] = []
        self.volumes: list[str] = []
        self.looked = asyncio.Event()

    async def __call__(self, _messages: list[arlm.Message]) -> str:
        self.containers, self.volumes = containers(self.engine.url), volumes(self.engine.url)
        self.looked.set()
        if isinstance(self.then, BaseException):
            raise self.then
        return await asyncio.Event().wait() if self.then is None else self.then


@pytest.mark.parametrize("transport", ["unix", "stdio", "elsewhere"])
async def test_a_run_has_a_container_with_its_name_on_it_and_leaves_none(transport: str, engine: Engine) -> None:
    seen = Seen(engine, final("context[:3] + str(len(context))"))
    with road(transport, engine) as options:
        result = await arlm.run("q", context="abc" * 100_000, model=ScriptedLM([FORWARD, seen]), environment=docker(engine, **options))
        assert left_on(engine.url) == []
    assert result.answer == "abc300000"
    (container,) = seen.containers
    assert (labels(container)["arlm.run"], labels(container)["arlm.owner"]) == (result.run_id, owner())
    assert result.run_id in container["Name"]
    assert len(seen.volumes) == (transport == "elsewhere")
    assert [mount["Name"] for mount in container["Mounts"] if mount["Type"] == "volume"] == seen.volumes


@pytest.mark.parametrize(
    ("then", "options", "error"),
    [
        (arlm.AuthError("no", provider="scripted"), {}, arlm.AuthError),
        (None, {"timeout": 1.0}, arlm.RunTimeout),
        (FORWARD, {"max_calls": 2, "on_limit": "raise"}, arlm.CallLimit),
        (cell("1 / 0"), {"max_errors": 1}, arlm.ErrorLimit),
        (KeyError("a defect of the user's model"), {}, KeyError),
    ],
    ids=["error", "timeout", "limit", "errors", "defect"],
)
async def test_whatever_ends_a_run_ends_its_container(then: Any, options: Any, error: type[BaseException], engine: Engine) -> None:
    seen = Seen(engine, then)
    model = ScriptedLM([seen, FORWARD, FORWARD])
    with pytest.raises(error):
        await arlm.run("q", context="c", model=model, environment=docker(engine), **options)
    assert left_on(engine.url) == []
    assert len(seen.containers) == 1


async def test_a_limit_that_is_answered_ends_the_container_too(engine: Engine) -> None:
    seen = Seen(engine, FORWARD)
    result = await arlm.run("q", context="c", model=ScriptedLM([seen, "so far"]), environment=docker(engine), max_iterations=1)
    assert (result.answer, result.stop_reason) == ("so far", "iterations")
    assert left_on(engine.url) == []
    assert len(seen.containers) == 1


@pytest.mark.parametrize("transport", ["unix", "elsewhere"])
@pytest.mark.parametrize("times", [1, 2])
async def test_a_run_cancelled_once_or_twice_has_removed_its_container_when_it_ends(times: int, transport: str, engine: Engine) -> None:
    seen = Seen(engine, None)
    with road(transport, engine) as options:
        model = ScriptedLM([FORWARD, seen])
        task = asyncio.ensure_future(arlm.run("q", context="c" * 100_000, model=model, environment=docker(engine, **options)))
        await seen.looked.wait()
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert left_on(engine.url) == []
    assert len(seen.containers) == 1


async def test_a_stream_that_is_left_has_removed_its_container(engine: Engine) -> None:
    there: list[dict[str, Any]] = []
    async with arlm.stream("q", context="c", model=ScriptedLM([FORWARD] * 9), environment=docker(engine)) as stream:
        async for event in stream:
            if event.type == "cell_ended":
                there = containers(engine.url)
                break
    assert left_on(engine.url) == []
    assert len(there) == 1


async def test_a_session_keeps_its_container_over_its_questions(engine: Engine) -> None:
    first, second = Seen(engine, cell("kept = context\nanswer.update(content='one', ready=True)")), Seen(engine, final("kept"))
    async with arlm.RLM(model=ScriptedLM([first, second]), environment=docker(engine)).session() as session:
        await session.run("q", context="kept here")
        assert (await session.run("q")).answer == "kept here"
    assert left_on(engine.url) == []
    assert [each["Id"] for each in first.containers] == [each["Id"] for each in second.containers]
    assert labels(first.containers[0])["arlm.run"].startswith("session-")


# -- cancelled anywhere ------------------------------------------------------------------------------------------------


def run_of(environment: DockerREPL) -> Callable[[], Awaitable[object]]:
    async def work() -> None:
        result = await arlm.run("q", context="c" * 100_000, model=ScriptedLM([final("len(context)")]), environment=environment)
        assert result.answer == "100000"

    return work


@pytest.mark.slow
@pytest.mark.parametrize(("transport", "times", "every"), [("unix", 1, 3), ("unix", 2, 2), ("elsewhere", 1, 4)])
async def test_cancelled_at_any_step_nothing_is_left(transport: str, times: int, every: int, engine: Engine) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    with road(transport, engine) as options:
        work = run_of(docker(engine, **options))
        await work()  # with it, what belongs to the loop or the process is there
        steps = await count_steps(work)
        assert steps > 30
        ends = []
        for step in range(1, steps + 1, every if ROUNDS <= 1 else 1):
            ends.append(await act_at(work, {step + again: asyncio.Task.cancel for again in range(times)}))
            assert left_on(engine.url) == [], step
            assert asyncio.all_tasks() == {asyncio.current_task()}, step
        assert {type(end) for end in ends} <= {asyncio.CancelledError, type(None)}, ends
        assert sum(end is not None for end in ends) > len(ends) // 2
        await work()
    gc.collect()  # of what failed without anybody having been told, asyncio says so when it is gone
    assert complaints == []


# -- at the terminal ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 3])
async def test_ctrl_c_removes_the_container(times: int, engine: Engine) -> None:
    options = [f"image={engine.image}", f"engine={engine.url}"]
    words = [word for option in options for word in ("--environment-option", option)]
    async with ScriptedProvider(Script(turns=[cell("llm_query('ready')\nwhile True:\n    pass")])) as provider:
        process = await start(
            *("run", "q", "-m", "openai/scripted", "-e", "docker", *words), quick=True, OPENAI_BASE_URL=provider.url, OPENAI_API_KEY="sk-x"
        )
        await provider.until(lambda stats: (stats["calls"], stats["in_flight"]) == (2, 0))
        (label,) = hosts(engine.url, process.pid)
        for _ in range(times):
            process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert process.returncode == 130
    assert left_on(engine.url, label) == []
    assert err.decode().splitlines()[-1].startswith("arlm: interrupted; used so far: 2 calls")
