"""Every environment is held to the same suite."""

import pytest

from arlm.testing import conformance


def parameters() -> list:
    return [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else []) for case in conformance.CASES]


@pytest.mark.parametrize("case", parameters())
async def test_an_environment_conforms(subject: conformance.Subject, case: conformance.Case) -> None:
    if reason := conformance.unmet(subject, case):
        pytest.skip(reason)
    await conformance.check(subject, case)


def test_case_names_are_unique() -> None:
    names = [case.name for case in conformance.CASES]
    assert len(names) == len(set(names))


def test_declaring_what_is_no_case_is_an_error() -> None:
    subject = conformance.Subject(name="mine", environment=lambda: None, unmet={"no_such_case": "because"})
    with pytest.raises(ValueError, match="no_such_case"):
        conformance.unmet(subject, conformance.CASES[0])


async def test_a_case_that_does_not_hold_fails_with_its_own_error(subject: conformance.Subject) -> None:
    async def two_is_three(bench: conformance.Bench) -> None:
        assert await bench.out("2") == "3\n"

    case = conformance.Case(name="two_is_three", run=two_is_three, cell_timeout=60, memory_limit=None, slow=False)
    with pytest.raises(AssertionError):
        await conformance.check(subject, case)
