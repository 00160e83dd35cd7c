"""A container is held to the same suite as every environment: on an engine here, on one elsewhere, and under gVisor."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from arlm.environments.docker import DockerREPL
from arlm.testing import conformance
from docker_engine import Engine
from docker_proxy import over_tcp

pytestmark = pytest.mark.docker

# gVisor's kernel keeps its processes to itself, and has what it has of Linux.
RUNSC_UNMET = dict.fromkeys(
    (
        "a_process_that_detached_itself_dies_with_the_repl",
        "a_process_that_detached_itself_dies_with_its_worker",
        "a_process_that_forks_without_end_dies_with_the_repl",
        "processes_of_a_killed_cell_are_dead",
    ),
    "the host cannot look at processes under gVisor",
)


def alive_inside(pid: int) -> bool:
    """Whether a process with this number in a container's own count runs on this machine; a zombie does not."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            status = Path(f"/proc/{name}/status").read_text()
        except OSError:
            continue
        facts = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        numbers = facts.get("NSpid", "").split()
        if len(numbers) > 1 and int(numbers[-1]) == pid:
            return facts["State"].split()[0] not in "ZX"
    return False


@pytest.fixture
def here(engine: Engine) -> conformance.Subject:
    return subject("docker-unix", engine, transport="unix")


@pytest.fixture
async def elsewhere(engine: Engine) -> AsyncIterator[conformance.Subject]:
    async with over_tcp(engine.url) as url:
        yield subject("docker-remote", Engine(url=url, image=engine.image, runtimes=engine.runtimes))


def subject(name: str, engine: Engine, unmet: dict[str, str] | None = None, **options: str) -> conformance.Subject:
    return conformance.Subject(
        name=name,
        environment=lambda: DockerREPL(image=engine.image, engine=engine.url, **options),
        unmet=unmet or {},
        alive=alive_inside,
    )


def cases() -> list:
    return [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else []) for case in conformance.CASES]


@pytest.mark.parametrize("case", cases())
async def test_a_container_conforms(case: conformance.Case, here: conformance.Subject) -> None:
    await conformance.check(here, case)


@pytest.mark.parametrize("case", cases())
async def test_a_container_elsewhere_conforms(case: conformance.Case, elsewhere: conformance.Subject) -> None:
    await conformance.check(elsewhere, case)


@pytest.mark.unmeasured  # nothing of arlm's is new here, and the tracer only slows it down
@pytest.mark.parametrize("case", cases())
async def test_a_container_under_gvisor_conforms(case: conformance.Case, engine: Engine, runsc: str) -> None:
    under = subject("docker-runsc", engine, RUNSC_UNMET, runtime=runsc)
    if reason := conformance.unmet(under, case):
        pytest.skip(reason)
    await conformance.check(under, case)
