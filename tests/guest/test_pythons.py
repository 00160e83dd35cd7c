"""The guest's side on every Python that it promises to run on, confined, over standard input and output, as containers have it.

A few cases on each Python that is found; with ARLM_GUEST_CASES=all the whole suite and the escape corpus (`nox -s guests`). Looked for are
`python3.N` on PATH, in pyenv's folder, and what ARLM_GUEST_PYTHONS lists.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from arlm.environments import forkserver
from arlm.environments import process as module
from arlm.environments.process import ProcessREPL
from arlm.guest.confine import grade
from arlm.testing import conformance
from arlm.testing.bench import open_bench
from arlm.testing.escapes import attempt, open_targets
from arlm.testing.payloads import CORPUS, Escape

VERSIONS = [f"3.{minor}" for minor in range(9, 16)]
ALL = os.environ.get("ARLM_GUEST_CASES") == "all"
FEW = {
    "state_lives_from_cell_to_cell", "await_works_at_the_top_level", "asyncio_run_works_after_an_await_cell",
    "a_traceback_shows_causes_and_groups", "a_syntax_error_names_its_line", "output_of_subprocesses_stands_in_order",
    "every_code_point_of_an_answer_arrives", "an_argument_that_cannot_be_sent_is_a_type_error", "async_calls_overlap",
    "a_dict_context_is_unchanged_and_in_order", "a_second_repl_reads_the_same_context", "the_environment_holds_nothing_of_the_host",
    "an_allocation_above_the_memory_limit_is_a_memory_error", "a_process_that_detached_itself_dies_with_its_worker",
    "a_busy_loop_inside_asyncio_run_is_stopped", "a_loop_that_swallows_everything_is_killed", "os_exit_names_the_status_and_what_was_lost",
}  # fmt: skip
FEW_ESCAPES = {"read_host_environ", "read_credentials_in_home", "connect_tcp", "connect_unix", "kill_host", "write_outside", "chmod"}
UNMET = {"multiprocessing_works": "closed by confinement"} if grade()["files"] else {}
SUBJECT = conformance.Subject(name="process", environment=lambda: ProcessREPL(transport="stdio"), unmet=UNMET, alive=conformance.alive_here)


@functools.cache
def program(version: str) -> str | None:
    """A Python of this version that starts, by its own path."""
    listed = os.environ.get("ARLM_GUEST_PYTHONS", "").split(os.pathsep)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    kept = sorted(str(path) for path in pyenv.glob(f"{version}.*/bin/python{version}"))
    for candidate in [*listed, shutil.which(f"python{version}"), *kept]:
        if candidate and (found := _asked(candidate)) and found[0] == version:
            return found[1]
    return None


@functools.cache
def _asked(candidate: str) -> tuple[str, str] | None:
    code = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"
    try:
        done = subprocess.run([candidate, "-I", "-c", code], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # a shim for a version that is not switched on, or nothing
    version, _, path = done.stdout.strip().partition(" ")
    return version, path


@pytest.fixture(params=VERSIONS)
def python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Supervisors are started with this Python."""
    found = program(request.param)
    if found is None:
        pytest.skip(f"no Python {request.param} is installed")
    folder = forkserver.command()[-1]
    monkeypatch.setattr(module, "command", lambda: [found, "-I", folder])
    return request.param


def parameters() -> list:
    return [pytest.param(case, id=case.name) for case in conformance.CASES if ALL or case.name in FEW]


def test_the_few_cases_exist() -> None:
    assert {case.name for case in conformance.CASES} >= FEW
    assert {escape.name for escape in CORPUS} >= FEW_ESCAPES


async def test_cells_run_on_the_python_that_was_asked_for(python: str) -> None:
    async with open_bench(SUBJECT) as bench:
        assert await bench.out("import sys\nprint('%d.%d' % sys.version_info[:2])") == f"{python}\n"


@pytest.mark.parametrize("case", parameters())
async def test_the_guest_conforms(python: str, case: conformance.Case) -> None:
    if reason := conformance.unmet(SUBJECT, case):
        pytest.skip(reason)
    await conformance.check(SUBJECT, case)


@pytest.mark.skipif(not all(grade().values()), reason="this kernel lacks a part of the confinement (see `arlm doctor`)")
@pytest.mark.parametrize("escape", [it for it in CORPUS if ALL or it.name in FEW_ESCAPES], ids=lambda it: it.name)
async def test_a_confined_worker_does_not_escape(python: str, escape: Escape) -> None:
    async with open_targets() as targets:
        assert await attempt(SUBJECT, escape, targets, supervisor=None) is None
