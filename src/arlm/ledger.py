"""The ledger of a run tree: every LM call reserves before it is sent and settles after.

Calls are exact. Tokens and cost are reserved as estimates, so those limits hold up to the error of what is in flight. A reservation that
does not fit waits for settlements, first come, first served, and is refused only when nothing is in flight that could make room.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from .errors import CallLimit, CostLimit, LimitError, TokenLimit


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a call may use.

    Attributes:
        tokens: input estimate plus output bound.
        cost_usd: the price of that.
        sent_tokens, sent_cost_usd: the input's part, charged when a call was sent and nobody knows what it used.
        last: the last call of a run: it may use what was held back for it.
    """

    tokens: int = 0
    cost_usd: float = 0.0
    sent_tokens: int = 0
    sent_cost_usd: float = 0.0
    last: bool = False


class Reservation:
    """A call's place in the ledger. Settle it once when the call was sent, or release it when it was not."""

    __slots__ = ("_ledger", "_open", "need")

    def __init__(self, ledger: Ledger, need: Need) -> None:
        self._ledger = ledger
        self._open = True
        self.need = need

    def settle(self, tokens: int | None, cost_usd: float | None) -> None:
        """The call is over. None: unknown, and the reserved estimate is charged."""
        self._close(self.need.tokens if tokens is None else tokens, self.need.cost_usd if cost_usd is None else cost_usd, sent=True)

    def settle_unanswered(self) -> None:
        """The call was sent and no answer came: its input may have been billed."""
        self._close(self.need.sent_tokens, self.need.sent_cost_usd, sent=True)

    def release(self) -> None:
        """Nothing was sent."""
        self._close(0, 0.0, sent=False)

    def _close(self, tokens: int, cost_usd: float, *, sent: bool) -> None:
        if self._open:
            self._open = False
            self._ledger._settle(self.need, tokens, cost_usd, sent=sent)


class Ledger:
    """One per run tree. ``None``: no such limit.

    Attributes:
        refused: the first limit that refused a call, else None.
        calls, tokens, cost_usd: settled so far (calls: all that were reserved and not released).
        in_flight: reservations open.
    """

    def __init__(self, *, max_calls: int | None = None, max_total_tokens: int | None = None, max_cost_usd: float | None = None) -> None:
        self.max_calls, self.max_total_tokens, self.max_cost_usd = max_calls, max_total_tokens, max_cost_usd
        self.refused: LimitError | None = None
        self.calls = self.tokens = self.in_flight = 0
        self.cost_usd = 0.0
        self._reserved_tokens = 0
        self._reserved_cost = 0.0
        self._held = Need()
        self._held_calls = 0
        self._waiting: deque[tuple[Need, asyncio.Future[Reservation]]] = deque()

    @property
    def estimates(self) -> bool:
        """Whether reservations need estimates at all."""
        return self.max_total_tokens is not None or self.max_cost_usd is not None

    def hold_back(self, need: Need) -> None:
        """Keep one call, and what it needs, for the last answer. Replaces what was held back before."""
        self._held, self._held_calls = need, 1
        self._wake()

    async def reserve(self, need: Need) -> Reservation:
        """Reserve a call.

        Raises:
            CallLimit, TokenLimit, CostLimit: it does not fit and nothing in flight can make room.

        Cancellation while waiting takes nothing.
        """
        if not self._waiting or need.last:
            error = self._misfit(need)
            if error is None:
                return self._grant(need)
            if self.in_flight == 0 or isinstance(error, CallLimit):
                self.refused = self.refused or error
                raise error
        place: asyncio.Future[Reservation] = asyncio.get_running_loop().create_future()
        self._waiting.append((need, place))
        try:
            return await place
        except asyncio.CancelledError:
            self._leave_queue(need, place)
            raise

    def _leave_queue(self, need: Need, place: asyncio.Future[Reservation]) -> None:
        if place.done() and not place.cancelled() and place.exception() is None:
            place.result().release()
        elif (need, place) in self._waiting:
            self._waiting.remove((need, place))
        self._wake()

    def left(self) -> dict[str, float]:
        """What is left of each limit, by the option's name, after reservations and what is held back; never below 0."""
        left: dict[str, float] = {}
        if self.max_calls is not None:
            left["max_calls"] = max(0, self.max_calls - self.calls - self._held_calls)
        if self.max_total_tokens is not None:
            left["max_total_tokens"] = max(0, self.max_total_tokens - self.tokens - self._reserved_tokens - self._held.tokens)
        if self.max_cost_usd is not None:
            left["max_cost_usd"] = max(0.0, self.max_cost_usd - self.cost_usd - self._reserved_cost - self._held.cost_usd)
        return left

    def _misfit(self, need: Need) -> LimitError | None:
        held = Need() if need.last else self._held
        held_calls = 0 if need.last else self._held_calls
        if self.max_calls is not None and self.calls + held_calls + 1 > self.max_calls:
            return CallLimit("max_calls", self.calls, self.max_calls)
        tokens = self.tokens + self._reserved_tokens
        if self.max_total_tokens is not None and tokens + need.tokens + held.tokens > self.max_total_tokens:
            return TokenLimit("max_total_tokens", tokens, self.max_total_tokens)
        cost = self.cost_usd + self._reserved_cost
        if self.max_cost_usd is not None and cost + need.cost_usd + held.cost_usd > self.max_cost_usd:
            return CostLimit("max_cost_usd", cost, self.max_cost_usd)
        return None

    def _grant(self, need: Need) -> Reservation:
        self.calls += 1
        self.in_flight += 1
        self._reserved_tokens += need.tokens
        self._reserved_cost += need.cost_usd
        return Reservation(self, need)

    def _settle(self, need: Need, tokens: int, cost_usd: float, *, sent: bool) -> None:
        self.in_flight -= 1
        self._reserved_tokens -= need.tokens
        self._reserved_cost = self._reserved_cost - need.cost_usd if self.in_flight else 0.0  # no rounding error is carried on
        self.tokens += tokens
        self.cost_usd += cost_usd
        if not sent:
            self.calls -= 1
        self._wake()

    def _wake(self) -> None:
        """Grant what fits now, in order; refuse the first in line when nothing in flight can make room for it."""
        while self._waiting:
            need, place = self._waiting[0]
            error = None if place.done() else self._misfit(need)
            if error is not None and self.in_flight and not isinstance(error, CallLimit):
                return
            self._waiting.popleft()
            if place.done():
                continue
            if error is None:
                place.set_result(self._grant(need))
            else:
                self.refused = self.refused or error
                place.set_exception(error)
