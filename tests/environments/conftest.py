"""The environments under test, and a Bench in the default one. A new environment is one more entry of SUBJECTS."""

import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from held import held

if "arlm.testing" not in sys.modules:  # else the asserts of cases fail without showing values
    pytest.register_assert_rewrite("arlm.testing")

from arlm.environments.process import ProcessREPL
from arlm.guest.confine import grade
from arlm.testing import conformance

# A confined worker has no /dev/shm, where the semaphores of multiprocessing live.
CONFINED = (
    {"multiprocessing_works": "closed by confinement; environment_options={'write': ['/dev/shm']} opens it"} if grade()["files"] else {}
)


def process(name: str, unmet: dict[str, str] = CONFINED, **options: Any) -> conformance.Subject:
    """The process environment with some options."""
    return conformance.Subject(name=name, environment=lambda: ProcessREPL(**options), unmet=unmet, alive=conformance.alive_here)


SUBJECTS = [
    process("process-unix", transport="unix"),
    process("process-tcp", transport="tcp"),
    process("process-stdio", transport="stdio"),
    process("process-open", confine="off", unmet={}),
]


@pytest.fixture(params=SUBJECTS, ids=str)
def subject(request: pytest.FixtureRequest) -> conformance.Subject:
    """Each environment in turn."""
    return request.param


@pytest.fixture
async def bench() -> AsyncIterator[conformance.Bench]:
    """A Bench in the default environment."""
    async with held(conformance.open_bench(SUBJECTS[0])) as bench:
        yield bench
