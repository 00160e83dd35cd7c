"""What hostile code tries, in a container with the default options, against this machine and against another worker of the same container.

And what holds where a worker is not confined inside, as on kernels without Landlock; and that payloads get through where all is open.
"""

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from arlm.environments.docker import DockerREPL
from arlm.environments.docker_container import LABEL, Plan
from arlm.environments.owner import owner
from arlm.guest.confine import grade
from arlm.testing import payloads, payloads_container
from arlm.testing.bench import Bench, Subject, open_bench
from arlm.testing.escapes import Targets, attempt_each, has_ended, open_targets
from arlm.testing.neighbours import attempt_beside
from arlm.testing.payloads import CORPUS, Escape, Proof
from arlm.testing.payloads_container import CONTAINER
from docker_engine import Engine
from docker_image import client
from docker_proxy import over_tcp

pytestmark = pytest.mark.docker

FAMILIES = {
    "reading": payloads.READING,
    "reaching": payloads.REACHING,
    "harming": payloads.HARMING,
    "metadata": payloads.METADATA,
    "kernel": payloads.KERNEL_OBJECTS,
    "out": payloads_container.OUT,
    "supervisor": payloads_container.SUPERVISOR,
    "network": payloads_container.NETWORK,
    "beside": payloads_container.BESIDE,
}
WALLS = pytest.mark.skipif(not all(grade().values()), reason="this kernel lacks a part of the confinement (see `arlm doctor`)")

# Where workers are not confined inside, a cell does in its container what any process may: this is nobody's but its own run's.
INSIDE_ONLY = {
    "netlink_socket", "vsock_socket", "listen_tcp", "connect_by_io_uring", "set_up_io_uring", "ping", "use_the_kernel_s_ciphers",
    "memory_in_a_memfd", "memory_of_system_v", "queue_of_system_v", "semaphore_of_system_v", "queue_of_posix",
    "slow_everything_of_the_user_down", "slow_a_group_down", "child_of_the_supervisor", "orphans_out_of_the_tree",
    "order_disk_access_of_the_user",
    "lower_the_supervisor_s_limits", "list_neighbours", "handle_page_faults",
}  # fmt: skip
ENDS_THE_PLACE = {"send_the_supervisor_signal_15"}  # the one that the supervisor listens for; the run gets another container
# gVisor has no Landlock, shows each process of a user to the others, and has devices that are its own.
GVISOR_SHOWS = {"list_the_supervisor_s_descriptors", "read_the_supervisor_s_entries", "list_neighbours", "open_devices"}
# What an unconfined cell must be able to do to its neighbour: else payloads or targets have lost their teeth.
REACH_A_NEIGHBOUR = {
    "read_host_environ", "read_every_environ", "read_host_command_line", "read_credentials_in_home", "read_home_by_symlink",
    "read_by_subprocess", "read_another_runs_folder", "connect_unix", "connect_abstract", "kill_host", "stop_host", "kill_by_pidfd",
    "kill_after_setsid_and_double_fork", "ptrace_host", "write_host_memory", "write_outside", "write_outside_by_rename",
    "write_outside_by_symlink", "chmod", "change_times", "watch_a_closed_folder",
    "write_a_neighbour_s_folder", "plant_a_module", "read_a_neighbour_s_entries", "read_a_neighbour_s_memory", "write_a_neighbour_s_output",
    "attach_to_a_neighbour", "kill_a_neighbour", "enter_a_neighbour_s_folder_by_a_link",
}  # fmt: skip
# What gets through in a container that was given the host's network and a folder of it, with nothing confined inside.
REACH_THE_HOST = {
    "read_credentials_in_home", "read_home_by_symlink", "read_by_subprocess", "read_another_runs_folder", "connect_tcp",
    "connect_tcp_by_asyncio", "send_udp", "send_dns", "listen_tcp", "connect_unix", "send_unix_datagram", "connect_abstract",
    "write_outside", "write_outside_by_subprocess", "write_outside_by_symlink", "chmod", "change_times", "have_an_interface",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A container with a Bench in it, and the targets that this machine has.

    Attributes:
        pid: the container's first process, as this machine counts.
        facts: what ``docker inspect`` says.
    """

    bench: Bench
    targets: Targets
    facts: dict[str, Any]
    told: dict[str, Any]

    @property
    def pid(self) -> int:
        pid = self.facts["State"]["Pid"]
        assert isinstance(pid, int)
        return pid

    async def seen(self, proof: Proof) -> bool:
        return self.targets.seen(proof) or (proof == "killed" and has_ended(self.pid))


def containers(engine: Engine) -> list[dict[str, Any]]:
    """What the engine says of each container of this process."""
    with client(engine.url) as asked:
        found = asked.get("/containers/json", params={"all": "true", "filters": f'{{"label": ["{LABEL}={owner()}"]}}'}).json()
        return [asked.get(f"/containers/{it['Id']}/json").raise_for_status().json() for it in found]


@asynccontextmanager
async def staged(engine: Engine, *, url: str | None = None, **options: Any) -> AsyncIterator[Stage]:
    subject = Subject(name="docker", environment=lambda: DockerREPL(image=engine.image, engine=url or engine.url, **options))
    async with open_targets() as targets, open_bench(subject, cell_timeout=20.0) as bench:
        await bench.context("the context")
        (facts,) = containers(engine)
        told = {**targets.for_code(bench, 1), "handler": "/arlm/socket/h", "neighbour": 1, "folder": "/work/w1"}
        told["others_socket"] = bench.handler.address.get("unix", "/")  # as the host knows its own
        yield Stage(bench=bench, targets=targets, facts=facts, told=told)
        assert [it["Id"] for it in containers(engine)] == [facts["Id"]], "the container was replaced"
        assert (await bench.repl.run_cell("print(1)", 1)).output == "1\n"


async def reached_outside(stage: Stage, tried: Iterable[Escape]) -> dict[str, str]:
    """Which payloads reached what this machine has, with what shows it."""
    targets = stage.targets
    return await attempt_each(stage.bench, tried, stage.told, canary=targets.canary, seen=stage.seen, restore=targets.restored)


async def reached_beside(stage: Stage, tried: Iterable[Escape]) -> dict[str, str]:
    """The same of what another worker of the place has."""
    return await attempt_beside(stage.bench, tried, stage.told)


def named(names: set[str]) -> list[Escape]:
    found = [escape for escape in (*CORPUS, *CONTAINER) if escape.name in names]
    assert {escape.name for escape in found} == names
    return found


def but(*left_out: str) -> list[Escape]:
    """All that need no neighbour, without some."""
    assert named(set(left_out))
    return [escape for escape in (*CORPUS, *CONTAINER) if escape not in payloads_container.BESIDE and escape.name not in left_out]


@pytest.fixture
def unconfined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers as they are where the kernel can confine nothing: only the container holds."""
    monkeypatch.setattr(Plan, "doors", lambda self: None)


@WALLS
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("transport", ["unix", "stdio"])
async def test_no_payload_gets_out_of_a_container_or_to_a_neighbour(engine: Engine, transport: str, family: str) -> None:
    async with staged(engine, transport=transport) as stage:
        assert await reached_outside(stage, FAMILIES[family]) == {}
        assert await reached_beside(stage, FAMILIES[family]) == {}


@WALLS
@pytest.mark.parametrize("family", ["out", "supervisor"])
async def test_no_payload_gets_out_of_a_container_elsewhere(engine: Engine, family: str) -> None:
    async with over_tcp(engine.url) as url, staged(engine, url=url) as stage:
        assert await reached_outside(stage, FAMILIES[family]) == {}


async def test_no_payload_gets_out_of_gvisor(engine: Engine, runsc: str) -> None:
    async with staged(engine, runtime=runsc) as stage:
        assert set(await reached_outside(stage, but("signal_everybody"))) <= GVISOR_SHOWS


async def test_the_container_alone_keeps_an_unconfined_cell_in(engine: Engine, unconfined: None) -> None:
    async with staged(engine) as stage:
        left_out = ENDS_THE_PLACE | {"lower_the_supervisor_s_limits", "signal_everybody"}
        assert set(await reached_outside(stage, but(*left_out))) <= INSIDE_ONLY


@pytest.mark.parametrize("name", sorted(ENDS_THE_PLACE))
async def test_a_supervisor_that_an_unconfined_cell_ends_is_replaced(engine: Engine, unconfined: None, name: str) -> None:
    subject = Subject(name="docker", environment=lambda: DockerREPL(image=engine.image, engine=engine.url))
    async with open_bench(subject) as bench:
        await bench.context("the context")
        (first,) = containers(engine)
        cell = await bench.cell(f"{named({name})[0].code}\nimport time\ntime.sleep(30)")
        assert cell.stopped == "exited"
        assert await bench.out("print(context)") == "the context\n"
        (second,) = containers(engine)
        assert second["Id"] != first["Id"]


async def test_the_payloads_reach_a_neighbour_where_workers_are_not_confined(engine: Engine, unconfined: None) -> None:
    async with staged(engine) as stage:
        assert set(await reached_beside(stage, named(REACH_A_NEIGHBOUR))) == REACH_A_NEIGHBOUR


async def test_the_payloads_reach_the_host_where_all_is_open(engine: Engine, unconfined: None) -> None:
    async with open_targets() as targets:
        folder = targets.home.parent
    options = {"network": "host", "user": f"{os.geteuid()}:{os.getegid()}", "mounts": [f"{folder.parent}:{folder.parent}:rw"]}
    async with staged(engine, **options) as stage:
        assert set(await reached_outside(stage, named(REACH_THE_HOST))) == REACH_THE_HOST


def test_the_names_of_both_corpora_are_unique() -> None:
    names = [escape.name for escape in (*CORPUS, *CONTAINER)]
    assert len(names) == len(set(names))
