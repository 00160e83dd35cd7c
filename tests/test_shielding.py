"""in_own_task: one native cancel, a bounded clean-up, then the cancellation goes on."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import anyio
import pytest

from arlm.shielding import in_own_task


class Sdk:
    """Foreign code whose clean-up awaits several times."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancels = 0
        self.cleaned_up = False

    async def call(self) -> str:
        self.started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancels += 1
            for _ in range(20):
                try:
                    await asyncio.sleep(0.001)
                except asyncio.CancelledError:
                    self.cancels += 1
                    raise
            self.cleaned_up = True
            raise
        return "never"


async def test_it_returns_and_raises_what_the_work_does() -> None:
    async def fail() -> None:
        raise LookupError("inside")

    assert await in_own_task(asyncio.sleep(0, "done"), grace=1) == "done"
    with pytest.raises(LookupError, match="inside"):
        await in_own_task(fail, grace=1)


async def test_an_anyio_scope_cancels_the_work_once_and_its_clean_up_is_whole() -> None:
    sdk = Sdk()
    async with anyio.create_task_group() as group:

        async def call() -> None:
            await in_own_task(sdk.call, grace=5)

        group.start_soon(call)
        await sdk.started.wait()
        group.cancel_scope.cancel()
    assert (sdk.cancels, sdk.cleaned_up) == (1, True)


async def test_a_native_cancel_given_three_times_reaches_the_work_once() -> None:
    sdk = Sdk()
    task = asyncio.create_task(in_own_task(sdk.call, grace=5))
    await sdk.started.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (sdk.cancels, sdk.cleaned_up) == (1, True)


async def test_a_scopes_deadline_is_still_a_timeout() -> None:
    sdk = Sdk()
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.01):
            await in_own_task(sdk.call, grace=5)
    assert sdk.cleaned_up


async def test_nested_native_timeouts_that_expire_together_are_still_timeouts() -> None:
    sdk = Sdk()

    async def twice_limited() -> None:
        async with asyncio.timeout(0.01), asyncio.timeout(0.01):
            await in_own_task(sdk.call, grace=5)

    with pytest.raises(TimeoutError):
        await twice_limited()
    assert (sdk.cancels, sdk.cleaned_up) == (1, True)


async def test_work_that_does_not_end_is_left_after_its_grace_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    started, release = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        started.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    task = asyncio.create_task(in_own_task(stubborn, grace=0.01))
    await started.wait()
    task.cancel()
    with caplog.at_level(logging.WARNING), pytest.raises(asyncio.CancelledError):
        await task
    assert "did not end within" in caplog.text
    release.set()
    await asyncio.sleep(0)


async def test_an_error_of_the_clean_up_is_dropped_for_the_cancellation() -> None:
    started, reported = asyncio.Event(), []  # type: ignore[var-annotated]
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))

    async def clumsy() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            raise OSError("while closing")

    task = asyncio.create_task(in_own_task(clumsy, grace=1))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reported == []


async def test_work_that_finishes_despite_its_cancel_does_not_swallow_it() -> None:
    started = asyncio.Event()

    async def unimpressed() -> str:
        started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return "a result nobody waits for"

    task = asyncio.create_task(in_own_task(unimpressed, grace=1))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
