"""Retries, in one place: what is tried again, how long to wait, when to give up."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import tenacity

from ..errors import ProviderError
from .limiter import is_refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How a failed call is tried again.

    Attributes:
        attempts: tries in all, the first included.
        first_wait: seconds before the second try; it doubles with each further one.
        max_wait: seconds that one wait may last; a provider that asks for more ends the call.
        jitter: the part of a wait that is random, so that calls which failed together do not come back together.
        sleep: what waits; replaced in tests.
        random: a number in [0, 1); replaced in tests.
    """

    attempts: int = 6
    first_wait: float = 0.5
    max_wait: float = 60.0
    jitter: float = 0.25
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    random: Callable[[], float] = random.random

    def wait(self, error: ProviderError, attempt: int) -> float:
        """Seconds to wait after ``attempt`` (1 is the first) failed with ``error``. Never shorter than the provider asked."""
        spread = self.jitter * self.random()
        if error.retry_after is not None:
            return error.retry_after * (1 + spread)
        return float(min(self.max_wait, self.first_wait * 2 ** (attempt - 1)) * (1 - spread))


FREE_RETRIES = (
    1_000  # of a run tree: a provider that restarts costs each of 256 calls in flight three or four; one that is down gets no more
)


class RetryBudget:
    """The retries of a run tree: so many at first, and one more for each call that is answered.

    A provider that is up may so fail as often as it answers, and every call is still carried to its end; one that is down is asked once
    a call and ``free`` times more, not several times a call. A refusal (429, overload) costs nothing: the limiter paces those, and shuts
    the model where nothing passes; a first burst above the permitted rate would otherwise use up what is meant for failures.

    Args:
        free: retries before the first answer, and the most that can be saved up.

    Attributes:
        left: retries that may be made now.
        made: retries made.
    """

    def __init__(self, free: int = FREE_RETRIES) -> None:
        self.free = self.left = free
        self.made = 0

    def answered(self) -> None:
        """A call was answered."""
        self.left = min(self.free, self.left + 1)

    def take(self, error: ProviderError) -> bool:
        """Whether a call that failed with ``error`` may be made again; if not, the error's text says why."""
        if is_refusal(error):
            return True
        if self.left < 1:
            error.args = (
                f"{error}; not tried again: the run has used up its retries ({self.made:,} made; "
                f"it has {self.free:,}, and one more for each answered call)",
            )
            return False
        self.left -= 1
        self.made += 1
        return True


async def with_retries(
    attempt: Callable[[], Awaitable[T]],
    *,
    policy: RetryPolicy | None = None,
    budget: RetryBudget | None = None,
    on_retry: Callable[[ProviderError, float], None] | None = None,
) -> T:
    """Await ``attempt()`` until it succeeds, fails for good, or the policy's tries are used up.

    Only a ProviderError whose class is ``retryable`` is tried again. Cancellation passes through untouched, from a wait too.

    Args:
        attempt: makes one call; it reserves and settles for itself.
        policy: how often and how long.
        budget: that of the run tree; None: none but the policy's tries.
        on_retry: told of each failure that will be tried again, with the seconds until then.

    Raises:
        ProviderError: the last one.
    """
    policy = policy or RetryPolicy()
    try:
        result = await attempt()
    except ProviderError as error:
        if not error.retryable:
            raise
        result = await _again(error, attempt, policy, budget, on_retry)
    if budget is not None:
        budget.answered()
    return result


async def _again(
    first: ProviderError,
    attempt: Callable[[], Awaitable[T]],
    policy: RetryPolicy,
    budget: RetryBudget | None,
    on_retry: Callable[[ProviderError, float], None] | None,
) -> T:
    failures = iter([first])

    async def next_attempt() -> T:
        for error in failures:  # the try that has already failed opens tenacity's count, so that success costs none of its machinery
            raise error
        return await attempt()

    def is_worth_it(state: tenacity.RetryCallState) -> bool:
        error = _error_of(state)
        if not isinstance(error, ProviderError) or not _worth_it(error, policy) or state.attempt_number >= policy.attempts:
            return False
        return budget is None or budget.take(error)

    def announce(state: tenacity.RetryCallState) -> None:
        error = _error_of(state)
        if on_retry is not None and isinstance(error, ProviderError):
            on_retry(error, state.upcoming_sleep)

    def wait(state: tenacity.RetryCallState) -> float:
        error = _error_of(state)
        return policy.wait(error, state.attempt_number) if isinstance(error, ProviderError) else 0.0

    retrying = tenacity.AsyncRetrying(retry=is_worth_it, wait=wait, sleep=policy.sleep, before_sleep=announce, reraise=True)
    return await retrying(next_attempt)


def _worth_it(error: ProviderError, policy: RetryPolicy) -> bool:
    if not error.retryable:
        return False
    if error.retry_after is not None and error.retry_after > policy.max_wait:
        error.args = (
            f"{error}; not tried again: it asked to wait {error.retry_after:,.0f} s, more than max_wait {policy.max_wait:,.0f} s",
        )
        return False
    return True


def _error_of(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None
