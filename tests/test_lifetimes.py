"""Clean-up is carried to its end, whoever cancels whom how often."""

import asyncio
import logging

import anyio
import pytest

from arlm.lifetimes import finish


class CleanUp:
    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.done = False

    async def __call__(self) -> None:
        self.begun.set()
        await self.go_on.wait()
        self.done = True


async def test_it_waits_for_the_clean_up() -> None:
    clean_up = CleanUp()
    finishing = asyncio.create_task(finish(clean_up, what="a thing"))
    await clean_up.begun.wait()
    assert not finishing.done()
    clean_up.go_on.set()
    await finishing
    assert clean_up.done


@pytest.mark.parametrize("cancels", [1, 2, 5])
async def test_native_cancels_do_not_reach_it_and_are_passed_on(cancels: int) -> None:
    clean_up = CleanUp()
    finishing = asyncio.create_task(finish(clean_up, what="a thing"))
    await clean_up.begun.wait()
    for _ in range(cancels):
        finishing.cancel()
        await asyncio.sleep(0)
    assert not finishing.done()
    clean_up.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await finishing
    assert clean_up.done


async def test_a_cancelled_scope_does_not_reach_it() -> None:
    clean_up = CleanUp()
    with anyio.CancelScope() as scope:
        scope.cancel()
        clean_up.go_on.set()
        await finish(clean_up, what="a thing")
    assert clean_up.done


async def test_a_timeout_around_it_holds_afterwards() -> None:
    clean_up = CleanUp()
    asyncio.get_running_loop().call_later(0.03, clean_up.go_on.set)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await finish(clean_up, what="a thing")
    assert clean_up.done


async def test_it_runs_in_the_finally_of_a_cancelled_task_group() -> None:
    clean_up = CleanUp()

    async def leave() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            clean_up.go_on.set()
            await finish(clean_up, what="a thing")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leave)
        await asyncio.sleep(0)
        tasks.cancel_scope.cancel()
    assert clean_up.done


async def test_a_failing_clean_up_is_logged_and_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise OSError("no such thing")

    with caplog.at_level(logging.ERROR, "arlm"):
        await finish(fail, what="a broken thing")
    assert "clean-up of a broken thing failed" in caplog.text
    assert "no such thing" in caplog.text


async def test_the_error_of_the_block_is_worth_more() -> None:
    async def fail() -> None:
        raise OSError("of the clean-up")

    async def leave() -> None:
        try:
            raise ValueError("of the block")
        finally:
            await finish(fail, what="a broken thing")

    with pytest.raises(ValueError, match="of the block"):
        await leave()


async def test_a_clean_up_that_hangs_is_given_up_after_its_time(caplog: pytest.LogCaptureFixture) -> None:
    clean_up = CleanUp()
    with caplog.at_level(logging.ERROR, "arlm"):
        await finish(clean_up, what="a hanging thing", seconds=0.01)
    assert "clean-up of a hanging thing took longer than 0.01 s" in caplog.text
    assert not clean_up.done
