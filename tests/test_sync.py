"""run_blocking: one shim, outside and inside a running loop."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading

import pytest

from arlm.sync import run_blocking

flavour: contextvars.ContextVar[str] = contextvars.ContextVar("flavour", default="plain")


def interrupt_the_main_thread() -> None:
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]


async def answer() -> int:
    await asyncio.sleep(0)
    return 42


async def fail() -> None:
    raise LookupError("inside")


def test_it_runs_outside_a_loop() -> None:
    assert run_blocking(answer) == 42


async def test_it_runs_inside_a_loop_in_another_thread() -> None:
    here = threading.get_ident()

    async def where() -> int:
        return threading.get_ident()

    assert run_blocking(where) != here


async def test_an_exception_comes_out_as_it_is() -> None:
    with pytest.raises(LookupError, match="inside"):
        run_blocking(fail)


def test_an_exception_comes_out_as_it_is_outside_a_loop() -> None:
    with pytest.raises(LookupError, match="inside"):
        run_blocking(fail)


async def test_context_variables_are_visible_inside() -> None:
    async def taste() -> str:
        return flavour.get()

    flavour.set("salty")
    assert run_blocking(taste) == "salty"


async def test_no_thread_is_left_behind() -> None:
    before = set(threading.enumerate())
    run_blocking(answer)
    assert set(threading.enumerate()) == before


async def slow(ended: list[str]) -> None:
    interrupt_the_main_thread()
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0)
        ended.append("cleaned up")


async def test_ctrl_c_inside_a_running_loop_cancels_and_waits_for_the_clean_up() -> None:
    before, ended = signal.getsignal(signal.SIGINT), []  # type: ignore[var-annotated]
    with pytest.raises(KeyboardInterrupt):
        run_blocking(lambda: slow(ended))
    assert ended == ["cleaned up"]
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_under_asyncio_run_cancels_too() -> None:
    ended: list[str] = []

    async def main() -> None:
        run_blocking(lambda: slow(ended))

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert ended == ["cleaned up"]


async def test_a_second_ctrl_c_stops_the_waiting() -> None:
    release = threading.Event()

    async def stubborn() -> None:
        interrupt_the_main_thread()
        try:
            await asyncio.sleep(60)
        finally:
            interrupt_the_main_thread()
            release.wait(30)

    with pytest.raises(KeyboardInterrupt):
        run_blocking(stubborn)
    assert not release.is_set()
    release.set()
    for thread in threading.enumerate():
        if thread.name == "arlm-blocking":
            thread.join()


async def test_it_works_from_a_thread_that_is_not_the_main_one() -> None:
    async def nested() -> int:
        return run_blocking(answer)

    assert await asyncio.to_thread(run_blocking, nested) == 42
