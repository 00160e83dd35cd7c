"""The clock of a cell, on a loop whose time the test sets."""

import asyncio
from collections.abc import Callable

import pytest

from arlm.environments.clock import CellClock


class FakeLoop:
    """As much of an event loop as the clock uses."""

    def __init__(self, real: asyncio.AbstractEventLoop) -> None:
        self.real = real
        self.now = 100.0
        self.timers: list[FakeTimer] = []

    def time(self) -> float:
        return self.now

    def create_future(self) -> asyncio.Future:
        return self.real.create_future()

    def call_later(self, delay: float, callback: Callable[[], None]) -> "FakeTimer":
        timer = FakeTimer(self, self.now + delay, callback)
        self.timers.append(timer)
        return timer

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for timer in [timer for timer in self.timers if timer.at <= self.now + 1e-9]:
            self.timers.remove(timer)
            timer.callback()


class FakeTimer:
    def __init__(self, loop: FakeLoop, at: float, callback: Callable[[], None]) -> None:
        self.loop, self.at, self.callback = loop, at, callback

    def cancel(self) -> None:
        if self in self.loop.timers:
            self.loop.timers.remove(self)


@pytest.fixture
async def loop() -> FakeLoop:
    return FakeLoop(asyncio.get_running_loop())


def clock_of(loop: FakeLoop, seconds: float) -> CellClock:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arlm.environments.repl.asyncio.get_running_loop", lambda: loop)
        return CellClock(seconds)


async def test_the_time_is_over_after_its_seconds(loop: FakeLoop) -> None:
    clock = clock_of(loop, 10)
    loop.pass_time(9.9)
    assert not clock.expired.done()
    loop.pass_time(0.2)
    assert clock.expired.result() == "timeout"


async def test_it_stands_still_while_a_call_is_pending(loop: FakeLoop) -> None:
    clock = clock_of(loop, 10)
    loop.pass_time(4)
    clock.pause()
    loop.pass_time(1000)
    assert not clock.expired.done()
    clock.resume()
    loop.pass_time(5.9)
    assert not clock.expired.done()
    loop.pass_time(0.2)
    assert clock.expired.done()


async def test_it_stands_still_until_the_last_of_several_calls_ends(loop: FakeLoop) -> None:
    clock = clock_of(loop, 10)
    clock.pause()
    clock.pause()
    clock.resume()
    loop.pass_time(1000)
    assert not clock.expired.done()
    clock.resume()
    loop.pass_time(10.1)
    assert clock.expired.done()


async def test_a_limit_leaves_little_of_the_time(loop: FakeLoop) -> None:
    clock = clock_of(loop, 300)
    loop.pass_time(1)
    clock.shorten(2, "limit")
    loop.pass_time(1.9)
    assert not clock.expired.done()
    loop.pass_time(0.2)
    assert clock.expired.result() == "limit"


async def test_a_limit_during_a_call_counts_from_the_calls_end(loop: FakeLoop) -> None:
    clock = clock_of(loop, 300)
    clock.pause()
    clock.shorten(2, "limit")
    loop.pass_time(1000)
    assert not clock.expired.done()
    clock.resume()
    loop.pass_time(2.1)
    assert clock.expired.result() == "limit"


async def test_a_limit_never_gives_more_time(loop: FakeLoop) -> None:
    clock = clock_of(loop, 1)
    clock.shorten(50, "limit")
    loop.pass_time(1.1)
    assert clock.expired.done()


async def test_expiring_now_is_once_and_for_all(loop: FakeLoop) -> None:
    clock = clock_of(loop, 10)
    clock.expire()
    clock.pause()
    clock.resume()
    clock.expire()
    loop.pass_time(100)
    assert clock.expired.result() == "timeout"
    assert loop.timers == []


async def test_a_stopped_clock_is_silent_whatever_ends_later(loop: FakeLoop) -> None:
    clock = clock_of(loop, 10)
    clock.pause()
    clock.stop()
    clock.resume()
    loop.pass_time(100)
    assert clock.expired.cancelled()
    assert loop.timers == []


async def test_it_runs_on_a_real_loop() -> None:
    assert await CellClock(0.001).expired == "timeout"
