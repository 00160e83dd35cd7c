"""What a host that was killed leaves on an engine: nothing that runs, and nothing that another process's sweep does not remove."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import anyio
import psutil
import pytest

import arlm
from arlm.environments import docker_leftovers
from arlm.environments.owner import owner
from arlm.testing.scripted import ScriptedLM
from docker_engine import Engine
from docker_places import asking, containers, docker, final, left_on, road, volumes

pytestmark = pytest.mark.docker

PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
def nothing_is_left_on_the_engine(engine: Engine) -> Iterator[None]:
    yield
    assert left_on(engine.url) == []


# -- a host that is killed ---------------------------------------------------------------------------------------------


@contextmanager
def host_on(url: str, engine: Engine) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process with a run in a container, and its label."""
    script = Path(__file__).parent / "docker_host.py"
    with tempfile.TemporaryDirectory() as folder:
        host = subprocess.Popen(
            [sys.executable, str(script), url, engine.image], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": folder}
        )
        with host:
            try:
                assert host.stdout is not None
                yield host, host.stdout.readline().strip()
            finally:
                host.kill()


def inside(url: str, container: str) -> list[psutil.Process]:
    """The processes of a container."""
    with asking(url) as asked:
        told = asked.get(f"/containers/{container}/top").json()
    return [psutil.Process(int(row[told["Titles"].index("PID")])) for row in told["Processes"]]


@pytest.mark.parametrize("transport", ["unix", "elsewhere"])
async def test_of_a_killed_host_nothing_runs_and_a_sweep_removes_what_lies_there(
    transport: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with road(transport, engine) as options, host_on(options.get("engine", engine.url), engine) as (alive, other):
        url = options.get("engine", engine.url)
        with host_on(url, engine) as (host, label):
            (container,) = containers(engine.url, label)
            assert len(volumes(engine.url, label)) == (transport == "elsewhere")
            running = inside(engine.url, container["Id"])
            assert len(running) >= 3  # supervisor, worker, what has detached itself
            host.kill()
            host.wait()
            with asking(engine.url) as asked:
                asked.post(f"/containers/{container['Id']}/wait")
        _, still = psutil.wait_procs(running, timeout=PATIENCE_S)
        assert [each for each in still if each.status() != psutil.STATUS_ZOMBIE] == []
        assert f"container {container['Name'][1:]}" in await docker(engine, **options).sweep()
        assert left_on(engine.url, label) == []
        (spared,) = containers(engine.url, other)
        assert spared["State"]["Running"]

        alive.kill()  # and what another process's first run finds
        alive.wait()
        monkeypatch.setattr(docker_leftovers, "_looked_at", set())

        async def until_it_is_gone(_messages: list[arlm.Message]) -> str:
            with anyio.fail_after(PATIENCE_S):
                while left_on(engine.url, other):
                    await anyio.sleep(0.01)
            return final("'gone'")

        result = await arlm.run("q", model=ScriptedLM([until_it_is_gone]), environment=docker(engine, **options))
        assert result.answer == "gone"


# -- sweeps ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dead() -> str:
    """The label of a process that has ended."""
    command = [sys.executable, "-c", "from arlm.environments.owner import owner; print(owner())"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def left_by(host: str, engine: Engine, number: int, command: Sequence[str] = ("true",)) -> list[str]:
    """Put containers on an engine as if a host had; their names."""
    wanted = {"Image": engine.image, "Cmd": command, "Labels": {"arlm.owner": host}}
    with asking(engine.url) as asked:
        made = [asked.post("/containers/create", json=wanted).json() for _ in range(number)]
        return [asked.get(f"/containers/{each['Id']}/json").json()["Name"][1:] for each in made]


async def test_sweeps_at_the_same_time_remove_everything_between_them(dead: str, engine: Engine) -> None:
    names = left_by(dead, engine, 5)
    swept = await asyncio.gather(*(docker(engine).sweep() for _ in range(5)))
    assert left_on(engine.url, dead) == []
    assert {f"container {name}" for name in names} <= {line for lines in swept for line in lines}


async def test_a_volume_whose_container_was_removed_by_hand_is_swept(dead: str, engine: Engine) -> None:
    with asking(engine.url) as asked:
        name, ours = (asked.post("/volumes/create", json={"Labels": {"arlm.owner": host}}).json()["Name"] for host in (dead, owner()))
        try:
            lines = await docker(engine).sweep()
            assert volumes(engine.url) == [ours]
        finally:
            asked.delete(f"/volumes/{ours}")
    assert f"volume {name}" in lines
    assert left_on(engine.url, dead) == []


ELSEWHERE = "a1.0123456789ab.0123456789abcdef.0123456789.1.1"  # a process of another machine


async def test_what_a_host_elsewhere_has_goes_long_after_its_end_and_not_before(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, never_began, runs = left_by(ELSEWHERE, engine, 3, command=["sleep", "1000"])
    with asking(engine.url) as asked:
        try:
            for name in (ended, runs):
                asked.post(f"/containers/{name}/start")
            asked.post(f"/containers/{ended}/kill")
            asked.post(f"/containers/{ended}/wait")
            assert not {f"container {name}" for name in (ended, never_began, runs)} & set(await docker(engine).sweep())
            monkeypatch.setattr(docker_leftovers, "LONG_SECONDS", 0.0)
            assert {f"container {ended}", f"container {never_began}"} <= set(await docker(engine).sweep())
            assert left_on(engine.url, ELSEWHERE) == [f"/{runs}"]
        finally:
            for name in left_on(engine.url, ELSEWHERE):
                asked.delete(f"/containers{name}", params={"force": True})


@pytest.mark.parametrize("label", ["", "a1.x", "somebody", "a1.0.0.0.1.0"])
async def test_what_nobody_can_tell_of_stays(label: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_leftovers, "LONG_SECONDS", 0.0)
    (name,) = left_by(label, engine, 1)
    try:
        assert f"container {name}" not in await docker(engine).sweep()
    finally:
        with asking(engine.url) as asked:
            asked.delete(f"/containers/{name}")
