"""What is tried again, how long it waits, when it gives up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from arlm.clients.retry import RetryBudget, RetryPolicy, with_retries
from arlm.errors import AuthError, BadRequest, ConnectionFailed, ContextTooLong, LimitError, Overloaded, ProviderError, RateLimited, Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Waits:
    """A clock that only writes down how long it was asked to sleep."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


def policy(waits: Waits, **changes: Any) -> RetryPolicy:
    return RetryPolicy(**{"sleep": waits, "random": lambda: 0.0, **changes})


def plays(*steps: BaseException | str) -> Callable[[], Awaitable[str]]:
    script = iter(steps)

    async def attempt() -> str:
        step = next(script)
        if isinstance(step, BaseException):
            raise step
        return step

    return attempt


async def test_success_waits_for_nothing() -> None:
    waits = Waits()
    assert await with_retries(plays("ok"), policy=policy(waits)) == "ok"
    assert waits.slept == []


@pytest.mark.parametrize("kind", [RateLimited, Overloaded, ConnectionFailed])
async def test_what_may_pass_is_tried_again_with_doubling_waits(kind: type[ProviderError]) -> None:
    waits = Waits()
    assert await with_retries(plays(kind("1"), kind("2"), kind("3"), "ok"), policy=policy(waits, first_wait=0.5)) == "ok"
    assert waits.slept == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("kind", [AuthError, BadRequest, ContextTooLong, Refused])
async def test_what_will_not_pass_is_not_tried_again(kind: type[ProviderError]) -> None:
    waits = Waits()
    with pytest.raises(kind):
        await with_retries(plays(kind("no"), "never"), policy=policy(waits))
    assert waits.slept == []


@pytest.mark.parametrize("error", [ValueError("bug"), LimitError("max_calls", 1, 1), TimeoutError()])
async def test_other_exceptions_pass_untouched(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        await with_retries(plays(error, "never"), policy=policy(Waits()))
    assert caught.value is error


async def test_a_lasting_error_after_a_passing_one_ends_it() -> None:
    waits = Waits()
    with pytest.raises(AuthError):
        await with_retries(plays(Overloaded("busy"), AuthError("no"), "never"), policy=policy(waits))
    assert len(waits.slept) == 1


async def test_the_tries_are_bounded_and_the_last_error_comes_out_itself() -> None:
    waits, last = Waits(), Overloaded("4")
    with pytest.raises(Overloaded) as caught:
        await with_retries(plays(Overloaded("1"), Overloaded("2"), Overloaded("3"), last, "never"), policy=policy(waits, attempts=4))
    assert caught.value is last
    assert len(waits.slept) == 3


async def test_one_attempt_means_no_retry() -> None:
    with pytest.raises(Overloaded):
        await with_retries(plays(Overloaded("1"), "never"), policy=policy(Waits(), attempts=1))


async def test_no_wait_is_shorter_than_the_provider_asked() -> None:
    waits = Waits()
    await with_retries(plays(RateLimited("slow", retry_after=7.0), "ok"), policy=policy(waits))
    assert waits.slept == [7.0]


async def test_jitter_spreads_waits_and_still_obeys_retry_after() -> None:
    waits = Waits()
    errors = (RateLimited("slow", retry_after=8.0), Overloaded("busy"))
    await with_retries(plays(*errors, "ok"), policy=policy(waits, random=lambda: 0.5, jitter=0.5, first_wait=1.0))
    assert waits.slept == [10.0, 1.5]


async def test_waits_do_not_grow_beyond_the_longest() -> None:
    waits = Waits()
    steps = [Overloaded(str(number)) for number in range(5)]
    await with_retries(plays(*steps, "ok"), policy=policy(waits, first_wait=10.0, max_wait=25.0))
    assert waits.slept == [10.0, 20.0, 25.0, 25.0, 25.0]


async def test_a_provider_that_asks_for_too_long_a_wait_ends_the_call_and_says_so() -> None:
    waits = Waits()
    with pytest.raises(RateLimited, match=r"asked to wait 3,600 s, more than max_wait 60 s"):
        await with_retries(plays(RateLimited("slow", retry_after=3_600), "never"), policy=policy(waits))
    assert waits.slept == []


async def test_each_retry_is_announced_with_its_wait() -> None:
    waits, heard = Waits(), []
    first, second = RateLimited("1"), Overloaded("2")
    await with_retries(plays(first, second, "ok"), policy=policy(waits), on_retry=lambda error, wait: heard.append((error, wait)))
    assert heard == [(first, 0.5), (second, 1.0)]


async def test_a_cancel_during_a_wait_passes_through() -> None:
    waiting = asyncio.Event()

    async def forever(_seconds: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(with_retries(plays(Overloaded("1"), "never"), policy=RetryPolicy(sleep=forever)))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancelled_attempt_is_not_tried_again() -> None:
    with pytest.raises(asyncio.CancelledError):
        await with_retries(plays(asyncio.CancelledError(), "never"), policy=policy(Waits()))


async def test_a_run_that_has_used_up_its_retries_fails_at_once_and_says_so() -> None:
    waits, budget = Waits(), RetryBudget(2)
    with pytest.raises(ConnectionFailed, match=r"3; not tried again: the run has used up its retries \(2 made"):
        await with_retries(
            plays(ConnectionFailed("1"), ConnectionFailed("2"), ConnectionFailed("3"), "never"), policy=policy(waits), budget=budget
        )
    assert len(waits.slept) == 2
    with pytest.raises(Overloaded, match="used up"):
        await with_retries(plays(Overloaded("busy", status=500), "never"), policy=policy(waits), budget=budget)
    assert len(waits.slept) == 2


async def test_each_answered_call_pays_for_one_retry() -> None:
    budget = RetryBudget(1)
    for _ in range(5):
        assert await with_retries(plays(ConnectionFailed("cut"), "ok"), policy=policy(Waits()), budget=budget) == "ok"
    assert (budget.made, budget.left) == (5, 1)


async def test_saved_up_retries_are_bounded() -> None:
    budget = RetryBudget(3)
    for _ in range(100):
        await with_retries(plays("ok"), budget=budget)
    assert budget.left == 3


@pytest.mark.parametrize("error", [RateLimited("slow"), Overloaded("busy", status=529)])
async def test_refusals_cost_no_retries(error: ProviderError) -> None:
    budget = RetryBudget(0)
    assert await with_retries(plays(error, error, "ok"), policy=policy(Waits()), budget=budget) == "ok"


async def test_the_last_try_costs_no_retry() -> None:
    budget = RetryBudget(10)
    with pytest.raises(ConnectionFailed):
        await with_retries(plays(*[ConnectionFailed("cut")] * 3, "never"), policy=policy(Waits(), attempts=3), budget=budget)
    assert budget.made == 2


async def test_a_provider_that_is_down_is_asked_once_a_call_and_no_more_than_the_budget_besides() -> None:
    asked, budget = [0], RetryBudget(50)

    async def attempt() -> str:
        asked[0] += 1
        await asyncio.sleep(0)
        raise ConnectionFailed("down")

    calls = (with_retries(attempt, policy=policy(Waits()), budget=budget) for _ in range(1_000))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, ConnectionFailed) for outcome in outcomes)
    assert asked == [1_050]
