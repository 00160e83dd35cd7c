"""The one way from synchronous code into the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import signal
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import FrameType

T = TypeVar("T")


def run_blocking(async_fn: Callable[[], Awaitable[T]]) -> T:
    """Run ``await async_fn()`` to its end and return its result, from code that cannot await.

    Where no loop runs in this thread this is ``asyncio.run``. Where one does (Jupyter), a helper thread gets a loop of its own and this
    thread waits; the running loop stands still meanwhile. Context variables are visible to ``async_fn``; what it sets stays inside.

    Ctrl-C cancels ``async_fn``, waits for its clean-up and raises KeyboardInterrupt; a second one stops the waiting.
    """

    async def main() -> T:
        return await async_fn()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main())
    return _Helper(main).result()


class _Helper(Generic[T]):
    """A thread with a loop that runs one coroutine, and the wait for it."""

    def __init__(self, main: Callable[[], Awaitable[T]]) -> None:
        self._main = main
        self._done: Future[T] = Future()
        self._started = threading.Event()
        self._cancel: Callable[[], object] = lambda: None
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="arlm-blocking", daemon=True)

    def result(self) -> T:
        """Start, wait, return or raise what the coroutine did."""
        with _interrupts() as interrupts:
            self._thread.start()
            self._started.wait()
            interrupts.then(self._cancel)
            try:
                self._thread.join()
            except BaseException:
                if interrupts.count < 2:
                    self._cancel()
                    self._thread.join()
                raise
        if interrupts.count:
            raise KeyboardInterrupt
        return self._done.result()

    def _run(self) -> None:
        async def main() -> None:
            task, loop = asyncio.current_task(), asyncio.get_running_loop()
            assert task is not None

            def cancel() -> None:
                with contextlib.suppress(RuntimeError):  # the loop has closed: there is nothing left to cancel
                    loop.call_soon_threadsafe(task.cancel)

            self._cancel = cancel
            self._started.set()
            self._done.set_result(await self._main())

        try:
            asyncio.run(main())
        except BaseException as error:
            if not self._done.done():
                self._done.set_exception(error)
        finally:
            self._started.set()


class _Interrupts:
    """Counts SIGINT; the first calls ``then``'s function, the second raises in the waiting thread."""

    def __init__(self) -> None:
        self.count = 0
        self._first: Callable[[], object] | None = None

    def then(self, first: Callable[[], object]) -> None:
        self._first = first
        if self.count:
            first()

    def handle(self, _signal: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt
        if self._first is not None:
            self._first()


@contextlib.contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    """SIGINT is ours inside. asyncio's own handler would only cancel the task that stands still, and nobody would hear of it."""
    interrupts = _Interrupts()
    previous = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if not callable(previous):
        yield interrupts
        return
    signal.signal(signal.SIGINT, interrupts.handle)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, previous)
