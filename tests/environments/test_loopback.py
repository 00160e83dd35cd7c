"""Sandboxes behind brokers: their lifetimes, their deaths, and whole runs in them."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

import arlm
from arlm.context import write_context
from arlm.environments import brokered, control, repl
from arlm.environments.base import Environment, Loaded
from arlm.environments.brokered import Room, Sandbox
from arlm.environments.control import Control
from arlm.environments.repl import GRACE_SECONDS
from arlm.environments.sandbox import Reach
from arlm.errors import SandboxError
from arlm.lifetimes import finish
from arlm.scratch import open_scratch
from arlm.server import poller
from arlm.server.handler import LMHandler
from arlm.server.poller import Poller
from arlm.testing.bench import open_bench
from arlm.testing.checkpoints import act_at, count_steps
from arlm.testing.gateway import open_gateway
from arlm.testing.gateway_faults import AnswerInstead
from arlm.testing.loopback import LoopbackREPL, LoopbackSandbox
from arlm.testing.scripted import ScriptedLM
from brokers import loopback, subject
from leaks import held, left_since
from programs import ProgramLM, final, run

BUSY = "print('here', flush=True)\nwhile True:\n    pass"
PATIENCE_S = 20.0
TESTS = Path(__file__).parent.parent


def cell(code: str) -> str:
    return f"```repl\n{code}\n```"


def says(expression: str) -> str:
    return cell(f"answer.update(content=str(({expression})), ready=True)")


def broker_of(environment: LoopbackREPL) -> psutil.Process:
    process = environment.made[-1].process
    assert process is not None
    return psutil.Process(process.pid)


def kill(environment: LoopbackREPL, victim: str) -> list[psutil.Process]:
    """Kill a part of the newest sandbox; returns all that ran in it."""
    broker = broker_of(environment)
    below = broker.children(recursive=True)
    victims = {"broker": [broker], "supervisor": broker.children(), "everything": [broker, *below]}[victim]
    for process in victims:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return [broker, *below]


async def are_gone(processes: list[psutil.Process]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
            await asyncio.sleep(0.01)


def nothing_left(environment: LoopbackREPL) -> None:
    for sandbox in environment.made:
        assert not os.path.exists(sandbox.folder)
        assert sandbox.process is None or sandbox.process.returncode is not None


# -- deaths ------------------------------------------------------------------------------------------------------------

VICTIMS = ["broker", "supervisor", "everything"]


@pytest.mark.parametrize("victim", VICTIMS)
async def test_a_sandbox_that_dies_in_a_cell_is_replaced_with_the_contexts_in_place(victim: str) -> None:
    environment = loopback()
    async with open_bench(subject(environment)) as bench:
        await bench.context("first" * 100_000)
        await bench.context({"second": 2})
        await bench.out("x = 1\ny = context_0[:5]")
        async with bench.running(BUSY) as task:
            await bench.until_streamed("here")
            ran = kill(environment, victim)
        result = task.result()
        assert result.stopped == "exited"
        assert (result.error or "").startswith("the REPL ended in this cell: its sandbox was lost: ")
        assert sorted(result.lost or ()) == ["x", "y"]
        assert await bench.out("context, len(context_0), 'x' in globals()") == "({'second': 2}, 500000, False)\n"
        assert len(environment.made) == 2
        await are_gone(ran)
        assert not os.path.exists(environment.made[0].folder)
    nothing_left(environment)


@pytest.mark.parametrize("victim", VICTIMS)
async def test_a_sandbox_that_dies_between_two_cells_is_replaced_and_the_next_cell_says_what_was_lost(victim: str) -> None:
    environment = loopback()
    async with open_bench(subject(environment)) as bench:
        await bench.context("c" * 100_000)
        await bench.out("x = 1")
        kill(environment, victim)
        async with asyncio.timeout(PATIENCE_S):
            assert bench.repl._worker is not None
            await bench.repl._worker.exited
        result = await bench.cell("print(len(context))")
        assert (result.output, result.error, result.stopped, result.lost) == ("100000\n", None, None, ("x",))


@pytest.mark.parametrize("victim", VICTIMS)
async def test_a_sub_call_of_a_sandbox_that_dies_is_cancelled(victim: str) -> None:
    environment = loopback()
    async with open_bench(subject(environment)) as bench:
        async with bench.running("llm_query('hang')") as task:
            await bench.script.until(lambda: bench.script.prompts == ["hang"])
            kill(environment, victim)
        assert "its sandbox was lost" in (task.result().error or "")
        await bench.script.until(lambda: bench.script.cancelled == ["hang"])
        assert bench.script.in_flight == 0


async def test_a_sandbox_that_dies_in_each_cell_is_replaced_each_time() -> None:
    environment = loopback()
    async with open_bench(subject(environment)) as bench:
        for number in range(3):
            await bench.out(f"x{number} = 1")
            bench.streamed.clear()
            async with bench.running(BUSY) as task:
                await bench.until_streamed("here")
                kill(environment, "broker")
            assert task.result().lost == (f"x{number}",)
        assert await bench.out("1 + 1") == "2\n"
    assert len(environment.made) == 4
    nothing_left(environment)


async def test_all_repls_of_a_lost_sandbox_move_into_one_fresh_one() -> None:
    environment = loopback()
    async with open_bench(subject(environment)) as bench:
        await bench.out("1")
        others = [bench.another() for _ in range(4)]
        try:
            for repl in others:
                await repl.run_cell("x = 1", 1)
            assert bench.repl._worker is not None
            exited = bench.repl._worker.exited
            kill(environment, "everything")
            async with asyncio.timeout(PATIENCE_S):
                await exited
            results = await asyncio.gather(*(repl.run_cell("print('there')", 2) for repl in others))
            assert [(result.output, result.lost) for result in results] == [("there\n", ("x",))] * 4
            assert len(environment.made) == 2
        finally:
            await asyncio.gather(*(repl.close() for repl in others))


async def test_a_broker_that_is_another_one_at_the_same_url_is_a_loss_that_is_said() -> None:
    async with open_gateway() as gateway:
        environment = loopback(gateway)
        async with open_bench(subject(environment)) as bench:
            await bench.context("c" * 100_000)
            await bench.out("kept = 1")
            async with restarted(environment) as url, bench.running(BUSY) as task:
                await bench.until_streamed("here")
                gateway.upstream = url
                gateway.reset_connections()
            result = task.result()
            assert "the broker was restarted, and what ran there is gone" in (result.error or "")
            assert result.lost == ("kept",)
            assert await bench.out("len(context)") == "100000\n"
    nothing_left(environment)


@asynccontextmanager
async def restarted(environment: LoopbackREPL) -> AsyncIterator[str]:
    """Another broker with the same token; its URL."""
    room = LoopbackSandbox(environment.python, None)
    try:
        archive = f"{environment.made[-1].folder}/arlm-broker.pyz"
        told = {"token": TOKENS[environment.made[-1].folder], "host": "127.0.0.1", "port": 0, "folder": room.folder}
        yield (await room.start(archive, json.dumps(told).encode() + b"\n")).url
    finally:
        await room.destroy()


TOKENS: dict[str, str] = {}


@pytest.fixture(autouse=True)
def tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remember what each broker was told."""
    start = LoopbackSandbox.start

    async def remembered(self: LoopbackSandbox, archive: str, told: bytes) -> Reach:
        TOKENS[self.folder] = json.loads(told)["token"]
        return await start(self, archive, told)

    TOKENS.clear()
    monkeypatch.setattr(LoopbackSandbox, "start", remembered)


async def test_a_gateway_that_is_down_for_too_long_costs_the_sandbox_and_not_the_run() -> None:
    async with open_gateway() as gateway:
        environment = loopback(gateway, lost_seconds=0.3)
        async with open_bench(subject(environment)) as bench:
            await bench.out("x = 1")
            async with bench.running("llm_query('hang')") as task:
                await bench.script.until(lambda: bench.script.in_flight == 1)
                gateway.plan = [AnswerInstead(status=503, seconds=60.0)]
                gateway.reset_connections()
                await bench.script.until(lambda: bench.script.cancelled == ["hang"])
                gateway.plan = None
            result = task.result()
            assert "nothing came from the sandbox's broker for" in (result.error or "")
            assert "status 503" in (result.error or "")
            assert result.lost == ("x",)
            assert await bench.out("1 + 1") == "2\n"
    assert len(environment.made) == 2
    nothing_left(environment)


async def test_an_outage_while_a_worker_is_started_costs_time_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "KILL_SECONDS", 0.05)
    monkeypatch.setattr(control, "ALIVE_SECONDS", 0.05)
    monkeypatch.setitem(LMHandler.__init__.__kwdefaults__, "hello_seconds", 0.1)
    async with open_gateway() as gateway:
        environment = loopback(gateway)
        async with open_bench(subject(environment)) as bench:
            await bench.out("x = 1")
            other = bench.another()
            gateway.plan = [AnswerInstead(status=503, seconds=1.0)]
            gateway.reset_connections()
            try:
                assert (await other.run_cell("print('there')", 1)).output == "there\n"
            finally:
                await other.close()
            assert await bench.out("x") == "1\n"
    assert len(environment.made) == 1


async def test_an_outage_while_a_cell_is_stopped_costs_no_variables() -> None:
    async with open_gateway() as gateway, open_bench(subject(loopback(gateway)), cell_timeout=1.0) as bench:
        await bench.out("x = 1")
        async with bench.running(BUSY) as task:
            await bench.until_streamed("here")
            gateway.plan = [AnswerInstead(status=503, seconds=1.0 + 1.5 * GRACE_SECONDS)]
            gateway.reset_connections()
        assert (task.result().stopped, task.result().lost) == ("timeout", None)
        assert await bench.out("x") == "1\n"


async def test_an_outage_between_two_questions_costs_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repl, "IDLE_SECONDS", 1.0)
    model = ScriptedLM([says("globals().setdefault('kept', 7)"), says("'kept' in globals()")])
    async with open_gateway() as gateway, arlm.RLM(model=model, environment=loopback(gateway)).session() as session:
        assert (await session.run("one")).answer == "7"
        gateway.plan = [AnswerInstead(status=503, seconds=2.0)]
        gateway.reset_connections()
        assert (await session.run("two")).answer == "True"


async def test_a_gateway_that_stays_down_is_an_error_and_the_place_may_be_used_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_gateway() as gateway:
        environment = loopback(gateway, lost_seconds=0.3)
        async with open_bench(subject(environment)) as bench:
            await bench.out("x = 1")
            monkeypatch.setattr(poller, "START_SECONDS", 0.3)
            gateway.plan = lambda _seen: AnswerInstead(status=503)
            gateway.reset_connections()
            async with asyncio.timeout(PATIENCE_S):
                assert bench.repl._worker is not None
                await bench.repl._worker.exited
            with pytest.raises(SandboxError, match="its broker was not heard of"):
                await bench.cell("1")
            gateway.plan = None
            monkeypatch.setattr(poller, "START_SECONDS", 60.0)
            assert (await bench.cell("1")).lost == ("x",)
    assert len(environment.made) == 3
    nothing_left(environment)


async def test_a_run_whose_sandbox_dies_goes_on_and_the_model_is_told() -> None:
    environment = loopback()

    def on_event(event: Any) -> None:
        if event.type == "cell_output" and len(environment.made) == 1:
            kill(environment, "broker")

    model = ScriptedLM([cell("half = context[:50]"), cell(BUSY), says("len(context), 'half' in globals()")])
    result = await arlm.run("q", context="c" * 100_000, model=model, environment=environment, on_event=on_event)
    assert result.answer == "(100000, False)"
    said = "".join(str(message["content"]) for message in model.root_calls[-1].messages)
    assert "its sandbox was lost: its broker ended with status -9" in said
    assert "half" in said
    nothing_left(environment)


class Dying(LoopbackREPL):
    """Its sandboxes die at a step, the first so many times.

    Attributes:
        step: of the first upload (``archive``), of a later one (``context``), before or after the start of the broker.
        left: how many still do.
        fails: whether the step itself fails, as it does where a provider tells.
    """

    def __init__(self, step: str, *, deaths: int = 1, fails: bool = False) -> None:
        super().__init__()
        self.step, self.left, self.fails = step, deaths, fails

    async def create(self) -> Sandbox:
        sandbox = await super().create()
        sandbox.__class__ = DyingSandbox
        sandbox.environment = self  # type: ignore[attr-defined]
        return sandbox

    def dies(self, step: str) -> None:
        if step == self.step and self.left:
            self.left -= 1
            sandbox = self.made[-1]
            if sandbox.process is not None:
                kill(self, "everything")
            if self.fails:
                raise SandboxError(f"the machine ended at {step}")


class DyingSandbox(LoopbackSandbox):
    environment: Dying

    async def upload(self, path: str, data: AsyncIterator[bytes]) -> None:
        self.environment.dies("archive" if path.endswith(".pyz") else "context")
        await super().upload(path, data)

    async def start(self, archive: str, told: bytes) -> Reach:
        self.environment.dies("start")
        reach = await super().start(archive, told)
        self.environment.dies("started")
        return reach


@pytest.mark.parametrize(("step", "fails"), [("archive", True), ("start", True), ("started", True), ("started", False)])
async def test_a_sandbox_that_dies_while_it_is_opened_is_an_error_and_nothing_is_left(step: str, fails: bool) -> None:
    environment = Dying(step, fails=fails)
    with pytest.raises(SandboxError, match=f"the machine ended at {step}" if fails else "its broker ended with status -9"):
        async with open_bench(subject(environment)):
            pass
    nothing_left(environment)


@pytest.mark.parametrize(("step", "fails"), [("archive", True), ("start", True), ("started", False)])
async def test_a_successor_that_dies_too_is_an_error_and_the_next_one_serves(step: str, fails: bool) -> None:
    environment = Dying(step, deaths=0, fails=fails)
    async with open_bench(subject(environment)) as bench:
        await bench.context("c" * 100_000)
        await bench.out("x = 1")
        assert bench.repl._worker is not None
        kill(environment, "everything")
        async with asyncio.timeout(PATIENCE_S):
            await bench.repl._worker.exited
        environment.left = 1
        with pytest.raises(SandboxError):
            await bench.cell("1")
        result = await bench.cell("print(len(context))")
        assert (result.output, result.lost) == ("100000\n", ("x",))
    assert len(environment.made) == 3
    nothing_left(environment)


async def test_a_sandbox_that_dies_while_a_context_is_uploaded_is_an_error_or_replaced() -> None:
    environment = Dying("context", fails=True)
    async with open_bench(subject(environment)) as bench:
        await bench.out("x = 1")
        with pytest.raises(SandboxError, match="the machine ended at context"):
            await bench.context("c" * 100_000)
        assert bench.repl._worker is not None
        async with asyncio.timeout(PATIENCE_S):
            await bench.repl._worker.exited
        await bench.context("d" * 200_000)
        result = await bench.cell("print(len(context), 'x' in globals())")
        assert (result.output, result.lost) == ("200000 False\n", ("x",))
    assert len(environment.made) == 2
    nothing_left(environment)


async def test_a_death_that_an_upload_does_not_notice_is_told_with_the_next_cell() -> None:
    environment = Dying("context")
    async with open_bench(subject(environment)) as bench:
        await bench.out("x = 1")
        worker = bench.repl._worker
        assert worker is not None
        try:
            await bench.context("c" * 100_000)
        except SandboxError:
            bench.contexts.clear()
        async with asyncio.timeout(PATIENCE_S):
            await worker.exited
        if not bench.contexts:
            await bench.context("c" * 100_000)
        result = await bench.cell("print(len(context))")
        assert (result.output, result.lost) == ("100000\n", ("x",))


async def test_a_wrong_token_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "START_SECONDS", 0.3)
    start = LoopbackSandbox.start

    async def mistaken(self: LoopbackSandbox, archive: str, told: bytes) -> Reach:
        return await start(self, archive, json.dumps({**json.loads(told), "token": "not the host's token"}).encode() + b"\n")

    monkeypatch.setattr(LoopbackSandbox, "start", mistaken)
    environment = loopback()
    with pytest.raises(SandboxError, match=r"its broker was not heard of.*status 401.*the token is not valid here"):
        await arlm.run("q", model=ScriptedLM([]), environment=environment)
    nothing_left(environment)


@pytest.mark.parametrize("python", ["/nowhere/python3", "/bin/false"])
async def test_a_python_that_is_none_is_an_error_that_names_it(python: str) -> None:
    environment = LoopbackREPL(python=python)
    with pytest.raises(SandboxError, match=python):
        async with open_bench(subject(environment)):
            pass
    nothing_left(environment)


# -- lifetimes ---------------------------------------------------------------------------------------------------------


async def open_and_close(environment: Environment) -> None:
    async with open_scratch() as scratch, LMHandler(directory=scratch) as handler, environment.open(handler, scratch):
        pass


@dataclass
class Stages:
    """Acts when the opening of a place comes to a stage."""

    stage: str
    act: Callable[[], object]
    seen: list[str] = field(default_factory=list)

    def come(self, stage: str) -> None:
        self.seen.append(stage)
        if stage == self.stage:
            self.act()

    def over(self, owner: type, name: str, patch: pytest.MonkeyPatch) -> None:
        """Come to ``owner.name`` before and after it."""
        original = getattr(owner, name)

        async def staged(*args: Any, **options: Any) -> Any:
            self.come(f"before {name}")
            result = await original(*args, **options)
            self.come(f"after {name}")
            return result

        patch.setattr(owner, name, staged)


STEPS = [(LoopbackREPL, "create"), (LoopbackSandbox, "upload"), (LoopbackSandbox, "start"), (Poller, "open"), (Control, "greet")]


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("name", [name for _, name in STEPS])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_cancelled_at_any_step_of_its_opening_nothing_is_left(
    when: str, name: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = loopback()

    def cancel() -> None:
        task.cancel()
        for number in range(1, times):
            asyncio.get_running_loop().call_later(0.02 * number, task.cancel)

    stages = Stages(f"{when} {name}", cancel)
    for owner, each in STEPS:
        stages.over(owner, each, monkeypatch)
    task = asyncio.create_task(open_and_close(environment))
    await asyncio.wait({task})
    assert stages.stage in stages.seen
    assert task.cancelled()
    assert len(environment.made) == 1
    nothing_left(environment)


async def test_cancelled_between_any_two_awaits_nothing_is_left() -> None:
    async def work() -> None:
        await open_and_close(loopback())

    await work()
    steps = await count_steps(work)
    assert steps > 30
    ends = []
    for step in range(2, steps, max(1, steps // 10)):
        before = held()
        ends.append(await act_at(work, {step: asyncio.Task.cancel, step + 1: asyncio.Task.cancel}))
        assert asyncio.all_tasks() == {asyncio.current_task()}, step
        assert left_since(before, 2.0) == set(), step
    assert {type(end) for end in ends} <= {asyncio.CancelledError, type(None)}
    assert sum(end is not None for end in ends) > len(ends) // 2


async def test_cancelled_between_any_two_awaits_of_a_replacement_nothing_is_left() -> None:
    async def work() -> None:
        environment = loopback()
        async with open_bench(subject(environment)) as bench:
            await bench.context("c" * 100_000)
            await bench.out("1")
            worker = bench.repl._worker
            assert worker is not None
            kill(environment, "everything")
            await worker.exited
            await bench.cell("2")

    await work()
    steps = await count_steps(work)
    ends = []
    for step in range(steps // 2, steps, max(1, steps // 16)):
        before = held()
        ends.append(await act_at(work, {step: asyncio.Task.cancel, step + 1: asyncio.Task.cancel, step + 5: asyncio.Task.cancel}))
        assert asyncio.all_tasks() == {asyncio.current_task()}, step
        assert left_since(before, 2.0) == set(), step
    assert sum(isinstance(end, asyncio.CancelledError) for end in ends) > len(ends) // 2


async def test_an_upload_that_is_cancelled_lets_go_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()
    upload = LoopbackSandbox.upload

    async def hangs(self: LoopbackSandbox, path: str, data: AsyncIterator[bytes]) -> None:
        if path.endswith(".pyz"):
            await upload(self, path, data)
            return
        async for _ in data:
            begun.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(LoopbackSandbox, "upload", hangs)
    async with open_bench(subject(loopback())) as bench:
        file = await write_context("c" * 100_000, bench.scratch / "file")
        putting = asyncio.create_task(bench.place.put(file))
        await begun.wait()
        assert str(file.path) in {it.path for it in psutil.Process().open_files()}
        putting.cancel()
        await asyncio.wait({putting})
        assert str(file.path) not in {it.path for it in psutil.Process().open_files()}


class Slow(LoopbackREPL):
    """Its sandboxes are made once ``go_on`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.cancelled = False

    async def create(self) -> Sandbox:
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return await super().create()


async def test_a_slow_making_is_not_cancelled_and_what_it_makes_is_destroyed() -> None:
    environment = Slow()
    task = asyncio.create_task(open_and_close(environment))
    await environment.begun.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not task.done()
    environment.go_on.set()
    await asyncio.wait({task})
    assert task.cancelled()
    assert not environment.cancelled
    assert len(environment.made) == 1
    nothing_left(environment)


async def test_a_making_is_waited_for_longer_than_other_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(finish.__kwdefaults__, "seconds", 0.05)
    environment = Slow()
    task = asyncio.create_task(open_and_close(environment))
    await environment.begun.wait()
    task.cancel()
    asyncio.get_running_loop().call_later(0.3, environment.go_on.set)
    await asyncio.wait({task})
    assert task.cancelled()
    assert len(environment.made) == 1
    nothing_left(environment)


@pytest.mark.parametrize("step", ["create", "start"])
async def test_a_cloud_that_never_answers_is_an_error_in_time_and_nothing_is_left(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Slow()
    environment.start_seconds = 0.5
    if step == "start":
        environment.go_on.set()
        monkeypatch.setattr(brokered, "GRACE_SECONDS", 0.1)
        monkeypatch.setattr(LoopbackSandbox, "start", stubborn)
    else:
        asyncio.get_running_loop().call_later(1.0, environment.go_on.set)
    with pytest.raises(SandboxError, match=r"no sandbox could be started within 0\.5 s"):
        await open_and_close(environment)
    assert len(environment.made) == 1
    nothing_left(environment)
    for task in STUBBORN:
        task.cancel()
    STUBBORN.clear()


STUBBORN: list[asyncio.Task[Any]] = []


async def stubborn(_self: LoopbackSandbox, _archive: str, _told: bytes) -> Reach:
    """A start that a single cancel does not end."""
    task = asyncio.current_task()
    assert task is not None
    STUBBORN.append(task)
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    return await asyncio.Event().wait()  # type: ignore[return-value]


async def test_a_lost_sandbox_that_takes_long_to_end_is_waited_for_when_its_place_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = asyncio.Event()
    destroy = LoopbackSandbox.destroy

    async def slowly(self: LoopbackSandbox) -> None:
        if self is environment.made[0]:
            await go_on.wait()
        await destroy(self)

    monkeypatch.setattr(LoopbackSandbox, "destroy", slowly)
    monkeypatch.setattr(brokered, "finish", functools.partial(finish, seconds=0.05))
    environment = loopback()
    async with open_bench(subject(environment)) as bench:
        await bench.out("x = 1")
        kill(environment, "everything")
        async with asyncio.timeout(PATIENCE_S):
            assert bench.repl._worker is not None
            await bench.repl._worker.exited
        assert await bench.out("2") == "2\n"
        assert os.path.exists(environment.made[0].folder)
        asyncio.get_running_loop().call_later(0.3, go_on.set)
    assert len(environment.made) == 2
    nothing_left(environment)


async def test_a_making_that_was_cancelled_by_itself_is_no_error_of_closing() -> None:
    environment = Slow()
    async with open_scratch() as scratch, LMHandler(directory=scratch) as handler:
        room = Room(environment, handler)
        opening = asyncio.create_task(room.open())
        await environment.begun.wait()
        assert room._making is not None
        room._making.cancel()  # as the end of an event loop does
        await asyncio.wait({opening})
        await room.close()
        assert room.closed


async def test_a_making_that_outlives_the_patience_of_its_place_is_destroyed_when_it_is_there() -> None:
    environment = Slow()
    async with open_scratch() as scratch, LMHandler(directory=scratch) as handler:
        room = Room(environment, handler)
        opening = asyncio.create_task(room.open())
        await environment.begun.wait()
        opening.cancel()
        await asyncio.wait({opening})
        closing = asyncio.create_task(room.close())
        await asyncio.sleep(0)
        closing.cancel()  # what `finish` does after ten seconds
        await asyncio.wait({closing})
        assert closing.cancelled()
        environment.go_on.set()
        await room.close()
    assert len(environment.made) == 1
    nothing_left(environment)


async def test_a_making_that_fails_after_it_was_given_up_is_no_unread_error(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Slow):
        async def create(self) -> Sandbox:
            self.begun.set()
            await self.go_on.wait()
            raise SandboxError("no machine is free")

    environment = Failing()
    task = asyncio.create_task(open_and_close(environment))
    await environment.begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    environment.go_on.set()
    await asyncio.wait({task})
    assert task.cancelled()
    assert caplog.records == []


@pytest.mark.parametrize("error", [SandboxError("the provider did not answer"), ValueError("a mistake of the adapter's")])
async def test_a_destroying_that_fails_is_logged_and_not_raised(
    error: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    destroy = LoopbackSandbox.destroy

    async def fails(self: LoopbackSandbox) -> None:
        await destroy(self)
        raise error

    monkeypatch.setattr(LoopbackSandbox, "destroy", fails)
    result = await arlm.run("q", model=ScriptedLM([says("1")]), environment=loopback())
    assert result.answer == "1"
    assert str(error) in caplog.text
    assert [record.levelno for record in caplog.records if record.levelno >= logging.WARNING] != []


async def test_a_destroying_that_fails_does_not_hide_why_the_opening_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    destroy = LoopbackSandbox.destroy

    async def fails(self: LoopbackSandbox) -> None:
        await destroy(self)
        raise SandboxError("the provider did not answer")

    monkeypatch.setattr(LoopbackSandbox, "destroy", fails)
    with pytest.raises(SandboxError, match="the machine ended at started"):
        await open_and_close(Dying("started", fails=True))


async def test_a_broker_that_does_not_react_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arlm.testing.loopback.STOP_SECONDS", 0.2)
    environment = loopback()
    async with open_bench(subject(environment)) as bench:
        await bench.out("x = 1")
        broker = broker_of(environment)
        ran = [broker, *broker.children(recursive=True)]
        await bench.repl.close()
        os.kill(broker.pid, signal.SIGSTOP)
    await are_gone(ran)
    nothing_left(environment)


async def hang(_messages: list[arlm.Message]) -> str:
    return await asyncio.Event().wait()  # type: ignore[return-value]


@pytest.mark.parametrize("how", ["answer", "error", "cancel", "timeout"])
async def test_however_a_run_ends_nothing_of_its_sandbox_is_left(how: str) -> None:
    environment = loopback()
    begun = asyncio.Event()

    async def sub(_messages: list[arlm.Message]) -> str:
        begun.set()
        if how == "error":
            raise arlm.AuthError("no", provider="test")
        if how == "answer":
            return "ok"
        return await hang(_messages)

    model = ScriptedLM([cell("open('file', 'w').write('x')\nr = llm_query('s')"), *[says("r")] * 9], sub=sub)
    if how == "error":
        model = ScriptedLM([cell("1"), arlm.AuthError("no", provider="test")])
        begun.set()
    task = asyncio.create_task(arlm.run("q", model=model, environment=environment, timeout=2.0 if how == "timeout" else 60.0))
    if how == "cancel":
        await begun.wait()
        task.cancel()
    await asyncio.wait({task})
    match how:
        case "answer":
            assert task.result().answer == "ok"
        case "cancel":
            assert task.cancelled()
        case "timeout":
            assert isinstance(task.exception(), arlm.RunTimeout)
        case _:
            assert isinstance(task.exception(), arlm.AuthError)
    assert len(environment.made) == 1
    nothing_left(environment)


async def test_of_a_host_that_was_killed_everything_in_the_sandbox_ends_by_itself() -> None:
    script = TESTS / "faults" / "loopback_host.py"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        variables = {**os.environ, "TMPDIR": folder, "PYTHONPATH": str(TESTS)}
        with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=variables) as host:
            try:
                assert host.stdout is not None
                line = await asyncio.to_thread(host.stdout.readline)
                ran = [psutil.Process(int(pid)) for pid in line.split()]
            finally:
                host.kill()
        assert len(ran) >= 4  # broker, supervisor, worker, what has detached itself
        assert ran[0].is_running()
        await are_gone(ran)


# -- whole runs --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def behind() -> AsyncIterator[LoopbackREPL]:
    """The environment, behind a gateway that passes everything on."""
    async with open_gateway() as gateway:
        environment = loopback(gateway)
        yield environment
        nothing_left(environment)
        assert gateway.counts["requests"] > 10


async def test_a_run_with_children_and_tools() -> None:
    async def slowly(name: str) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"name": name}

    def add(a: int, b: int) -> int:
        return a + b

    child = run("answer.update(content=str([len(context), add(1, 2), llm_query('deep')]), ready=True)")
    parent = run(f"r = rlm_query({child!r}, context='c' * 100_000)\nanswer.update(content=str([r, slowly('x'), table]), ready=True)")
    async with behind() as environment:
        result = await arlm.run(
            parent, model=ProgramLM(), environment=environment, max_depth=2, tools={"add": add, "slowly": slowly, "table": [1, {"a": "ü"}]}
        )
    assert "[100000, 3, 'ok: deep']" in result.answer
    assert result.answer.endswith("{'name': 'x'}, [1, {'a': 'ü'}]]")
    assert len(result.children) == 1


async def test_a_run_with_two_hundred_children() -> None:
    leaf = final("str(len(llm_query('x')))")
    parent = run(f"answer.update(content=str(rlm_query_batched([{leaf!r}] * 200) == ['5'] * 200), ready=True)")
    async with behind() as environment:
        result = await arlm.run(parent, model=ProgramLM(), environment=environment, max_depth=2)
    assert result.answer == "True"
    assert len(result.children) == 200
    assert len(environment.made) == 1


JSON_MB = {"rows": [{"number": number, "text": "ü" * 900} for number in range(11_000)]}


@pytest.mark.parametrize("kind", ["text", "path", "bytes", "json"])
async def test_a_context_of_twenty_megabytes(kind: str, tmp_path: Path) -> None:
    text = "0123456789" * 2_000_000
    (tmp_path / "file.txt").write_text(text)
    context, seen = {
        "text": (text, (20_000_000, "789")),
        "path": (tmp_path / "file.txt", (20_000_000, "789")),
        "bytes": (text.encode(), (20_000_000, b"789")),
        "json": (JSON_MB, (1, 11_000, 10_999)),
    }[kind]
    code = "len(context), len(context['rows']), context['rows'][-1]['number']" if kind == "json" else "len(context), context[-3:]"
    async with behind() as environment:
        result = await arlm.run("q", context=context, model=ScriptedLM([says(code)]), environment=environment)
    assert result.answer == str(seen)


async def test_a_session_keeps_its_variables_and_takes_contexts_later() -> None:
    model = ScriptedLM([says("globals().setdefault('kept', 7)"), says("(kept, len(context), len(history))"), says("(kept, context['a'])")])
    async with behind() as environment, arlm.RLM(model=model, environment=environment).session() as session:
        assert (await session.run("one")).answer == "7"
        assert (await session.run("two", context="c" * 300_000)).answer == "(7, 300000, 1)"
        assert (await session.run("three", context={"a": list(range(3))})).answer == "(7, [0, 1, 2])"
    assert len(environment.made) == 1


async def test_a_session_whose_sandbox_died_between_two_questions_goes_on() -> None:
    model = ScriptedLM([says("globals().setdefault('kept', 7)"), cell("print(len(context))"), says("'kept' in globals()")])
    environment = loopback()
    async with arlm.RLM(model=model, environment=environment).session() as session:
        assert (await session.run("one", context="c" * 300_000)).answer == "7"
        broker = broker_of(environment)
        kill(environment, "everything")
        await are_gone([broker])
        assert (await session.run("two")).answer == "False"
    said = "".join(str(message["content"]) for message in model.root_calls[-1].messages)
    assert "kept" in said
    nothing_left(environment)


# -- what an adapter gets ----------------------------------------------------------------------------------------------


async def test_many_contexts_at_once_survive_a_death_in_between() -> None:
    environment = loopback()
    async with open_bench(subject(environment)) as bench:
        await bench.context("0" * 100_000)
        await bench.out("1")
        kill(environment, "everything")
        async with asyncio.timeout(PATIENCE_S):
            assert bench.repl._worker is not None
            await bench.repl._worker.exited
        files = [await write_context(str(number) * 100_000, bench.scratch / f"file{number}") for number in range(1, 6)]
        paths = await asyncio.gather(*(bench.place.put(file) for file in files))
        for number, path in enumerate(paths, 1):
            await bench.repl.load(Loaded(name=f"context_{number}", aliases=(), path=path))
        shown = await bench.cell("print([globals()[f'context_{n}'][:1] for n in range(6)])")
    assert shown.output == "['0', '1', '2', '3', '4', '5']\n"
    assert len(environment.made) == 2


async def test_a_context_that_was_dropped_does_not_keep_a_successor_from_opening() -> None:
    environment = loopback()
    async with open_bench(subject(environment)) as bench:
        await bench.context("a" * 100_000)
        await bench.context("b" * 100_000)
        gone = bench.contexts[0]
        bench.repl.contexts.remove(gone)
        await bench.place.drop(gone.path)
        os.remove(bench.scratch / "contexts" / "context_0")
        await bench.out("x = 1")
        worker = bench.repl._worker
        kill(environment, "broker")
        async with asyncio.timeout(PATIENCE_S):
            assert worker is not None
            await worker.exited
        assert (await bench.cell("print(context[:1])")).output == "b\n"


async def test_what_runs_there_does_not_end_while_the_host_waits_for_news() -> None:
    environment = loopback(idle_seconds=1.0)
    async with open_bench(subject(environment)) as bench, bench.running("print(llm_query('hold'))") as task:
        await bench.script.until(lambda: bench.script.in_flight == 1)
        await asyncio.sleep(2.5)
        bench.script.release.set()
        assert (await task).output == "hold\n"
    assert len(environment.made) == 1


async def test_one_poll_may_be_lost_before_what_runs_there_ends() -> None:
    async with open_gateway() as gateway:
        async with open_bench(subject(loopback(gateway, idle_seconds=9.0))) as bench:
            await bench.out("1")
        assert {re.findall(r"wait=\d+", entry.path)[0] for entry in gateway.log if entry.path.startswith("/pending")} == {
            "wait=0",
            "wait=3",
        }


async def test_a_call_waits_for_no_timer() -> None:
    async with open_gateway() as gateway:
        environment = loopback(gateway, wait_seconds=60.0, lost_seconds=180.0, idle_seconds=600.0)
        async with open_bench(subject(environment)) as bench:
            await bench.out("1")
            before = gateway.counts["requests"]
            await bench.out("for n in range(100): llm_query(str(n))")
            asked = gateway.counts["requests"] - before
            pending = [entry for entry in gateway.log[before:] if entry.path.startswith("/pending")]
        assert 200 <= asked <= 240
        assert len(pending) <= 120


# -- an adapter as the document has it ----------------------------------------------------------------------------------


async def test_the_adapter_of_the_document_serves_runs_and_is_replaced_when_it_dies() -> None:
    page = (TESTS.parent / "docs" / "environments.md").read_text("utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class ShedREPL" in block]
    names: dict[str, Any] = {"__name__": "shed"}
    exec(compile(code, "environments.md", "exec", dont_inherit=True), names)
    made = []

    class Noted(names["ShedREPL"]):  # type: ignore[misc]
        async def create(self) -> Sandbox:
            made.append(await super().create())
            return made[-1]

    def die(_: object) -> str:
        made[-1].process.kill()
        return "dead"

    cells = [cell("x = 1\nllm_query('die')"), says("len(context), 'x' in globals(), llm_query('hello')")]
    model = ScriptedLM(cells, sub=lambda messages: die(messages) if messages[-1]["content"] == "die" else "hi")
    result = await arlm.run("q", context="c" * 1000, model=model, environment=Noted())
    assert result.answer == "(1000, False, 'hi')"
    assert len(made) == 2
    assert not any(os.path.exists(shed.folder) for shed in made)
    assert all(shed.process.returncode is not None for shed in made)


class Shell(LoopbackSandbox):
    """Its programs are started by a line of shell, without a standard input, and nobody hears what they say."""

    async def start(self, archive: str, told: bytes) -> Reach:
        page = (TESTS.parent / "docs" / "environments.md").read_text("utf-8")
        (line,) = re.findall(r"```sh\n(.*ARCHIVE.*)\n```", page)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        file = f"{self.folder}/told"
        TOKENS[self.folder] = json.loads(told)["token"]
        Path(file).write_bytes(json.dumps({**json.loads(told), "port": port, "host": "0.0.0.0"}).encode())
        self.process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", line.replace("python3", self._python), stdin=asyncio.subprocess.DEVNULL,
            env={"TOLD": file, "ARCHIVE": archive}, start_new_session=True,
        )  # fmt: skip
        return Reach(url=f"http://127.0.0.1:{port}", port=port)


async def test_a_sandbox_without_a_standard_input_serves_runs_and_no_cell_finds_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    create = LoopbackREPL.create

    async def created(self: LoopbackREPL) -> Sandbox:
        sandbox = await create(self)
        sandbox.__class__ = Shell
        return sandbox

    monkeypatch.setattr(LoopbackREPL, "create", created)
    environment = loopback()
    async with open_bench(subject(environment)) as bench:
        assert await bench.out("llm_query('hello')") == "'hello'\n"
        folder = Path(environment.made[0].folder)
        token = TOKENS[str(folder)]
        assert not (folder / "told").exists()
        assert not any(token.encode() in file.read_bytes() for file in folder.rglob("*") if file.is_file())
    nothing_left(environment)
