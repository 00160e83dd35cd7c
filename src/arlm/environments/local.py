"""The host process itself: each worker is a thread of it. For code that you would run yourself."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from ..context import ContextFile
from ..errors import ConfigError, SandboxError
from ..guest import stubs, values, wire
from ..guest.capture import Capture
from ..guest.cells import Session
from ..guest.link import PROGRESS_SECONDS, Calls
from ..guest.worker import DEFAULT_OUTPUT_CHARS, Requests
from ..lifetimes import finish
from ..server.connection import Connection
from ..server.handler import LMHandler, Ticket
from .base import Environment, Exit, Place, Worker
from .carried import CarriedTransport
from .surroundings import Interrupter, Output, Surroundings

logger = logging.getLogger("arlm.environments")

CLOSED = "the REPL was closed"
PATIENCE_SECONDS = 0.5  # a thread that is told to end has this long; together with a cell's grace it stays below two seconds
INTERRUPT_SECONDS = 0.02  # between interrupts meanwhile
ABANDONED = "[the cell could not be stopped: its thread was left behind and may still run, without output and calls]\n"

_numbers = itertools.count(1)


class LocalREPL(Environment):
    """Workers are threads of this process, with nothing between them and the rest of it: for trusted code.

    Each has a namespace and output of its own; the process's streams, working directory and signal handlers are left alone. A cell is
    stopped between two steps of Python code, and not inside a call into C; a thread that does not end is left behind, and the REPL goes
    on in a fresh one. There is no memory limit. ``docs/environments.md`` says all that this means.
    """

    name: ClassVar[str] = "local"

    def check(self, *, memory_limit: int | None) -> None:
        """Refuse a memory limit."""
        if memory_limit is not None:
            raise ConfigError("environment 'local' cannot keep a memory_limit: its cells share the host's memory; use 'process'")

    @asynccontextmanager
    async def open(self, handler: LMHandler, scratch: Path) -> AsyncIterator[Place]:
        """See Environment."""
        place = _LocalPlace(handler)
        try:
            yield place
        finally:
            await finish(place.close, what="local workers")


class _LocalPlace(Place):
    def __init__(self, handler: LMHandler) -> None:
        self._handler = handler
        self._workers: list[ThreadWorker] = []
        self._constants: dict[str, str | bytes] = {}

    async def start_worker(self, ticket: Ticket, *, memory_limit: int | None, contexts: Sequence[tuple[str, str]] = ()) -> Worker:
        """See Place."""
        worker = ThreadWorker(self._handler.connection(), self._read)
        self._workers = [*(known for known in self._workers if not known.exited.done()), worker]
        worker.start(ticket)
        return worker

    async def put(self, file: ContextFile) -> str:
        """See Place: workers read the host's own file."""
        return str(file.path)

    def _read(self, path: str, kind: str) -> Any:
        """A context; text and bytes, which nobody can change, are one object for all workers of the place."""
        if path in self._constants:
            return self._constants[path]
        value = values.load(path, kind)
        if isinstance(value, (str, bytes)):
            self._constants[path] = value
        return value

    async def close(self) -> None:
        """End all workers; all orders go out before the first is waited for."""
        self._constants.clear()
        for worker in self._workers:
            worker.order_end()
        if self._workers:
            await asyncio.wait([worker.exited for worker in self._workers])


class ThreadWorker(Worker):
    """A REPL on a thread, and the host's end of it.

    Args:
        connection: the handler's; frames reach it as from a socket, without one.
        read: gives a context's value for its path and kind.
    """

    def __init__(self, connection: Connection, read: Callable[[str, str], Any]) -> None:
        self.name = f"t{next(_numbers)}"
        self.exited = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._read = read
        self._connection = connection
        self._interrupter = Interrupter()
        self._capture = Capture(DEFAULT_OUTPUT_CHARS)
        self._link = ThreadLink(self._loop, connection, self._capture, self._on_message)
        self._requests: Requests | None = None
        self._thread: threading.Thread | None = None
        self._cpu_clock: int | None = None
        self._deadline: float | None = None

    # -- the host's loop --------------------------------------------------------------------------------------------

    def start(self, ticket: Ticket) -> None:
        """Say hello and start the thread. Raises SandboxError."""
        road = self._link.road
        self._connection.connection_made(road)
        self._connection.data_received(b"".join(wire.encode({"hello": wire.VERSION, "token": ticket.token})))
        if self._thread is None:
            self.exited.set_result(Exit(status=None))
            raise SandboxError("the worker could not be started: its connection was refused")

    def _on_message(self, message: wire.Message) -> None:
        match message:
            case {"hello": _, "functions": functions}:
                self._start_thread(functions)
            case {"call": "interrupt", "id": number, "args": args}:
                self._interrupter.interrupt(args.get("reason", ""))
                self._link.answer(number, lambda: None)
            case {"call": method, "id": number, "args": args} if self._requests is not None:
                self._requests.put(number, method, args)
            case {"end": _}:
                self.order_end()

    def _start_thread(self, functions: list[dict[str, Any]]) -> None:
        session = Session(stubs.build(functions, self._link), self._interrupter, Surroundings(self._link.output, f" of {self.name}"))
        self._requests = Requests(self._link, self._capture, session, self._read)
        self._thread = threading.Thread(target=self._main, args=[session, self._requests], name=f"arlm-local-{self.name}", daemon=True)
        self._thread.start()

    async def kill(self) -> None:
        """See Worker. A thread that does not end in PATIENCE_SECONDS is left behind."""
        self.order_end()
        await asyncio.wait({self.exited})

    def order_end(self) -> None:
        """Begin to end the thread: at once when it is idle, by interrupts when a cell runs. The loop sees to the rest."""
        if self._deadline is None:
            self._deadline = self._loop.time() + PATIENCE_SECONDS
            self._link.close()
            if self._requests is not None:
                self._requests.end()
            self._insist()

    def _insist(self) -> None:
        assert self._deadline is not None
        if self.exited.done():
            return
        if self._loop.time() > self._deadline:
            logger.warning("a cell of worker %s could not be stopped; its thread was left behind and may still run", self.name)
            self.exited.set_result(Exit(status=None, output=self._link.output.progress() + ABANDONED))
            return
        self._interrupter.interrupt(CLOSED)
        self._loop.call_later(INTERRUPT_SECONDS, self._insist)

    def _ended(self) -> None:
        if self._thread is not None:
            self._thread.join()  # this was the last thing it did
        self.order_end()
        if not self.exited.done():
            self.exited.set_result(Exit(status=0, output=self._link.output.progress()))

    async def cpu_seconds(self) -> float:
        """See Worker: the CPU time of the thread that runs the cells; of threads that a cell started nothing is known."""
        try:
            return 0.0 if self._cpu_clock is None else time.clock_gettime(self._cpu_clock)
        except OSError:
            return 0.0  # the thread has ended

    # -- the thread -------------------------------------------------------------------------------------------------

    def _main(self, session: Session, requests: Requests) -> None:
        if hasattr(time, "pthread_getcpuclockid"):  # not on macOS
            self._cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
        try:
            requests.serve()
        finally:
            session.close()
            self._link.tell(self._ended)


class ThreadLink(Calls):
    """The connection of a thread: frames are handed to the loop of the handler, and come back by a call.

    Args:
        loop: the handler's.
        connection: takes the frames.
        capture: keeps the output.
        on_message: called on the loop with each message of the host that is no answer, and with ``{"end": reason}``.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connection: Connection, capture: Capture, on_message: Callable[[wire.Message], None]
    ) -> None:
        super().__init__()
        self.road = Road(loop, connection, self._on_bytes, self._on_end)
        self.output = Output(capture, self._on_text)
        self._loop = loop
        self._on_message = on_message
        self._decoder = wire.Decoder()
        self._closed = False
        self._progress_due = False

    # -- any thread -------------------------------------------------------------------------------------------------

    def request(self, method: str, args: dict[str, Any]) -> Any:
        """See Calls. Raises RuntimeError when the REPL was closed."""
        call = super().request(method, args)
        if self._closed:
            self._pending.pop(call.number, None)
            raise RuntimeError(f"{method}: {CLOSED}")
        return call

    def take_output(self) -> tuple[str, int]:
        """See Calls."""
        return self.output.take()

    def _post(self, *frames: bytes) -> None:
        if not self._closed:
            self.tell(partial(self.road.feed, b"".join(frames)))

    def tell(self, callback: Callable[[], object]) -> None:
        """Call back on the loop; nothing happens when it is closed."""
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            pass  # the loop ended without closing this place: nobody is left who could be told

    def _on_text(self) -> None:
        if not self._progress_due and not self._closed:
            self._progress_due = True
            self.tell(partial(self._loop.call_later, PROGRESS_SECONDS, self._send_progress))

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _send_progress(self) -> None:
        self._progress_due = False
        if not self._closed and (text := self.output.progress()):
            self.road.feed(b"".join(wire.encode({"note": "output", "text": text})))

    def _on_bytes(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            if "ok" in message or "error" in message:
                self._settle(message)
            else:
                self._on_message(message)

    def close(self) -> None:
        """End the connection: calls under way fail, further ones are refused, what is printed is dropped."""
        if not self._closed:
            self._closed = self.output.closed = True
            self.road.close()
            for number in list(self._pending):
                self._settle({"id": number, "error": {"type": "RuntimeError", "message": CLOSED}})

    def _on_end(self) -> None:
        self._on_message({"end": CLOSED})


class Road(CarriedTransport):
    """What a Connection writes to, where the other end is a thread of this process."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connection: Connection, on_bytes: Callable[[bytes], None], on_end: Callable[[], None]
    ) -> None:
        super().__init__(connection)
        self._loop = loop
        self._on_bytes = on_bytes
        self._on_end = on_end

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Bytes to the thread."""
        if not self._closed:
            self._on_bytes(bytes(data))

    def close(self) -> None:
        """End it; both sides are told on the next turn of the loop, as with a socket."""
        if not self._closed:
            self._closed = True
            self._loop.call_soon(self._connection.connection_lost, None)
            self._loop.call_soon(self._on_end)
