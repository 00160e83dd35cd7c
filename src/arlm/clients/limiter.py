"""One line in front of each model: who may send next, and when. Nothing waits in it before the model has refused something."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING

from ..errors import Overloaded, ProviderError, RateLimited
from ..loopbound import per_loop
from .pace import Pace

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from .base import BaseLM

MAX_HOLD_S = 60.0  # a model that asks for a longer wait is not waited for: what stands in line fails, for that long
CATCH_UP_S = 0.025  # sends that a late timer has missed go out together, so many seconds' worth at most
STALE_S = 0.1  # a turn not used within that time is given back: many of them used at once would be a burst
GRANTS_A_TURN = 100  # calls let go before the rest of the loop gets a turn
ROW = 8  # refusals without an answer in between, over SHUT_AFTER_S at least: the model is not answering anybody
SHUT_AFTER_S = 60.0
OVERLOAD = (None, 409, 425, 503, 529)  # statuses that say "not so much"; a 500 or 502 says nothing about the rate


class Shut(RateLimited):
    """The model has refused everything, or asked for a longer wait than any: calls are not sent at present."""

    retryable = False


def limiter_of(lm: BaseLM) -> Limiter:
    """The running loop's limiter for a model: one for all runs on the loop whose calls share a rate."""
    return per_loop((Limiter, lm.rate_key), Limiter)


def is_refusal(error: BaseException | None) -> bool:
    """Whether an error says that too much is sent: 429, overload. It is the limiter's to deal with."""
    return isinstance(error, RateLimited) or (isinstance(error, Overloaded) and (error.status in OVERLOAD or error.retry_after is not None))


class Ticket:
    """The right to send one call. Enter it, await ``ready`` right before sending; leaving it tells the limiter what came of the call.

    Attributes:
        sent_at: loop time of sending, or None.
    """

    __slots__ = ("_interval", "_limiter", "_step", "granted_at", "sent_at")

    def __init__(self, limiter: Limiter, granted_at: float, interval: float, step: float) -> None:
        self._limiter = limiter
        self._interval = interval
        self._step = step
        self.granted_at = granted_at
        self.sent_at: float | None = None

    async def ready(self) -> None:
        """Wait again, first in line, if the turn is no longer fresh or sending was stopped meanwhile; then count as sent.

        Raises as ``Limiter.admit`` does. Cancellation gives the turn back.
        """
        limiter = self._limiter
        while not limiter._still_good(self):
            limiter._take_back(self._interval)
            self._interval = 0.0
            again = await limiter._wait(first=True)
            self.granted_at, self._interval, self._step = again.granted_at, again._interval, again._step
        self.sent_at = limiter._sent(self._step)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None) -> None:
        if self.sent_at is None:
            self._limiter._take_back(self._interval)
        else:
            self._limiter._ended(self.sent_at, self._step, error)


class Limiter:
    """The line in front of one model on one event loop, first in, first out. See ``pace`` for how fast it moves.

    A 429 or an overload slows it down and answers speed it up. A Retry-After stops all sending to the model until it has passed. A model
    that asks for more than MAX_HOLD_S, or refuses everything for SHUT_AFTER_S, is shut: for MAX_HOLD_S every call fails at once.
    """

    def __init__(self) -> None:
        self.pace = Pace()
        self._loop = asyncio.get_running_loop()
        self._line: deque[asyncio.Future[Ticket]] = deque()
        self._timer: asyncio.Handle | None = None
        self._next_at = -math.inf
        self._held_until = -math.inf
        self._in_flight = 0
        self._row = 0
        self._row_began = 0.0
        self._shut: Shut | None = None

    def stats(self) -> Mapping[str, float | int | None]:
        """Requests a second now (None: not limited), calls in line, calls in flight, seconds that sending is still stopped for."""
        return {
            "rate": self.pace.rate,
            "in_line": sum(not place.done() for place in self._line),
            "in_flight": self._in_flight,
            "held_s": max(0.0, self._held_until - self._loop.time()),
        }

    async def admit(self) -> Ticket:
        """Wait until the next call may be sent. The ticket must be entered.

        Raises:
            Shut: no call is sent to this model at present.

        Cancellation takes nothing, and lets the next in line go.
        """
        now = self._loop.time()
        self.pace.calm_down(now)
        if not self._line and self._shut is None and self._free_at() <= now:
            return self._grant(now, waited=False)
        return await self._wait()

    async def _wait(self, *, first: bool = False) -> Ticket:
        place: asyncio.Future[Ticket] = self._loop.create_future()
        (self._line.appendleft if first else self._line.append)(place)
        self._arm()
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self._take_back(place.result()._interval)
            raise

    # -- the line ---------------------------------------------------------------------------------------------------

    def _free_at(self) -> float:
        return self._held_until if self.pace.rate is None else max(self._held_until, self._next_at)

    def _grant(self, now: float, *, waited: bool) -> Ticket:
        rate = self.pace.rate
        if rate is None:
            return Ticket(self, now, 0.0, 0.0)
        self._next_at = max(self._next_at, now - CATCH_UP_S) + 1 / rate
        return Ticket(self, now, 1 / rate, self.pace.waited(now) if waited else 0.0)

    def _still_good(self, ticket: Ticket) -> bool:
        if self.pace.rate is None and self._held_until == -math.inf:
            return True
        now = self._loop.time()
        return now >= self._held_until and (self.pace.rate is None or now - ticket.granted_at <= STALE_S)

    def _take_back(self, interval: float) -> None:
        """A turn was not used: the next in line gets it."""
        if interval:
            self._next_at -= interval
            self._arm()

    def _arm(self) -> None:
        """See to it that the line moves when the next may go."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._line:
            at = -math.inf if self._shut is not None else self._free_at()
            self._timer = self._loop.call_soon(self._move) if at <= self._loop.time() else self._loop.call_at(at, self._move)

    def _move(self) -> None:
        self._timer = None
        now = self._loop.time()
        if self._shut is not None and now >= self._held_until:
            self._shut = None
        for _ in range(GRANTS_A_TURN):
            while self._line and self._line[0].done():
                self._line.popleft()
            if not self._line or (self._shut is None and self._free_at() > now):
                break
            place = self._line.popleft()
            if self._shut is None:
                place.set_result(self._grant(now, waited=True))
            else:
                place.set_exception(Shut(str(self._shut), provider=self._shut.provider, status=self._shut.status))
        self._arm()

    # -- what comes of calls ----------------------------------------------------------------------------------------

    def _sent(self, step: float) -> float:
        now = self._loop.time()
        self.pace.sent(now, step)
        self._in_flight += 1
        return now

    def _ended(self, sent_at: float, step: float, error: BaseException | None) -> None:
        self._in_flight -= 1
        was = self.pace.rate
        if error is None:
            self._row = 0
            self.pace.let_through(self._loop.time(), sent_at, step)
        elif isinstance(error, ProviderError) and is_refusal(error):
            self._refused(sent_at, error)
        if self._line and self.pace.rate != was:
            self._arm()

    def _refused(self, sent_at: float, error: ProviderError) -> None:
        now = self._loop.time()
        hold = error.retry_after or 0.0
        was = self.pace.rate
        self.pace.refused(now, sent_at, 0.0 if self.pace.is_by_chance(now) else min(hold, MAX_HOLD_S))
        assert self.pace.rate is not None
        if was is None:
            self._next_at = now + 1 / self.pace.rate
        if hold and not self.pace.is_by_chance(now):
            self._held_until = max(self._held_until, now + min(hold, MAX_HOLD_S))
            self._next_at = max(self._next_at, self._held_until)  # what was not sent meanwhile is not caught up with
        self._row_began = self._row_began if self._row else now
        self._row += 1
        if hold > MAX_HOLD_S:
            self._close(now, error, f"it asked to wait {hold:,.0f} s, more than {MAX_HOLD_S:,.0f} s")
        elif self._row >= ROW and not self._in_flight and now - self._row_began >= SHUT_AFTER_S:
            self._close(now, error, f"it has refused every call for {now - self._row_began:,.0f} s")

    def _close(self, now: float, error: ProviderError, why: str) -> None:
        self._shut = Shut(f"{error}; {why}: no call is sent to it for now", provider=error.provider, status=error.status)
        self._held_until = now + MAX_HOLD_S
        self.pace.press(self._held_until)
        self._arm()
