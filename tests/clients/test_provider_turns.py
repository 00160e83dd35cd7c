"""Which turn of a script is due."""

from __future__ import annotations

import pytest

from arlm.testing import Script
from arlm.testing.provider_player import Player
from arlm.testing.provider_turns import due

NUMBERED = r"turn (\d+) of"


@pytest.mark.parametrize(("played", "place"), [(0, 0), (1, 1), (4, 4)])
def test_without_a_pattern_the_assistant_messages_are_counted(played: int, place: int) -> None:
    messages = [{"role": "user", "content": "turn 9 of 9"}, *[{"role": "assistant", "content": "x"}] * played]
    assert due(messages) == place


@pytest.mark.parametrize(
    ("last", "place"), [("turn 1 of 3", 0), ("turn 3 of 3", 2), ("turn 1 of 3, then turn 2 of 3", 1), ("no number", 0), ("turn 0 of 3", 0)]
)
def test_with_a_pattern_the_last_number_in_the_last_message_counts(last: str, place: int) -> None:
    messages = [{"role": "user", "content": "turn 7 of 9"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": last}]
    assert due(messages, NUMBERED) == place


def test_a_message_without_content_has_no_number() -> None:
    assert due([{"role": "user", "content": None}], NUMBERED) == 0


def test_a_script_with_a_pattern_plays_the_turn_that_the_message_names() -> None:
    player = Player(Script(turns=["first", "second"], turn=NUMBERED))
    system = {"role": "system", "content": "s"}
    replies = [player.answer([system, {"role": "user", "content": f"turn {number} of 5"}]).text for number in (1, 2, 5)]
    assert replies == ["first", "second", "second"]
