"""A Docker engine that is stopped, killed, started again, or no longer answers, while runs are on it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any, BinaryIO

import anyio
import pytest

import arlm
from arlm.environments import docker as docker_environment
from arlm.environments import docker_box, docker_container, docker_engine
from arlm.testing.bench import open_bench
from arlm.testing.scripted import ScriptedLM
from docker_engine import Engine, PrivateEngine
from docker_places import cell, containers, docker, final, left_on, said_to, subject
from docker_proxy import over_tcp

pytestmark = pytest.mark.docker

GONE = "the Docker engine stopped or restarted, and its container with it"
WHYS = {"stop": ("its container was killed", GONE), "kill": (GONE,)}  # an engine on its way down may have the time to say why
PATIENCE_S = 20.0
BUSY = "print('here', flush=True)\nwhile True:\n    pass"


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_run_goes_on_when_its_engine_was_restarted(how: str, private_engine: PrivateEngine) -> None:
    async def restart(_messages: list[arlm.Message]) -> str:
        await asyncio.to_thread(getattr(private_engine, how))
        await asyncio.to_thread(private_engine.start)
        return cell("print(len(context), 'half' in globals())")

    model = ScriptedLM([cell("half = context[:10]"), restart, final("'done'")])
    result = await arlm.run("q", context="c" * 100_000, model=model, environment=docker(private_engine))
    assert result.answer == "done"
    assert "100000 False" in said_to(model)
    assert "half" in said_to(model)
    assert left_on(private_engine.url) == []


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_an_engine_that_ends_in_a_cell_is_waited_for(
    how: str, private_engine: PrivateEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    missed = asyncio.Event()  # somebody has found the engine away, and waits for it

    def info(text: str, *_values: object) -> None:
        if "trying again" in text:
            missed.set()

    monkeypatch.setattr(docker_environment.logger, "info", info)
    async with open_bench(subject(private_engine, transport="stdio")) as bench:
        await bench.context("c" * 100_000)
        await bench.out("x = 1")
        async with bench.running(BUSY) as task:
            await bench.until_streamed("here")
            await asyncio.to_thread(getattr(private_engine, how))
        result = task.result()
        assert (result.stopped, result.lost) == ("exited", ("x",))
        assert (result.error or "").removeprefix("the REPL ended in this cell: ") in WHYS[how]
        async with bench.running("print(len(context))") as task:
            await missed.wait()
            await asyncio.to_thread(private_engine.start)
        assert task.result().output == "100000\n"
    assert left_on(private_engine.url) == []


async def test_over_a_mounted_socket_cells_do_not_miss_a_killed_engine(private_engine: PrivateEngine) -> None:
    async with open_bench(subject(private_engine, transport="unix")) as bench:
        await bench.out("x = 1")
        await asyncio.to_thread(private_engine.kill)
        assert await bench.out("llm_query('still here')") == "'still here'\n"
        await asyncio.to_thread(private_engine.start)  # which ends containers that it finds
        with anyio.fail_after(PATIENCE_S):
            while (result := await bench.cell("1")).lost is None:
                pass
        assert result.lost == ("x",)
        assert await bench.out("llm_query('there again')") == "'there again'\n"
    assert left_on(private_engine.url) == []


async def test_an_engine_that_does_not_return_ends_the_run_with_what_to_do(
    private_engine: PrivateEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(docker_environment, "RETURN_SECONDS", 0.3)

    async def stop(_messages: list[arlm.Message]) -> str:
        await asyncio.to_thread(private_engine.stop)
        return cell("1")

    with pytest.raises(arlm.SandboxError, match="no Docker engine answers: start it, or set DOCKER_HOST"):
        await arlm.run("q", context="c", model=ScriptedLM([cell("1"), stop]), environment=docker(private_engine))
    (told,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "could not be removed" in told.getMessage()
    assert "`arlm clean` removes it" in told.getMessage()


@pytest.mark.parametrize("transport", ["unix", "stdio"])
async def test_a_place_is_left_although_its_engine_is_down(
    transport: str, private_engine: PrivateEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_bench(subject(private_engine, transport=transport)) as bench:
        assert await bench.out("1") == "1\n"
        await asyncio.to_thread(private_engine.kill)
    (told,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "could not be removed" in told.getMessage()
    await asyncio.to_thread(private_engine.start)
    (container,) = containers(private_engine.url)
    assert await docker(private_engine).sweep() == []  # this process lives
    assert await docker(private_engine).sweep(everything=True) == [f"container {container['Name'][1:]}"]


class Freezer:
    """Makes an engine one that is there and answers nothing, until the block is left."""

    def __init__(self, engine: PrivateEngine) -> None:
        self.pid = int((engine.folder / "docker.pid").read_text())

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def __enter__(self) -> Freezer:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGCONT)


async def test_an_engine_that_no_longer_answers_does_not_hold_up_who_leaves(
    private_engine: PrivateEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(docker_container, "CLOSE_SECONDS", 0.3)
    with Freezer(private_engine) as freezer:
        async with open_bench(subject(private_engine)) as bench:
            assert await bench.out("1") == "1\n"
            await bench.repl.close()
            freezer.freeze()
        (told,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert "(the Docker engine did not answer within 0.3 s)" in told.getMessage()
        assert "`arlm clean` removes it" in told.getMessage()
        monkeypatch.setattr(docker_engine, "ASK_SECONDS", 0.3)
        with pytest.raises(arlm.SandboxError, match=r"the Docker engine did not answer within 0\.3 s"):
            await arlm.run("q", model=ScriptedLM(), environment=docker(private_engine))


@pytest.mark.parametrize("method", ["create", "attach", "start"])
async def test_an_opening_that_is_not_answered_can_be_cancelled(
    method: str, private_engine: PrivateEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_container, "CLOSE_SECONDS", 0.3)
    asked = asyncio.Event()
    real = getattr(docker_engine.Engine, method)
    with Freezer(private_engine) as freezer:

        async def frozen(*arguments: Any) -> Any:
            freezer.freeze()
            asked.set()
            return await real(*arguments)

        monkeypatch.setattr(docker_engine.Engine, method, frozen)
        task = asyncio.ensure_future(arlm.run("q", model=ScriptedLM(), environment=docker(private_engine)))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_upload_that_goes_no_further_ends_with_an_error(private_engine: PrivateEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    with Freezer(private_engine) as freezer:
        async with over_tcp(private_engine.url) as url, open_bench(subject(private_engine, engine=url)) as bench:
            assert await bench.out("1") == "1\n"
            await bench.repl.close()
            monkeypatch.setattr(docker_engine, "MAKE_SECONDS", 0.5)
            monkeypatch.setattr(docker_container, "CLOSE_SECONDS", 0.3)
            monkeypatch.setattr(docker_container, "END_SECONDS", 0.1)  # in which it is learned that the container has not ended
            freezer.freeze()
            with anyio.fail_after(PATIENCE_S), pytest.raises(arlm.SandboxError, match=r"files could not be copied .* not answer within"):
                await bench.context("c" * 50_000_000)


async def test_an_upload_may_take_longer_than_the_engine_may_say_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    real, began = docker_box.file_archive, 0.0

    async def slowly(file: BinaryIO, name: str) -> AsyncIterator[bytes]:
        nonlocal began
        began = time.monotonic()
        async for piece in real(file, name):
            yield piece
            await asyncio.sleep(0.5)  # of a slow network

    monkeypatch.setattr(docker_environment, "file_archive", slowly)
    async with over_tcp(engine.url) as url, open_bench(subject(engine, engine=url)) as bench:
        await bench.out("1")
        monkeypatch.setattr(docker_engine, "MAKE_SECONDS", 3.0)
        await bench.context("c" * 8_000_000)
        assert time.monotonic() - began > docker_engine.MAKE_SECONDS
        monkeypatch.undo()
        assert await bench.out("len(context)") == "8000000\n"
