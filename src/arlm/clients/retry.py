"""Retries, in one place: what is tried again, how long to wait, when to give up."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import tenacity

from ..errors import ProviderError

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


async def with_retries(
    attempt: Callable[[], Awaitable[T]],
    *,
    policy: RetryPolicy | None = None,
    on_retry: Callable[[ProviderError, float], None] | None = None,
) -> T:
    """Await ``attempt()`` until it succeeds, fails for good, or the policy's tries are used up.

    Only a ProviderError whose class is ``retryable`` is tried again. Cancellation passes through untouched, from a wait too.

    Args:
        attempt: makes one call; it reserves and settles for itself.
        policy: how often and how long.
        on_retry: told of each failure that will be tried again, with the seconds until then.

    Raises:
        ProviderError: the last one.
    """
    policy = policy or RetryPolicy()
    try:
        return await attempt()
    except ProviderError as error:
        if not _worth_it(error, policy) or policy.attempts <= 1:
            raise
        first = error
    return await _again(first, attempt, policy, on_retry)


async def _again(
    first: ProviderError, attempt: Callable[[], Awaitable[T]], policy: RetryPolicy, on_retry: Callable[[ProviderError, float], None] | None
) -> T:
    failures = iter([first])

    async def next_attempt() -> T:
        for error in failures:  # the try that has already failed opens tenacity's count, so that success costs none of its machinery
            raise error
        return await attempt()

    def announce(state: tenacity.RetryCallState) -> None:
        error = _error_of(state)
        if on_retry is not None and isinstance(error, ProviderError):
            on_retry(error, state.upcoming_sleep)

    def wait(state: tenacity.RetryCallState) -> float:
        error = _error_of(state)
        return policy.wait(error, state.attempt_number) if isinstance(error, ProviderError) else 0.0

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(lambda error: _worth_it(error, policy)),
        stop=tenacity.stop_after_attempt(policy.attempts),
        wait=wait,
        sleep=policy.sleep,
        before_sleep=announce,
        reraise=True,
    )
    return await retrying(next_attempt)


def _worth_it(error: BaseException, policy: RetryPolicy) -> bool:
    if not isinstance(error, ProviderError) or not error.retryable:
        return False
    if error.retry_after is not None and error.retry_after > policy.max_wait:
        error.args = (
            f"{error}; not tried again: it asked to wait {error.retry_after:,.0f} s, more than max_wait {policy.max_wait:,.0f} s",
        )
        return False
    return True


def _error_of(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None
