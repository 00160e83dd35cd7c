"""The conformance suite for environments: what cells may rely on, wherever they run.

An environment of your own is held to it by one test:

    pytest.register_assert_rewrite("arlm.testing")  # in conftest.py, before arlm.testing is imported: failures that show values

    from arlm.testing import conformance

    SUBJECTS = [conformance.Subject(name="mine", environment=MyREPL, unmet={"a_claim": "why it cannot hold there"})]

    @pytest.mark.parametrize("case", conformance.CASES, ids=str)
    @pytest.mark.parametrize("subject", SUBJECTS, ids=str)
    async def test_an_environment_conforms(subject, case):
        if reason := conformance.unmet(subject, case):
            pytest.skip(reason)
        await conformance.check(subject, case)

What an environment cannot meet is declared in ``unmet`` with the reason, so that it stands in the test report and in nobody's blind spot.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .bench import FUNCTIONS, Bench, Script, Subject, alive_here, open_bench
from .case import Case, Cases

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CASES", "FUNCTIONS", "Bench", "Case", "Script", "Subject", "alive_here", "check", "open_bench", "unmet"]

_PACKAGE = __name__.rpartition(".")[0]
_CASE_MODULES = tuple(f"{_PACKAGE}.cases_{part}" for part in ("code", "output", "answer", "calls", "values", "process", "stops", "repairs"))


def _all_cases() -> Iterator[Case]:
    for name in _CASE_MODULES:
        cases = importlib.import_module(name).CASES
        assert isinstance(cases, Cases)
        yield from cases


CASES: tuple[Case, ...] = tuple(_all_cases())


def unmet(subject: Subject, case: Case) -> str | None:
    """Why the subject cannot meet the case, as it declares itself; None when it has to.

    Raises:
        ValueError: it declares something that is no case.
    """
    unknown = set(subject.unmet) - {known.name for known in CASES}
    if unknown:
        raise ValueError(f"{subject} declares as unmet what is no case: {', '.join(sorted(unknown))}")
    return subject.unmet.get(case.name)


async def check(subject: Subject, case: Case) -> None:
    """Run one case in an environment of its own.

    Raises:
        AssertionError: the claim does not hold.
        SandboxError: the environment could not be opened.

    Cancelled, it closes the environment.
    """
    failure: Exception | None = None
    async with open_bench(subject, cell_timeout=case.cell_timeout, memory_limit=case.memory_limit) as bench:
        try:
            await case.run(bench)
        except Exception as error:
            failure = error  # raised below, where no task group wraps it
    if failure is not None:
        raise failure
