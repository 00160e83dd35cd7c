"""The calls by which a cell measures its way to the host. This file's source runs in cells of arlm; the polled broker's cell imports it."""

import statistics
import time

CALLS = 1_000
SIZES = {"1_kb_us": 1_000, "100_kb_us": 100_000}
LARGE, LARGE_ROUNDS = 10_000_000, 3


def prompt(number, delay_ms=0, size=0):
    """One that the host answers after so many milliseconds with ``reply`` of it."""
    return f"{delay_ms} {number} ".ljust(size, "x")


def reply(asked):
    """What the host says to a prompt: its number and its size, so that a wrong or a cut one is noticed."""
    return f"{asked.split(' ', 2)[1]} {len(asked)}"


def measured(query, batched, at_once, one_by_one=300, slow=CALLS, rounds=5):
    """The figures of one transport, each reply checked.

    ``query`` asks one prompt, ``batched`` a list in one call, ``at_once`` each of a list in a call of its own. ``one_by_one`` and ``slow``
    are how many calls are made in turn, and at once with 200 ms; fewer than CALLS at once count for as many times their seconds.
    ``rounds`` is how often calls at once are made.
    """
    asked_one(query, prompt(0))
    asked_all(at_once, 10, 0)  # what is set up with the first is not measured
    figures = {"call_us": median_us(query, one_by_one, 0)}
    figures.update((name, median_us(query, one_by_one // 5, size)) for name, size in SIZES.items())
    figures["mb_a_second"] = LARGE / median_us(query, LARGE_ROUNDS, LARGE)  # bytes in a microsecond: MB in a second
    figures["at_once_s"] = median_s(at_once, CALLS, 0, rounds)
    figures["at_once_200_ms_s"] = median_s(at_once, slow, 200, rounds) * CALLS / slow
    figures["batch_ms"] = median_s(batched, CALLS, 0, 5) * 1000
    return figures


def median_us(query, count, size):
    return statistics.median(asked_one(query, prompt(number, size=size)) for number in range(count)) * 1e6


def median_s(ask, count, delay_ms, rounds):
    return statistics.median(asked_all(ask, count, delay_ms) for _ in range(rounds))


def asked_one(query, asked):
    began = time.perf_counter()
    said = query(asked)
    took = time.perf_counter() - began
    assert said == reply(asked), said
    return took


def asked_all(ask, count, delay_ms):
    prompts = [prompt(number, delay_ms) for number in range(count)]
    began = time.perf_counter()
    said = list(ask(prompts))
    took = time.perf_counter() - began
    wrong = [got for got, asked in zip(said, prompts) if got != reply(asked)]  # noqa: B905 - also for Python 3.9
    assert len(said) == count, f"{len(said)} replies to {count} prompts"
    assert not wrong, f"{len(wrong)} wrong: {wrong[0]}"
    return took
