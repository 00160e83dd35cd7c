"""Containers that are killed, by a user, by the kernel, or with their host: what they held is named, and nothing of them stays."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

import arlm
from arlm.context import write_context
from arlm.environments import docker as docker_module
from arlm.environments import docker_engine
from arlm.events import AnyEvent
from arlm.testing.bench import Bench, open_bench
from arlm.testing.scripted import ScriptedLM
from docker_engine import Engine
from docker_places import asking, cell, containers, docker, final, kill, labels, left_on, road, said_to, subject
from docker_proxy import over_tcp
from programs import ProgramLM, run

pytestmark = pytest.mark.docker

PATIENCE_S = 20.0
MIB = 1024 * 1024
BUSY = "print('here', flush=True)\nwhile True:\n    pass"


@pytest.fixture(autouse=True)
def nothing_is_left_on_the_engine(engine: Engine) -> Iterator[None]:
    yield
    assert left_on(engine.url) == []


# -- docker kill -------------------------------------------------------------------------------------------------------


async def killed_in(bench: Bench, engine: Engine, code: str) -> arlm.CellResult:
    """What comes of a cell whose container is killed once it has printed ``here``."""
    async with bench.running(code) as task:
        await bench.until_streamed("here")
        kill(engine.url)
    return task.result()


@pytest.mark.parametrize("transport", ["unix", "stdio", "elsewhere"])
async def test_a_container_killed_in_a_cell_is_replaced_with_the_contexts_in_place(transport: str, engine: Engine) -> None:
    with road(transport, engine) as options:
        async with open_bench(subject(engine, **options)) as bench:
            await bench.context("first" * 100_000)
            await bench.context({"second": 2})
            await bench.out("x = 1\ny = context_0[:5]")
            (before,) = containers(engine.url)
            result = await killed_in(bench, engine, BUSY)
            assert (result.stopped, result.error) == ("exited", "the REPL ended in this cell: its container was killed")
            assert sorted(result.lost or ()) == ["x", "y"]
            assert result.output == "here\n"
            assert await bench.out("context, len(context_0), 'x' in globals()") == "({'second': 2}, 500000, False)\n"
            (after,) = containers(engine.url)
    assert after["Id"] != before["Id"]


async def test_a_container_killed_between_two_cells_is_replaced_and_the_next_cell_says_what_was_lost(engine: Engine) -> None:
    async with open_bench(subject(engine)) as bench:
        await bench.context("c" * 100_000)
        await bench.out("x = 1")
        kill(engine.url)
        with anyio.fail_after(PATIENCE_S):
            await bench.repl._worker.exited
        result = await bench.cell("print(len(context))")
        assert (result.output, result.error, result.stopped, result.lost) == ("100000\n", None, None, ("x",))


@pytest.mark.parametrize("transport", ["unix", "elsewhere"])
async def test_a_context_that_comes_after_its_container_was_removed_is_there_in_the_fresh_one(transport: str, engine: Engine) -> None:
    with road(transport, engine) as options:
        async with open_bench(subject(engine, **options)) as bench:
            await bench.context("first" * 100_000)
            (container,) = containers(engine.url)
            with asking(engine.url) as asked:
                asked.delete(f"/containers/{container['Id']}", params={"force": True, "v": True})
            await bench.context("second" * 100_000)
            assert await bench.out("len(context), len(context_0)") == "(600000, 500000)\n"


async def test_contexts_may_come_while_a_container_is_being_replaced(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = docker_module._DockerPlace._upload
    with road("elsewhere", engine) as options:
        async with open_bench(subject(engine, **options)) as bench:
            await bench.context("first" * 100_000)
            await bench.context("second" * 100_000)
            await bench.out("1")
            third = await write_context("third", bench.scratch / "third")
            put: list[str] = []

            async def and_another_comes(place: docker_module._DockerPlace, path: Path, name: str) -> None:
                await upload(place, path, name)
                if not put:
                    put.append("")
                    put[:] = [await bench.place.put(third)]

            kill(engine.url)
            with anyio.fail_after(PATIENCE_S):
                await bench.repl._worker.exited
            monkeypatch.setattr(docker_module._DockerPlace, "_upload", and_another_comes)
            assert await bench.out("len(context), len(context_0)") == "(600000, 500000)\n"
            assert await bench.out(f"open({put[0]!r}).read()") == "'third'\n"


async def test_a_container_killed_in_each_cell_is_replaced_each_time(engine: Engine) -> None:
    async with open_bench(subject(engine)) as bench:
        for number in range(3):
            await bench.out(f"x{number} = 1")
            bench.streamed.clear()
            assert (await killed_in(bench, engine, BUSY)).lost == (f"x{number}",)
        assert await bench.out("1 + 1") == "2\n"


async def test_killed_while_a_sub_call_is_pending_the_call_is_cancelled(engine: Engine) -> None:
    async with open_bench(subject(engine)) as bench:
        async with bench.running("llm_query('hang')") as task:
            await bench.script.until(lambda: bench.script.prompts == ["hang"])
            kill(engine.url)
        assert (task.result().error or "").endswith("its container was killed")
        await bench.script.until(lambda: bench.script.cancelled == ["hang"])
        assert bench.script.in_flight == 0


def cut_connections() -> None:
    """Those that the proxy passes on."""
    for each in asyncio.all_tasks():
        if getattr(each.get_coro(), "__qualname__", "").endswith("_passing_on.<locals>.serve"):
            each.cancel()


async def test_a_connection_that_is_cut_is_told_from_a_killed_container(engine: Engine) -> None:
    async with over_tcp(engine.url) as url, open_bench(subject(engine, engine=url)) as bench:
        await bench.out("x = 1")
        async with bench.running(BUSY) as task:
            await bench.until_streamed("here")
            cut_connections()
        assert (task.result().error or "").endswith("the connection to its container was lost")
        assert task.result().lost == ("x",)
        assert await bench.out("1 + 1") == "2\n"


@pytest.mark.parametrize("state", [KeyError("State"), {}, {"ExitCode": None}])
async def test_a_cell_ends_also_where_the_engine_says_nothing_that_can_be_read_of_its_container(
    state: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def said(_engine: object, _name: str) -> Any:
        if isinstance(state, KeyError):
            raise state
        return state

    async with open_bench(subject(engine, transport="stdio")) as bench:
        monkeypatch.setattr(docker_engine.Engine, "last_state", said)
        assert (await killed_in(bench, engine, BUSY)).stopped == "exited"
        assert await bench.out("1 + 1") == "2\n"


async def test_a_worker_that_ran_out_of_memory_is_not_why_its_container_ended_later(engine: Engine) -> None:
    async with over_tcp(engine.url) as url, open_bench(subject(engine, engine=url, memory=128 * MIB)) as bench:
        assert (await bench.cell("y = b'x' * (400 << 20)")).stopped == "exited"
        async with bench.running(BUSY) as task:
            await bench.until_streamed("here")
            cut_connections()
        assert (task.result().error or "").endswith("the connection to its container was lost")


async def test_all_repls_of_a_killed_container_move_into_one_fresh_container(engine: Engine) -> None:
    async with open_bench(subject(engine)) as bench:
        others = [bench.another() for _ in range(3)]
        try:
            await bench.out("1")
            for repl in others:
                await repl.run_cell("x = 1", 1)
            kill(engine.url)
            results = {}

            async def go_on(number: int) -> None:
                results[number] = await others[number].run_cell("print('there')", 2)

            with anyio.fail_after(PATIENCE_S):
                await bench.repl._worker.exited
            async with anyio.create_task_group() as tasks:
                for number in range(len(others)):
                    tasks.start_soon(go_on, number)
            assert [(results[number].output, results[number].lost) for number in range(3)] == [("there\n", ("x",))] * 3
            assert len(containers(engine.url)) == 1
        finally:
            for repl in others:
                await repl.close()


async def test_where_the_process_that_workers_are_forked_from_is_killed_the_next_has_a_fresh_container(engine: Engine) -> None:
    async with open_bench(subject(engine, transport="stdio")) as bench:
        await bench.out("x = 1")
        place = bench.place
        assert isinstance(place, docker_module._DockerPlace)
        nursery = place._control._nursery
        assert nursery is not None
        (container,) = containers(engine.url)
        supervisor = psutil.Process(container["State"]["Pid"])
        (forks,) = [each for each in supervisor.children() if each.num_threads() == 1]  # a worker has a thread for its connection
        forks.kill()
        with anyio.fail_after(PATIENCE_S):
            await nursery.exited
        assert (await bench.another().run_cell("print('there')", 1)).output == "there\n"
        assert (await bench.cell("print('too')")).lost == ("x",)


@pytest.mark.parametrize("transport", ["unix", "elsewhere"])
async def test_a_run_whose_container_is_killed_goes_on_and_the_model_is_told(transport: str, engine: Engine) -> None:
    seen: list[dict[str, Any]] = []

    def on_event(event: AnyEvent) -> None:
        if event.type == "cell_output" and not seen:
            seen.extend(containers(engine.url))
            kill(engine.url)

    model = ScriptedLM([cell("half = context[:50]"), cell(BUSY), final("f'{len(context)} {\"half\" in globals()}'")])
    with road(transport, engine) as options:
        result = await arlm.run("q", context="c" * 100_000, model=model, environment=docker(engine, **options), on_event=on_event)
    assert result.answer == "100000 False"
    assert "its container was killed" in said_to(model)
    assert "half" in said_to(model)
    assert len(seen) == 1


async def test_the_fresh_container_of_a_session_has_its_name_too(engine: Engine) -> None:
    names = []

    def look(_messages: list[arlm.Message]) -> str:
        names.append(labels(containers(engine.url)[0])["arlm.run"])
        return final("'x'")

    async with arlm.RLM(model=ScriptedLM([look] * 2), environment=docker(engine)).session() as session:
        await session.run("one")
        kill(engine.url)
        await session.run("two")
        (container,) = containers(engine.url)
        names.append(labels(container)["arlm.run"])
    assert len(set(names)) == 1, names
    assert names[0].startswith("session-")
    assert names[0] in container["Name"]


class Waiting(ProgramLM):
    """Calls that say ``hang`` are not answered; a root that has lost its first cell answers."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.hanging = 0

    async def reply(self, messages: list[arlm.Message]) -> str:
        if messages[0]["content"] == "hang":
            self.hanging += 1
            if self.hanging == 2:
                kill(self.engine.url)
            await anyio.sleep_forever()
        if len(messages) > 2:
            return final("str(('marker' in globals(), len(context)))")
        return await super().reply(messages)


async def test_children_in_a_killed_container_are_cancelled_and_their_parent_goes_on(engine: Engine) -> None:
    child = run("llm_query('hang')")
    parent = run(f"marker = 1\nrlm_query_batched([{child!r}] * 2)")
    result = await arlm.run(parent, context="c" * 100_000, model=Waiting(engine), environment=docker(engine), max_depth=2)
    assert result.answer == "(False, 100000)"
    assert {each.stop_reason for each in result.children} == {"cancelled"}


# -- out of memory -----------------------------------------------------------------------------------------------------


async def test_a_cell_that_takes_more_than_the_container_has_is_replaced_and_told_why(engine: Engine) -> None:
    async with open_bench(subject(engine, memory=128 * MIB)) as bench:
        await bench.context("c" * 100_000)
        await bench.out("x = 1")
        result = await bench.cell("y = b'x' * (400 << 20)")
        assert (result.stopped, result.lost) == ("exited", ("x",))
        assert "its container may have run out of memory, of which it has 134,217,728 bytes: option `memory`" in (result.error or "")
        assert await bench.out("len(context)") == "100000\n"


async def test_a_work_folder_filled_beyond_the_memory_ends_in_clear_words_too(engine: Engine) -> None:
    async with open_bench(subject(engine, memory=128 * MIB, disk=1024 * MIB)) as bench:
        await bench.out("x = 1")
        result = await bench.cell("with open('f', 'wb') as file:\n    for _ in range(400):\n        file.write(bytes(1 << 20))")
        assert result.stopped == "exited"
        assert re.search("its container (may have run|ran) out of memory", result.error or ""), result.error  # the kernel chooses whom
        assert await bench.out("1 + 1") == "2\n"


async def test_with_a_memory_limit_it_is_a_memory_error_and_nothing_is_lost(engine: Engine) -> None:
    async with open_bench(subject(engine, memory=512 * MIB), memory_limit=128 * MIB) as bench:
        await bench.out("x = 1")
        await bench.fails("y = b'x' * (400 << 20)", "MemoryError")
        assert await bench.out("x") == "1\n"
