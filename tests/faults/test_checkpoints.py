"""Every step that any task of a run takes: cancelled there, once and twice, its worker killed there, its fork server killed there."""

import asyncio
import signal
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import arlm
from arlm.environments import forkserver
from arlm.testing.checkpoints import act_at, count_steps
from arlm.testing.scripted import ScriptedLM
from leaks import held, left_since
from programs import ProgramLM, run

Work = Callable[[], Awaitable[object]]


def cell(code: str) -> str:
    return f"```repl\n{code}\n```"


async def sub(_messages: list[arlm.Message]) -> str:
    await asyncio.sleep(0.001)
    return "ok"


def model() -> ScriptedLM:
    batch = "r = llm_query_batched(['a', 'b', 'c'])\nprint(tool(1))"
    return ScriptedLM([cell(batch), *[cell("answer.update(content=context, ready=True)")] * 20], sub=sub)


async def a_run(folder: Path) -> None:
    result = await arlm.run("q", context="c" * 100, model=model(), tools={"tool": lambda x: x}, log_dir=folder)
    assert result.answer == "c" * 100


async def a_stream(folder: Path) -> None:
    async with arlm.stream("q", context="c", model=model(), tools={"tool": lambda x: x}, log_dir=folder) as run:
        async for _event in run:
            pass


async def a_session(folder: Path) -> None:
    async with arlm.RLM(model=model(), tools={"tool": lambda x: x}, log_dir=folder).session() as session:
        await session.run("one", context="c")
        await session.run("two")


class PatientLM(ProgramLM):
    """After a cell that was lost, it answers with what it has."""

    async def reply(self, messages: list[arlm.Message]) -> str:
        return cell("answer.update(content='ok: x', ready=True)") if len(messages) > 2 else await super().reply(messages)


async def a_tree(folder: Path) -> None:
    inner = run("answer.update(content=llm_query('x'), ready=True)")
    program = run(f"answer.update(content=rlm_query_batched([{inner!r}, {inner!r}]), ready=True)")
    middle = run(f"answer.update(content=rlm_query({program!r}, context='c' * 100_000), ready=True)")
    result = await arlm.run(middle, model=PatientLM(), max_depth=3, max_repls=1, max_concurrency=1, log_dir=folder)
    assert "ok: x" in str(result.answer) or result.answer.startswith("Error: ")


DRIVERS = {"run": a_run, "stream": a_stream, "session": a_session, "tree": a_tree}


@pytest.fixture(params=DRIVERS, ids=str)
def work(request: pytest.FixtureRequest, tmp_path: Path) -> Work:
    driver = DRIVERS[request.param]
    return lambda: driver(tmp_path)


def other_tasks() -> set[asyncio.Task]:
    return asyncio.all_tasks() - {asyncio.current_task()}


@pytest.mark.parametrize("times", [1, 2])
async def test_cancelled_at_any_step_nothing_is_left(work: Work, times: int) -> None:
    await work()
    steps = await count_steps(work)
    assert steps > 30
    ends = []
    for step in range(1, steps + 1):
        before = held()
        ends.append(await act_at(work, {step + again: asyncio.Task.cancel for again in range(times)}))
        assert other_tasks() == set(), step
        assert left_since(before, 2.0) == set(), step
    assert {type(end) for end in ends} <= {asyncio.CancelledError, type(None)}
    assert sum(end is not None for end in ends) > steps // 2
    await work()


@pytest.mark.parametrize("victim", ["worker", "fork server"])
async def test_with_its_processes_killed_at_any_step_it_ends_typed_and_the_next_is_fine(work: Work, victim: str) -> None:
    await work()
    steps = await count_steps(work)
    ends = []
    for step in range(1, steps + 1, 1 if victim == "worker" else 3):  # a new fork server takes a new Python each time
        server = psutil.Process((await forkserver.current()).process.pid)

        def strike(_task: object, server: psutil.Process = server) -> None:
            for process in server.children() if victim == "worker" else [server]:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)

        ends.append(await act_at(work, {step: strike}))
        assert other_tasks() == set(), step
    assert {type(end) for end in ends} <= {arlm.SandboxError, type(None)}, ends
    await work()
    server = psutil.Process((await forkserver.current()).process.pid)
    assert server.children(recursive=True) == []
    assert [path for path in Path(tempfile.gettempdir()).iterdir() if path.name.startswith("arlm-")] == []
