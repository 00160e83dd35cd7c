"""The one way from synchronous code into the event loop.

Each call has a loop of its own, and with it its own connections to providers: they are closed when the call returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import signal
import threading
import time
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import FrameType

T = TypeVar("T")

PATIENCE_S = 10.0  # after a Ctrl-C, further ones change nothing for that long: a clean-up has as much time (see lifetimes)

_under_way: set[_Call[Any]] = set()  # of all threads; single operations on it are atomic, and a signal handler may hold no lock
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_under_way.clear)  # the parent's: they never end here


def run_blocking(async_fn: Callable[[], Awaitable[T]]) -> T:
    """Run ``await async_fn()`` to its end and return its result, from code that cannot await.

    Where no loop runs in this thread this is ``asyncio.run``. Where one does (Jupyter), a helper thread gets a loop of its own and this
    thread waits; the running loop stands still meanwhile. Context variables are visible to ``async_fn``; what it sets stays inside. Any
    number of threads may call it at once.

    Ctrl-C while the main thread is in here cancels what this and every other thread runs by this function, since nothing else could reach
    the others. Once all have cleaned up, KeyboardInterrupt is raised here, and in each of them. Further Ctrl-Cs do not disturb the
    clean-up; one that comes more than ``PATIENCE_S`` seconds after the first stops the waiting. A SIGINT handler of the program's own stays
    in force, except where a running loop stands still: there it could do nothing.

    Raises:
        KeyboardInterrupt: Ctrl-C. Nothing is left behind, and the function may be called again.
    """
    call = _Call(async_fn)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        in_a_loop = False
    else:
        in_a_loop = True
    with _interruptible(call, in_a_loop=in_a_loop):
        return call.run_in_a_thread() if in_a_loop else call.run()


class _Call(Generic[T]):
    """One coroutine on a loop of its own. Any thread, and a signal handler, may interrupt it."""

    def __init__(self, async_fn: Callable[[], Awaitable[T]]) -> None:
        self.caller = threading.current_thread()
        self.ended = threading.Event()
        self.interrupted = False
        self._async_fn = async_fn
        self._cancel: Callable[[], object] | None = None

    def interrupt(self) -> None:
        """Cancel it, now or as soon as it has begun."""
        self.interrupted = True
        if self._cancel is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: there is nothing left to cancel
                self._cancel()

    def run(self) -> T:
        """In this thread."""
        return asyncio.run(self._main())

    def run_in_a_thread(self) -> T:
        """In a helper thread, while this one waits."""
        outcome: Future[T] = Future()

        def work() -> None:
            if outcome.set_running_or_notify_cancel():
                try:
                    outcome.set_result(self.run())
                except BaseException as error:
                    outcome.set_exception(error)

        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(work,), name="arlm-blocking", daemon=True)
        try:
            thread.start()
            thread.join()
        except BaseException:  # a signal's handler raised; one that stops the waiting for an interrupted call is not to wait
            if not self.interrupted and not outcome.cancel():
                self.interrupt()
                wait([outcome])
            raise
        return outcome.result()

    async def _main(self) -> T:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        if self.interrupted:
            task.cancel()
        return await self._async_fn()


@contextlib.contextmanager
def _interruptible(call: _Call[Any], *, in_a_loop: bool) -> Iterator[None]:
    """A call is under way; a Ctrl-C that interrupts it is raised once it has ended."""
    _under_way.add(call)
    try:
        with _ctrl_c(even_if_handled=in_a_loop) as ctrl_c:
            try:
                yield
            finally:
                call.ended.set()
                ctrl_c.wait()
    except (Exception, asyncio.CancelledError):
        if not call.interrupted:
            raise
    finally:
        _under_way.discard(call)
    if call.interrupted:
        raise KeyboardInterrupt from None


class _CtrlC:
    """The SIGINT handler while the main thread is in ``run_blocking``."""

    def __init__(self) -> None:
        self._calls: tuple[_Call[Any], ...] = ()
        self._until: float | None = None  # when patience ends; none before the first

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        if self._until is None:
            self._until = time.monotonic() + PATIENCE_S
            self._calls = tuple(_under_way)
            for call in self._calls:
                call.interrupt()
        elif time.monotonic() > self._until:
            raise KeyboardInterrupt

    def wait(self) -> None:
        """Until the calls of other threads that were interrupted have ended, or patience has."""
        for call in self._calls:
            if call.caller is not threading.current_thread() and self._until is not None:
                call.ended.wait(max(0.0, self._until - time.monotonic()))


@contextlib.contextmanager
def _ctrl_c(*, even_if_handled: bool) -> Iterator[_CtrlC]:
    """In the main thread SIGINT is ours inside. In a running loop asyncio's own handler would only cancel the task that stands still."""
    handler = _CtrlC()
    previous = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if not callable(previous) or not (even_if_handled or previous is signal.default_int_handler):
        yield handler
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield handler
    finally:
        signal.signal(signal.SIGINT, previous)
