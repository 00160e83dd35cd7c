import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from arlm import CallLimit, CostLimit, TokenLimit
from arlm.ledger import Ledger, Need, Reservation


async def test_calls_are_exact_and_one_is_kept_for_the_last_answer():
    ledger = Ledger(max_calls=3)
    ledger.hold_back(Need(last=True))
    for _ in range(2):
        (await ledger.reserve(Need())).settle(None, None)
    with pytest.raises(CallLimit) as caught:
        await ledger.reserve(Need())
    assert (caught.value.limit, caught.value.used, caught.value.allowed) == ("max_calls", 2, 3)
    await ledger.reserve(Need(last=True))
    assert ledger.calls == 3


async def test_a_reservation_that_does_not_fit_waits_for_a_settlement():
    ledger = Ledger(max_total_tokens=100)
    first = await ledger.reserve(Need(tokens=80))
    second = asyncio.ensure_future(ledger.reserve(Need(tokens=50)))
    await asyncio.sleep(0)
    assert not second.done()
    first.settle(20, 0.0)
    assert (await second).need.tokens == 50


async def test_a_reservation_is_refused_only_when_nothing_is_in_flight():
    ledger = Ledger(max_total_tokens=100)
    first = await ledger.reserve(Need(tokens=80))
    second = asyncio.ensure_future(ledger.reserve(Need(tokens=50)))
    await asyncio.sleep(0)
    first.settle(80, 0.0)
    with pytest.raises(TokenLimit):
        await second
    assert isinstance(ledger.refused, TokenLimit)


async def test_waiting_reservations_are_served_in_order():
    ledger = Ledger(max_total_tokens=100)
    first = await ledger.reserve(Need(tokens=100))
    order: list[str] = []

    async def wait(name: str, tokens: int) -> Reservation:
        reservation = await ledger.reserve(Need(tokens=tokens))
        order.append(name)
        return reservation

    large = asyncio.ensure_future(wait("large", 90))
    small = asyncio.ensure_future(wait("small", 5))
    await asyncio.sleep(0)
    first.settle(0, 0.0)
    (await large).settle(10, 0.0)
    await small
    assert order == ["large", "small"]


async def test_a_cancelled_wait_takes_nothing_and_lets_the_next_one_pass():
    ledger = Ledger(max_total_tokens=100)
    first = await ledger.reserve(Need(tokens=60))
    large = asyncio.ensure_future(ledger.reserve(Need(tokens=90)))
    small = asyncio.ensure_future(ledger.reserve(Need(tokens=30)))
    await asyncio.sleep(0)
    large.cancel()
    assert (await small).need.tokens == 30
    first.release()
    assert large.cancelled()
    assert ledger.in_flight == 1


async def test_cancelled_after_the_grant_the_reservation_is_given_back():
    ledger = Ledger(max_total_tokens=100)
    first = await ledger.reserve(Need(tokens=100))
    waiting = asyncio.ensure_future(ledger.reserve(Need(tokens=100)))
    await asyncio.sleep(0)
    first.settle(0, 0.0)  # grants the waiting one; its task has not run yet
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (ledger.in_flight, ledger.calls) == (0, 1)


async def test_cost_is_limited_with_what_is_reserved():
    ledger = Ledger(max_cost_usd=0.10)
    first = await ledger.reserve(Need(cost_usd=0.06))
    waiting = asyncio.ensure_future(ledger.reserve(Need(cost_usd=0.06)))
    await asyncio.sleep(0)
    first.settle(None, 0.06)
    with pytest.raises(CostLimit):
        await waiting


async def test_unknown_usage_is_charged_as_reserved_and_an_unanswered_call_as_its_input():
    ledger = Ledger(max_total_tokens=1_000)
    (await ledger.reserve(Need(tokens=100, sent_tokens=40))).settle(None, None)
    (await ledger.reserve(Need(tokens=100, sent_tokens=40))).settle_unanswered()
    assert ledger.tokens == 140


async def test_settling_twice_counts_once():
    ledger = Ledger(max_calls=5)
    reservation = await ledger.reserve(Need(tokens=10))
    reservation.settle(10, 0.0)
    reservation.release()
    assert (ledger.calls, ledger.tokens, ledger.in_flight) == (1, 10, 0)


class LedgerMachine(RuleBasedStateMachine):
    """Reservations, settlements and cancels in any order: the limits hold, nothing is lost, nobody waits for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.ledger = Ledger(max_calls=20, max_total_tokens=1_000)
        self.held: list[Reservation] = []
        self.waiting: list[asyncio.Task[Reservation]] = []
        self.settled_tokens = 0
        self.refusals = 0

    def turn(self) -> None:
        """Let the loop run until nothing moves, then sort out who was served."""
        for _ in range(3):
            self.loop.run_until_complete(asyncio.sleep(0))
        for task in [task for task in self.waiting if task.done()]:
            self.waiting.remove(task)
            if task.cancelled():
                continue
            if task.exception() is None:
                self.held.append(task.result())
            else:
                self.refusals += 1

    @rule(tokens=st.integers(1, 600))
    def reserve(self, tokens: int) -> None:
        self.waiting.append(self.loop.create_task(self.ledger.reserve(Need(tokens=tokens))))
        self.turn()

    @precondition(lambda self: self.held)
    @rule(share=st.floats(0, 1), which=st.integers(0, 100))
    def settle(self, share: float, which: int) -> None:
        reservation = self.held.pop(which % len(self.held))
        used = int(reservation.need.tokens * share)
        self.settled_tokens += used
        reservation.settle(used, 0.0)
        self.turn()

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 100))
    def release(self, which: int) -> None:
        self.held.pop(which % len(self.held)).release()
        self.turn()

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 100))
    def cancel(self, which: int) -> None:
        self.waiting[which % len(self.waiting)].cancel()
        self.turn()

    @invariant()
    def limits_hold(self) -> None:
        reserved = sum(reservation.need.tokens for reservation in self.held)
        assert self.ledger.tokens == self.settled_tokens
        assert self.settled_tokens + reserved <= 1_000
        assert self.ledger.calls <= 20
        assert self.ledger.in_flight == len(self.held)

    @invariant()
    def nobody_waits_when_nothing_is_in_flight(self) -> None:
        assert self.held or not self.waiting

    def teardown(self) -> None:
        for reservation in self.held:
            reservation.release()
        for task in self.waiting:
            task.cancel()
        self.turn()
        self.loop.close()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
