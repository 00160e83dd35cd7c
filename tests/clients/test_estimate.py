"""Reservations that learn."""

from __future__ import annotations

import random

from arlm.clients.estimate import ENOUGH, OUTPUT_PRIOR, WINDOW, Estimator, estimate_tokens
from arlm.types import TokenUsage


def test_the_first_guess_is_on_the_cautious_side() -> None:
    english = 4_000  # characters: about 1,000 tokens
    assert 1_000 <= estimate_tokens(english) <= 2_000
    assert Estimator().input_tokens(english) >= 1_000


def test_text_outside_ascii_counts_a_token_a_character_until_something_is_known() -> None:
    estimator = Estimator()
    chinese = [{"role": "user", "content": "漢" * 900}]
    assert estimator.input_tokens(chinese) >= 900  # type: ignore[arg-type]
    estimator.observe(chinese, TokenUsage(input_tokens=600))  # type: ignore[arg-type]
    assert 600 <= estimator.input_tokens(chinese) <= 750  # type: ignore[arg-type]


def test_the_ratio_is_learned_and_errs_upwards() -> None:
    estimator = Estimator()
    for chars in range(1_000, 100_000, 1_000):
        estimator.observe(chars, TokenUsage(input_tokens=chars // 5))
    assert 2_000 <= estimator.input_tokens(10_000) <= 2_500


def test_the_ratio_forgets_what_is_long_past() -> None:
    estimator = Estimator()
    for tokens in [5_000] * 200 + [1_000] * 200:
        estimator.observe(5_000, TokenUsage(input_tokens=tokens))
    assert estimator.input_tokens(5_000) < 1_300


def test_a_call_that_reports_nothing_teaches_nothing() -> None:
    estimator = Estimator()
    before = (estimator.input_tokens(900), estimator.output_bound())
    for _ in range(100):
        estimator.observe(900, TokenUsage())
    assert (estimator.input_tokens(900), estimator.output_bound()) == before


def test_the_output_bound_is_the_cap_where_there_is_one() -> None:
    assert Estimator().output_bound(17) == 17


def test_the_output_bound_starts_at_the_prior_and_never_below_what_was_seen() -> None:
    estimator = Estimator()
    assert estimator.output_bound() == OUTPUT_PRIOR
    estimator.observe(0, TokenUsage(output_tokens=9_000))
    assert estimator.output_bound() == 9_000


def test_the_output_bound_becomes_the_99th_percentile() -> None:
    estimator, draw = Estimator(), random.Random(1)
    for _ in range(WINDOW):
        estimator.observe(0, TokenUsage(output_tokens=draw.randint(1, 100)))
    assert 97 <= estimator.output_bound() <= 100


def test_one_outlier_does_not_hold_the_bound_for_ever() -> None:
    estimator = Estimator()
    estimator.observe(0, TokenUsage(output_tokens=50_000))
    for _ in range(WINDOW + ENOUGH):
        estimator.observe(0, TokenUsage(output_tokens=10))
    assert estimator.output_bound() == 10


def test_an_empty_reply_still_reserves_something() -> None:
    estimator = Estimator()
    for _ in range(ENOUGH):
        estimator.observe(0, TokenUsage(output_tokens=0))
    assert estimator.output_bound() == 1
    assert estimator.input_tokens(0) > 0
