"""The line in front of a model: against servers that enforce a rate, in virtual time; and once over real sockets."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from virtual_time import in_virtual_time

from arlm.calls import Account, Caller
from arlm.clients.limiter import MAX_HOLD_S, Limiter, Shut, Ticket, is_refusal, limiter_of
from arlm.clients.openai import OpenAILM
from arlm.clients.pace import LEAST_RATE, QUIET_S, Pace
from arlm.clients.tally import Tally
from arlm.errors import AuthError, ConnectionFailed, Overloaded, ProviderError, RateLimited
from arlm.ledger import Ledger
from arlm.testing import ScriptedProvider
from arlm.testing.provider_script import Bucket

ROUND_TRIP = 0.05  # seconds until a refusal


@dataclass
class Server:
    """Answers what its bucket lets in, after ``latency`` seconds on average; the rest gets a 429. ``by_chance`` refuses part of all."""

    bucket: Bucket | None = None
    latency: float = 0.5
    hold: float | None = None
    by_chance: float = 0.0
    answered: Counter[int] = field(default_factory=Counter)  # by second of arrival
    refused: Counter[int] = field(default_factory=Counter)
    arrivals: list[float] = field(default_factory=list)
    dice: random.Random = field(default_factory=lambda: random.Random(1))

    async def ask(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(ROUND_TRIP / 2)
        now = loop.time()
        self.arrivals.append(now)
        lets_in = self.dice.random() >= self.by_chance and (self.bucket is None or self.bucket.take(now))
        (self.answered if lets_in else self.refused)[int(now)] += 1
        await asyncio.sleep(ROUND_TRIP / 2)
        if not lets_in:
            raise RateLimited("429", retry_after=self.hold)
        await asyncio.sleep(self.latency * (0.5 + self.dice.random()))

    def used(self, rate: float, first: int, last: int) -> float:
        """The part of a rate that was used between two seconds."""
        return sum(self.answered[second] for second in range(first, last)) / (rate * (last - first))

    def refused_share(self, first: int, last: int) -> float:
        refused = sum(self.refused[second] for second in range(first, last))
        return refused / (refused + sum(self.answered[second] for second in range(first, last)))


async def call(limiter: Limiter, server: Server) -> None:
    """One call, made again until it is answered."""
    for attempt in range(50):
        try:
            with await limiter.admit() as ticket:
                await ticket.ready()
                await server.ask()
            return
        except RateLimited as error:
            if not error.retryable:
                raise
            await asyncio.sleep(max(server.hold or 0.0, min(60.0, 0.5 * 2**attempt)))


async def keep_busy(limiter: Limiter, server: Server, *, callers: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds

    async def work() -> None:
        while loop.time() < end:
            await call(limiter, server)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(work())


@pytest.mark.parametrize("hold", [None, 1.0], ids=["bare 429", "Retry-After"])
@pytest.mark.parametrize("latency", [0.05, 5.0])
@pytest.mark.parametrize(("rate", "burst"), [(2, 1), (2, 20), (30, 1), (30, 10), (30, 300)])
def test_four_fifths_of_an_enforced_rate_are_used_and_few_calls_are_refused(
    rate: float, burst: float, latency: float, hold: float | None
) -> None:
    async def main() -> Server:
        server = Server(Bucket(rate, burst), latency=latency, hold=hold)
        await keep_busy(Limiter(), server, callers=256, seconds=180)
        return server

    server = in_virtual_time(main)
    assert server.used(rate, 60, 180) >= 0.8
    assert server.refused_share(60, 180) <= 0.05
    assert server.used(rate, 0, 180) >= 0.65  # with the time that it took to find out


@pytest.mark.parametrize("hold", [None, 1.0], ids=["bare 429", "Retry-After"])
@pytest.mark.parametrize("later", [5, 200])
def test_a_rate_that_changes_is_found_again(later: float, hold: float | None) -> None:
    async def main() -> Server:
        bucket = Bucket(40, 10)
        server = Server(bucket, hold=hold)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(keep_busy(Limiter(), server, callers=150, seconds=180))
            await asyncio.sleep(60)
            bucket.rate = later
        return server

    server = in_virtual_time(main)
    assert server.used(40, 20, 60) >= 0.8
    assert server.used(later, 120, 180) >= 0.8
    assert server.refused_share(80, 180) <= 0.1


@pytest.mark.parametrize("part", [0.02, 0.3])
def test_refusals_that_do_not_depend_on_the_rate_do_not_bring_it_down(part: float) -> None:
    async def main() -> Server:
        server = Server(by_chance=part)
        await keep_busy(Limiter(), server, callers=128, seconds=60)
        return server

    server = in_virtual_time(main)
    assert server.used(1, 20, 60) >= 60  # a second; 128 callers with nothing in their way would make about 200
    assert server.refused_share(20, 60) <= part + 0.05


def test_before_the_first_refusal_nobody_waits() -> None:
    async def main() -> None:
        limiter = Limiter()
        for _ in range(1_000):
            admitting = limiter.admit()
            with pytest.raises(StopIteration) as ended:  # it never gave way to the loop
                admitting.send(None)
            with ended.value.value as ticket:
                await ticket.ready()
        assert limiter.stats()["rate"] is None

    in_virtual_time(main)


def test_a_burst_of_refusals_is_one_cut() -> None:
    async def main() -> None:
        limiter = Limiter()
        tickets = [await limiter.admit() for _ in range(100)]
        for ticket in tickets:
            await ticket.ready()
        await asyncio.sleep(0.1)
        for ticket in tickets[:20]:
            refuse(ticket)
        assert limiter.pace.rate == pytest.approx(0.9 * 80)  # 80 got through in what counts as a second

    in_virtual_time(main)


def refuse(ticket: Ticket, hold: float | None = None, kind: type[ProviderError] = RateLimited) -> None:
    error = kind("no", retry_after=hold)
    ticket.__exit__(kind, error, None)


async def sent(limiter: Limiter) -> Ticket:
    ticket = await limiter.admit()
    await ticket.ready()
    return ticket


def test_a_retry_after_holds_every_call_until_it_has_passed() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        limiter, server = Limiter(), Server()
        admitted_before = await limiter.admit()
        refuse(await sent(limiter), 7.0)
        asked = loop.time()

        async def ready(ticket: Ticket) -> None:
            with ticket:
                await ticket.ready()
                server.arrivals.append(loop.time() - asked)

        async def later() -> None:
            await ready(await limiter.admit())

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ready(admitted_before))
            for _ in range(5):
                tasks.create_task(later())
        return server.arrivals

    arrivals = in_virtual_time(main)
    assert len(arrivals) == 6
    assert min(arrivals) >= 7.0


def test_the_line_is_first_in_first_out() -> None:
    async def main() -> list[int]:
        limiter, order = Limiter(), list[int]()
        refuse(await sent(limiter), 1.0)

        async def work(number: int) -> None:
            with await limiter.admit() as ticket:
                await ticket.ready()
                order.append(number)

        async with asyncio.TaskGroup() as tasks:
            for number in range(50):
                tasks.create_task(work(number))
        return order

    assert in_virtual_time(main) == list(range(50))


def test_a_cancelled_wait_takes_no_turn() -> None:
    async def main() -> tuple[float, float]:
        async def last_of(cancelled: int) -> float:
            limiter = Limiter()
            refuse(await sent(limiter), 1.0)
            loop = asyncio.get_running_loop()
            began = loop.time()
            waiting = [asyncio.create_task(limiter.admit()) for _ in range(cancelled + 3)]
            await asyncio.sleep(0.5)
            for task in waiting[:cancelled]:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            return loop.time() - began

        return await last_of(0), await last_of(40)

    none_cancelled, forty_cancelled = in_virtual_time(main)
    assert forty_cancelled == pytest.approx(none_cancelled)


def test_a_turn_that_is_cancelled_as_it_is_granted_goes_to_the_next() -> None:
    async def main() -> tuple[float, float]:
        async def second(*, cancel: bool) -> float:
            limiter = Limiter()
            refuse(await sent(limiter), 1.0)
            loop = asyncio.get_running_loop()
            began = loop.time()
            first, other = (asyncio.create_task(limiter.admit()) for _ in range(2))
            await asyncio.sleep(0)
            if cancel:
                assert isinstance(limiter._timer, asyncio.TimerHandle)
                loop.call_at(limiter._timer.when() + 1e-12, first.cancel)  # in the same turn of the loop, after the grant
            with await other as ticket:
                await ticket.ready()
            await asyncio.gather(first, return_exceptions=True)
            assert first.cancelled() is cancel
            return loop.time() - began

        return await second(cancel=True), await second(cancel=False)

    instead, after = in_virtual_time(main)
    assert instead < after


def test_a_ticket_that_sends_nothing_gives_its_turn_back() -> None:
    async def main() -> None:
        limiter = Limiter()
        refuse(await sent(limiter))
        await asyncio.sleep(100)
        before = limiter._next_at
        with await limiter.admit():
            pass
        assert limiter._next_at <= max(before, asyncio.get_running_loop().time())
        assert limiter.stats()["in_flight"] == 0

    in_virtual_time(main)


def test_a_turn_that_was_not_used_at_once_is_taken_again() -> None:
    async def main() -> list[float]:
        limiter, server = Limiter(), Server()
        for ticket in [await sent(limiter) for _ in range(10)]:
            refuse(ticket)
        loop = asyncio.get_running_loop()

        async def hoard(go: asyncio.Event) -> None:
            with await limiter.admit() as ticket:
                await go.wait()
                await ticket.ready()
                server.arrivals.append(loop.time())

        go = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(10):
                tasks.create_task(hoard(go))
            await asyncio.sleep(200)
            go.set()
        return server.arrivals

    arrivals = in_virtual_time(main)
    gaps = [after - before for before, after in itertools.pairwise(arrivals)]
    assert sum(gap > 0.01 for gap in gaps) >= 8, "ten turns saved up would be a burst"


def test_after_long_quiet_there_is_no_limit() -> None:
    async def main() -> None:
        limiter = Limiter()
        refuse(await sent(limiter))
        assert limiter.pace.rate is not None
        await asyncio.sleep(QUIET_S + 1)
        with await sent(limiter):
            pass
        assert limiter.pace.rate is None

    in_virtual_time(main)


def test_a_model_that_refuses_everything_is_shut_and_asked_again_later() -> None:
    async def main() -> tuple[Server, int]:
        limiter, server = Limiter(), Server(Bucket(1e-9, 0))
        outcomes = await asyncio.gather(*(call(limiter, server) for _ in range(500)), return_exceptions=True)
        assert asyncio.get_running_loop().time() < 1_000
        assert all(isinstance(outcome, Shut) and "refused every call" in str(outcome) for outcome in outcomes)
        before = len(server.arrivals)
        with pytest.raises(Shut):
            await call(limiter, server)
        assert len(server.arrivals) == before
        await asyncio.sleep(MAX_HOLD_S)
        server.bucket = None
        await call(limiter, server)
        return server, before

    server, before = in_virtual_time(main)
    assert before < 1_000
    assert len(server.arrivals) == before + 1


def test_a_model_that_asks_for_more_than_the_longest_wait_is_shut_at_once() -> None:
    async def main() -> None:
        limiter = Limiter()
        refuse(await sent(limiter), 3_600.0)
        with pytest.raises(Shut, match="asked to wait 3,600 s") as caught:
            await limiter.admit()
        assert not caught.value.retryable

    in_virtual_time(main)


def test_late_refusals_of_calls_that_are_no_longer_counted_do_not_lower_the_rate() -> None:
    pace = Pace()
    for _ in range(50):
        pace.sent(0.0, 0.0)
    for _ in range(14):
        pace.sent(2.5, 0.0)
    pace.refused(2.6, 2.5, 0.0)
    for _ in range(40):
        pace.refused(2.6, 0.0, 0.0)
    assert pace.rate == pytest.approx(0.9 * 13)


def test_the_rate_never_falls_to_nothing() -> None:
    pace, now = Pace(), 0.0
    for _ in range(2_000):
        pace.sent(now, 1.0)
        pace.refused(now, now, 0.0)
        now += 1.0
    assert pace.rate == LEAST_RATE


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (RateLimited("", status=429), True),
        (Overloaded("", status=503), True),
        (Overloaded("", status=529), True),
        (Overloaded(""), True),
        (Overloaded("", status=500), False),
        (Overloaded("", status=500, retry_after=1.0), True),
        (ConnectionFailed(""), False),
        (AuthError("", status=401), False),
        (ValueError(), False),
        (None, False),
    ],
)
def test_429_and_overload_are_refusals_and_other_failures_are_not(error: Exception | None, counts: bool) -> None:
    assert is_refusal(error) is counts


async def test_one_limiter_goes_for_all_objects_of_one_account_and_model() -> None:
    def lm(model: str = "small", key: str = "one") -> OpenAILM:
        return OpenAILM(model, base_url="http://127.0.0.1:9/v1", api_key=key)

    assert limiter_of(lm()) is limiter_of(lm())
    assert limiter_of(lm()) is not limiter_of(lm(model="large"))
    assert limiter_of(lm()) is not limiter_of(lm(key="two"))


async def test_over_real_sockets_every_call_ends_well_and_few_are_refused(provider: ScriptedProvider) -> None:
    calls, most = 200, 64
    await provider.configure({"rate": 100, "burst": 10, "retry_after": None, "latency": 0.02})
    lm = OpenAILM("small", base_url=provider.url, api_key="none")
    caller = Caller(Ledger(), max_concurrency=most)
    account = Account(tally=Tally(), on_retry=lambda _lm, _error, _wait: None)

    async def ask(number: int) -> str:
        return (await caller.complete(lm, [{"role": "user", "content": str(number)}], sampling={}, account=account)).text

    assert await asyncio.gather(*map(ask, range(calls))) == [str(number) for number in range(calls)]
    stats = await provider.stats()
    assert stats["answered"] == calls
    assert 0 < stats["limited"] <= most + calls // 2  # most of them in the first burst, which finds the limit; without one, over 300
    assert limiter_of(lm).stats()["rate"] is not None


async def test_over_real_sockets_a_retry_after_is_obeyed_by_all(provider: ScriptedProvider) -> None:
    await provider.configure({"faults": ["429"], "retry_after": None, "retry_after_ms": "300"})
    lm = OpenAILM("small", base_url=provider.url, api_key="none")
    loop, limiter = asyncio.get_running_loop(), limiter_of(lm)

    async def ask(prompt: str) -> str:
        with await limiter.admit() as ticket:
            await ticket.ready()
            sent_at.append(loop.time())
            return (await lm.acompletion(prompt)).text

    sent_at: list[float] = []
    with pytest.raises(RateLimited):
        await ask("first")
    refused = loop.time()
    assert await ask("second") == "second"
    assert sent_at[-1] - refused >= 0.29
