"""A host without file descriptors, at every stage: a typed error that says what to do, or slower; and all is well once there are some."""

from typing import Any

import pytest
from host import told_by

CURE = "raise this process's limit on open files (ulimit -n)"


@pytest.mark.parametrize("stage", ["cold", "warm"])
def test_with_any_number_of_descriptors_a_run_ends_well_or_typed_and_the_next_is_fine(stage: str) -> None:
    """``cold``: the process's first run, which starts a fork server; ``warm``: a later one."""
    ends: list[tuple[str, str, int]] = told_by("short_host.py", stage)
    firsts = [first for first, _, _ in ends]
    assert firsts[-1] == "ok"
    failed = [first for first in firsts if first != "ok"]
    assert len(failed) >= 3
    assert all(first.startswith(("SandboxError: ", "ConfigError: ")) and CURE in first for first in failed), failed
    assert firsts.index("ok") == len(failed)  # fewer never help
    assert {then for _, then, _ in ends} == {"ok"}
    assert {left for _, _, left in ends} == {ends[-1][2]}  # no more than where there was no shortage


def test_more_runs_than_there_are_descriptors_for_end_well_or_typed() -> None:
    ends, then, left = told_by("short_host.py", "crowd")
    assert (then, left) == ("ok", 0)
    failed = [end for end in ends if end != "ok"]
    assert failed
    assert all(end.startswith("SandboxError: ") and CURE in end for end in failed), failed


def test_sub_calls_that_find_no_descriptor_wait_for_one_of_the_others() -> None:
    (first, then, _), in_flight = told_by("short_host.py", "calls")[:2]
    assert (first, then) == ("ok", "ok")
    assert 0 < in_flight < 20


def test_a_worker_whose_connection_cannot_be_taken_for_long_is_given_up_with_the_reason() -> None:
    ended: tuple[str, str, Any] = told_by("short_host.py", "held")
    assert ended[0].startswith("SandboxError: ")
    assert CURE in ended[0]
    assert ended[1:] == ["ok", 0]
