"""What hostile code tries in a sandbox behind a broker: against this machine, against the broker, and against another worker of it."""

import json
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from arlm.environments.brokered import BrokeredPlace
from arlm.environments.sandbox import Reach
from arlm.guest.confine import _image, grade
from arlm.testing import payloads, payloads_broker, payloads_container
from arlm.testing.bench import Bench, Subject, open_bench
from arlm.testing.escapes import Targets, attempt_each, has_ended, open_targets
from arlm.testing.loopback import LoopbackREPL, LoopbackSandbox
from arlm.testing.neighbours import attempt_beside
from arlm.testing.payloads import CORPUS, Escape, Proof

FAMILIES = {
    "reading": payloads.READING,
    "reaching": payloads.REACHING,
    "harming": payloads.HARMING,
    "metadata": payloads.METADATA,
    "kernel": payloads.KERNEL_OBJECTS,
}
BROKER = payloads_broker.BROKER + payloads_broker.REACH
BESIDE = payloads_container.BESIDE + payloads_broker.NEIGHBOUR
WALLS = pytest.mark.skipif(not all(grade().values()), reason="this kernel lacks a part of the confinement (see `arlm doctor`)")
# What gets through where the kernel confines nothing, and the broker has the user of its cells, as it has in many sandboxes.
REACHED_IN_THE_OPEN = {
    "connect_to_the_broker", "read_the_archive", "change_the_archive", "plant_a_module_beside_the_guest", "write_contexts",
    "remove_contexts", "read_a_neighbour_s_door", "find_another_s_door",
}  # fmt: skip
TEETH = ("speak_for_the_host", "have_the_host_s_token_in_memory")
BEGINS_CHARS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A sandbox with a Bench in it, and the targets that this machine has.

    Attributes:
        broker: its process.
        token: the host's.
        told: what payloads are told.
    """

    bench: Bench
    targets: Targets
    environment: LoopbackREPL
    broker: psutil.Process
    token: str
    told: dict[str, Any]

    async def seen(self, proof: Proof) -> bool:
        return self.targets.seen(proof) or (proof == "killed" and has_ended(self.told["supervisor"]))


@asynccontextmanager
async def staged(monkeypatch: pytest.MonkeyPatch, *, network: bool = False, own_image: bool = False) -> AsyncIterator[Stage]:
    """A stage, which at its end must be the one that it was."""
    monkeypatch.setattr(LoopbackREPL, "own_image", own_image)
    environment = LoopbackREPL(network=network)
    heard: list[dict[str, Any]] = []
    start = LoopbackSandbox.start

    async def started(self: LoopbackSandbox, archive: str, told: bytes) -> Reach:
        heard.append(json.loads(told))
        reach = await start(self, archive, told)
        heard[-1]["port"] = reach.port
        return reach

    monkeypatch.setattr(LoopbackSandbox, "start", started)
    subject = Subject(name="loopback", environment=lambda: environment)
    async with open_targets() as targets, open_bench(subject, cell_timeout=20.0) as bench:
        await bench.context("the context")
        await bench.out("1")
        (sandbox,), (facts,) = environment.made, heard
        assert sandbox.process is not None
        broker = psutil.Process(sandbox.process.pid)
        (supervisor,) = broker.children()
        told = {
            **targets.for_code(bench, supervisor.pid),
            "broker": broker.pid,
            "port": facts["port"],
            "sandbox": sandbox.folder,
            "begins": facts["token"][:BEGINS_CHARS],
            "epoch": "0" * 16,
        }
        yield Stage(bench=bench, targets=targets, environment=environment, broker=broker, token=facts["token"], told=told)
        assert environment.made == [sandbox], "the sandbox was replaced"
        assert (await bench.repl.run_cell("print(1)", 1)).output == "1\n"


async def reached(stage: Stage, tried: Iterable[Escape]) -> dict[str, str]:
    """Which payloads reached what this machine has, with what shows it."""
    targets = stage.targets
    return await attempt_each(stage.bench, tried, stage.told, canary=targets.canary, seen=stage.seen, restore=targets.restored)


async def reached_beside(stage: Stage, tried: Iterable[Escape]) -> dict[str, str]:
    """The same of what another worker of the place has."""
    return await attempt_beside(stage.bench, tried, stage.told)


async def beside(stage: Stage) -> str:
    """The folder of the worker that the stage's Bench has."""
    cell = await stage.bench.repl.run_cell("import os\nanswer.update(content=os.getcwd(), ready=True)", 1)
    assert isinstance(cell.answer, str)
    return cell.answer


@WALLS
@pytest.mark.parametrize("family", FAMILIES)
async def test_no_payload_gets_out_of_a_sandbox_or_to_a_neighbour(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    async with staged(monkeypatch) as stage:
        assert await reached(stage, FAMILIES[family]) == {}
        assert await reached_beside(stage, FAMILIES[family]) == {}


IMAGES = pytest.mark.parametrize("own_image", [False, True], ids=["closed disk", "own image"])


@WALLS
@IMAGES
async def test_no_payload_gets_to_the_broker_or_through_it(monkeypatch: pytest.MonkeyPatch, own_image: bool) -> None:
    async with staged(monkeypatch, own_image=own_image) as stage:
        assert await reached(stage, BROKER) == {}
        assert stage.broker.is_running()
        assert await reached_beside(stage, BESIDE) == {}


@WALLS
@IMAGES
async def test_with_a_network_a_cell_speaks_to_the_broker_and_is_refused_what_is_the_hosts(
    monkeypatch: pytest.MonkeyPatch, own_image: bool
) -> None:
    async with staged(monkeypatch, network=True, own_image=own_image) as stage:
        assert await reached(stage, payloads_broker.BROKER + payloads_broker.SPEAK) == {}
        stage.told["folder"] = await beside(stage)
        assert await reached(stage, payloads_broker.NEIGHBOUR) == {}
        assert set(await reached(stage, payloads_broker.REACH)) == {"connect_to_the_broker"}


async def test_the_payloads_get_through_where_workers_are_not_confined(monkeypatch: pytest.MonkeyPatch) -> None:
    settle = BrokeredPlace._settle

    def open_everything(self: BrokeredPlace) -> None:
        settle(self)
        self._confine = None

    monkeypatch.setattr(BrokeredPlace, "_settle", open_everything)
    async with staged(monkeypatch) as stage:
        stage.told["folder"] = await beside(stage)
        tried = [it for it in BROKER + payloads_broker.NEIGHBOUR if it.name in REACHED_IN_THE_OPEN]
        assert set(await reached(stage, tried)) == REACHED_IN_THE_OPEN


async def test_the_payloads_would_notice_a_token_that_is_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    speak, memory = (it for it in payloads_broker.SPEAK + payloads_broker.BROKER if it.name in TEETH)
    async with staged(monkeypatch, network=True) as stage:
        whole = Escape(name="whole", code=speak.code.replace('own + "x"', repr(stage.token)), proof="true")
        keeping = Escape(name="keeping", code=f"keep = {stage.token!r}\n{memory.code}", proof="true")
        assert set(await reached(stage, [whole, keeping])) == {"whole", "keeping"}


def test_the_names_of_all_corpora_are_unique() -> None:
    names = [it.name for it in (*CORPUS, *payloads_container.CONTAINER, *BROKER, *payloads_broker.SPEAK, *payloads_broker.NEIGHBOUR)]
    assert len(names) == len(set(names))


def test_a_closed_folder_is_left_out_of_the_image_by_whatever_name(tmp_path: Path) -> None:
    place = tmp_path / "above" / "place"
    (place / "w1").mkdir(parents=True)
    (tmp_path / "above" / "beside").write_text("")
    (tmp_path / "link").symlink_to(place)
    (tmp_path / "link above").symlink_to(place.parent)
    (tmp_path / "link inside").symlink_to(place / "w1")
    opened = _image(str(tmp_path / "link above" / "place"))
    assert str(tmp_path / "above" / "beside") in opened
    assert not [path for path in opened if f"{place}/".startswith(f"{os.path.realpath(path)}/")]
    assert not [path for path in opened if f"{os.path.realpath(path)}/".startswith(f"{place}/")]
    assert set(_image("")) >= {"/usr", "/etc"}
