"""The conformance suite for clients: what arlm relies on, whichever provider a model is behind.

A client of your own is held to it by one test:

    pytest.register_assert_rewrite("arlm.testing")  # in conftest.py, before arlm.testing is imported: failures that show values

    from arlm.testing import lm_conformance

    def mine(stage):
        return MyLM("small", base_url=stage.url, api_key=stage.key, timeout=stage.timeout)

    SUBJECTS = [lm_conformance.Subject(name="mine", open=mine, wire="chat", unmet={"a_claim": "why it cannot hold there"})]

    @pytest.mark.parametrize("case", lm_conformance.CASES, ids=str)
    @pytest.mark.parametrize("subject", SUBJECTS, ids=str)
    async def test_a_client_conforms(subject, case):
        if reason := lm_conformance.unmet(subject, case):
            pytest.skip(reason)
        await lm_conformance.check(subject, case)

Behind the client stands a scripted provider on a loopback socket, which speaks Chat Completions, Responses, Anthropic's Messages and
Gemini's generateContent. A model without HTTP has the wire ``"none"`` and answers by ``await stage.answer(messages, "small")``; one with a
wire of its own likewise, by a server that its subject starts (``behind=``).

What a client cannot meet is declared with the reason, in ``without`` by what it lacks or in ``unmet`` by the case, so that it stands in the
test report and in nobody's blind spot.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .lm_bench import KEY, Bench, Stage, Subject, open_bench
from .lm_case import NEEDS, Case, Cases
from .lm_wires import WIRES

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CASES", "KEY", "Bench", "Case", "Stage", "Subject", "check", "open_bench", "unmet"]

_PACKAGE = __name__.rpartition(".")[0]
_PARTS = ("text", "usage", "errors", "waits", "cuts", "cancels", "crowds", "sampling", "secrets")


def _all_cases() -> Iterator[Case]:
    for part in _PARTS:
        cases = importlib.import_module(f"{_PACKAGE}.lm_cases_{part}").CASES
        assert isinstance(cases, Cases)
        yield from cases


CASES: tuple[Case, ...] = tuple(_all_cases())


def unmet(subject: Subject, case: Case) -> str | None:
    """Why the subject cannot meet the case, as it or its wire declares; None when it has to.

    Raises:
        ValueError: it declares something that is no case, or speaks a wire that is none.
    """
    if subject.wire not in WIRES:
        raise ValueError(f"{subject} speaks the wire {subject.wire!r}; there is: {', '.join(WIRES)}")
    unknown = {*(set(subject.unmet) - {known.name for known in CASES}), *(set(subject.without) - NEEDS)}
    if unknown:
        raise ValueError(f"{subject} declares as unmet what is no case and no need: {', '.join(sorted(unknown))}")
    lacks = {**subject.speech.without, **subject.without}
    reasons = [lacks[need] for need in sorted(case.needs) if need in lacks]
    return subject.unmet.get(case.name) or next(iter(reasons), None)


async def check(subject: Subject, case: Case) -> None:
    """Run one case with a client and a provider of its own.

    Raises:
        AssertionError: the claim does not hold.
        ConfigError: the client could not be opened.

    Cancelled, it closes both.
    """
    async with open_bench(subject) as bench:
        await case.run(bench)
