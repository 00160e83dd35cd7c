"""The worker's connection to the host: one I/O thread owns the socket and the output pipe; every other thread only hands over.

The thread never waits for a lock that user code may hold, so a cell that is stopped at any point cannot stop the connection.
"""

from __future__ import annotations

import _thread
import collections
import itertools
import os
import selectors
import signal
import socket
import threading
import time
from typing import Any, Callable, Deque, Dict, List, Optional, Union

from . import wire
from .capture import Capture, waiting

READ_BYTES = 256 * 1024
LOST_CONNECTION = 70  # exit status of a worker whose host went away or broke the wire
BROKEN_INSIDE = 71  # exit status of a worker whose I/O thread failed (no memory left, for instance)

# Output is read and reported at most this often. Until then it stays in the pipe, where the supervisor finds it if this process dies: what
# this thread had read but not yet sent would be lost.
PROGRESS_SECONDS = 0.05
GATHER_SECONDS = 0.002  # between reads of output that is only counted: one wake-up for many lines, not one for each
leave = os._exit  # the real one: the worker replaces os._exit for the cell

Handler = Callable[[int, str, Dict[str, Any]], None]


class CallFailed(Exception):
    """The host answered a call with an error: ``kind`` is the exception's name there."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Call:
    """One request under way. ``wait`` blocks the calling thread; ``then`` calls back on the I/O thread."""

    __slots__ = ("_callback", "_done", "_error", "_value", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self._done = threading.Lock()
        self._done.acquire()
        self._callback: Optional[Callable[[Call], None]] = None
        self._value: Any = None
        self._error: Optional[Exception] = None

    def wait(self) -> Any:
        """The answer's value. Raises CallFailed."""
        self._done.acquire()
        self._done.release()
        return self.result()

    def result(self) -> Any:
        """The value of an answered call. Raises CallFailed."""
        if self._error is not None:
            raise self._error
        return self._value

    def then(self, callback: Callable[[Call], None]) -> None:
        """Call back once when answered; may be called before or after the answer."""
        self._callback = callback
        if not self._done.locked():
            self._fire()

    def settle(self, value: Any, error: Optional[Exception]) -> None:
        """For the I/O thread: the answer is here."""
        self._value, self._error = value, error
        self._done.release()
        self._fire()

    def _fire(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback(self)


class Calls:
    """The guest's end of a connection, as far as it does not matter how frames travel: requests, and answers to the host's.

    ``loaded`` has the contexts that the host put in place, by name: one that goes back to it goes by its name.
    """

    def __init__(self) -> None:
        self.loaded: Dict[str, Any] = {}
        self._numbers = itertools.count(1)
        self._pending: Dict[int, Call] = {}
        self._pid = os.getpid()

    def request(self, method: str, args: Dict[str, Any]) -> Call:
        """Send a request. Raises what ``wire.encode`` raises; RuntimeError in a forked child."""
        if os.getpid() != self._pid:
            raise RuntimeError(f"{method}: a forked process has no connection; call it in the REPL's own process or a thread of it")
        call = Call(next(self._numbers))
        frames = wire.encode({"id": call.number, "call": method, "args": args})
        self._pending[call.number] = call
        self._post(*frames)
        return call

    def cancel(self, call: Call) -> None:
        """Give a request up: the host stops working on it. Harmless when it is answered already."""
        if self._pending.pop(call.number, None) is not None:
            self._post(*wire.encode({"cancel": call.number}))

    def answer(self, number: int, value: Callable[[], Any]) -> None:
        """Answer a request of the host with what ``value()`` returns."""
        self._post(*answer_frames(number, value))

    def fail(self, number: int, error: BaseException) -> None:
        """Answer a request of the host with an error."""
        self._post(*wire.encode({"id": number, "error": {"type": type(error).__name__, "message": str(error)[:2000]}}))

    def take_output(self) -> Any:
        """For ``answer`` callbacks: the text printed up to this moment, and how many characters it had."""
        raise NotImplementedError

    def _settle(self, message: wire.Message) -> None:
        """An answer is here."""
        call = self._pending.pop(message["id"], None)
        if call is not None:
            error = message.get("error")
            call.settle(message.get("ok"), CallFailed(error["type"], error["message"]) if error else None)

    def _post(self, *frames: bytes) -> None:
        """Send the frames of one message; may be called on any thread."""
        raise NotImplementedError


class Link(Calls):
    """The connection of a process. Create it, then ``start`` the I/O thread.

    Args:
        sock: connected to the handler, hello already exchanged.
        decoder: the decoder used for the hello; it may hold the next bytes already.
        output: read end of the pipe behind descriptors 1 and 2.
        capture: where output goes.
        on_request: called on the I/O thread with (id, method, args) for each request of the host.
    """

    def __init__(self, sock: socket.socket, decoder: wire.Decoder, output: int, capture: Capture, on_request: Handler) -> None:
        super().__init__()
        self._sock = sock
        self._decoder = decoder
        self._output = output
        self._capture = capture
        self._on_request = on_request
        self._outgoing: Deque[Union[bytes, Callable[[], List[bytes]]]] = collections.deque()
        self._current: memoryview = memoryview(b"")
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        self._progress_due: Optional[float] = None

    # -- any thread -------------------------------------------------------------------------------------------------

    def answer(self, number: int, value: Callable[[], Any]) -> None:
        """See Calls; ``value`` is called on the I/O thread, after all earlier output."""
        self._post(lambda: answer_frames(number, value))

    def take_output(self) -> Any:
        """For ``answer`` callbacks: drain the pipe as far as it was filled at this moment, and take the text."""
        self._drain_output()
        return self._capture.take()

    def flush_and_exit(self, status: int) -> None:
        """End the process, after what was printed has been read. For ``os._exit`` in a cell: nothing printed is lost."""
        sent = threading.Event()
        self._post(self._output_note, lambda: sent.set() or [])  # type: ignore[func-returns-value]
        sent.wait(5)
        leave(status)

    def close_in_child(self) -> None:
        """In a forked child: let go of the descriptors, so that the host sees the parent's end when it ends."""
        for number in (self._sock.fileno(), self._wake_reader, self._wake_writer, self._output):
            try:
                os.close(number)
            except OSError:
                pass

    def _post(self, *items: Union[bytes, Callable[[], List[bytes]]]) -> None:
        self._outgoing.extend(items)
        try:
            os.write(self._wake_writer, b"\0")
        except BlockingIOError:
            pass  # the pipe is full of wake-ups already

    # -- the I/O thread ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the I/O thread."""
        # No threading.Thread: cells need not see it, and making one touches 60 pages.
        _thread.start_new_thread(self._main, (selectors.DefaultSelector(),))

    def _main(self, selector: selectors.BaseSelector) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})
        try:
            self._dispatch(self._decoder.feed(b""))
            self._run(selector)
        except (OSError, wire.WireError):
            leave(LOST_CONNECTION)
        except BaseException:  # anything else (MemoryError above all) leaves a worker that nobody can reach: end it
            leave(BROKEN_INSIDE)

    def _run(self, selector: selectors.BaseSelector) -> None:
        self._sock.setblocking(False)
        selector.register(self._sock, selectors.EVENT_READ, "socket")
        selector.register(self._wake_reader, selectors.EVENT_READ, "wake")
        selector.register(self._output, selectors.EVENT_READ, "output")
        events = selectors.EVENT_READ
        while True:
            for key, mask in selector.select(self._progress_wait()):
                if key.data == "wake":
                    os.read(self._wake_reader, 4096)
                elif key.data == "output":
                    if not self._capture.full:
                        pause = PROGRESS_SECONDS
                    elif self._read_output() < READ_BYTES:
                        pause = GATHER_SECONDS
                    else:
                        continue
                    selector.unregister(self._output)
                    self._progress_due = time.monotonic() + pause
                elif mask & selectors.EVENT_READ:
                    self._read_socket()
            if self._progress_wait() == 0:
                self._progress_due = None
                self._outgoing.extend(self._output_note())
                selector.register(self._output, selectors.EVENT_READ, "output")
            wanted = selectors.EVENT_READ | (0 if self._write_socket() else selectors.EVENT_WRITE)
            if wanted != events:
                events = wanted
                selector.modify(self._sock, events, "socket")

    def _progress_wait(self) -> Optional[float]:
        return None if self._progress_due is None else max(0.0, self._progress_due - time.monotonic())

    def _output_note(self) -> List[bytes]:
        self._drain_output()
        text = self._capture.progress()
        return wire.encode({"note": "output", "text": text}) if text else []

    def _drain_output(self) -> None:
        """Read as much as the pipe holds at this moment."""
        left = waiting(self._output)
        while left > 0:
            left -= self._read_output()

    def _read_output(self) -> int:
        try:
            data = os.read(self._output, READ_BYTES)
        except BlockingIOError:
            return READ_BYTES  # somebody else took it (a forked child): do not wait for it
        self._capture.write(data)
        return len(data) or READ_BYTES

    def _read_socket(self) -> None:
        try:
            data = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            leave(LOST_CONNECTION)
        self._dispatch(self._decoder.feed(data))

    def _dispatch(self, messages: List[wire.Message]) -> None:
        for message in messages:
            kind = wire.kind(message)
            if kind == "call":
                self._on_request(message["id"], message["call"], message["args"])
            elif kind in ("ok", "error"):
                self._settle(message)
            elif kind == "bye":
                leave(LOST_CONNECTION)

    def _write_socket(self) -> bool:
        """Send as much as the socket takes. True when nothing is left."""
        while True:
            if not self._current:
                if not self._outgoing:
                    return True
                item = self._outgoing.popleft()
                self._current = memoryview(item if isinstance(item, bytes) else b"".join(item()))
                continue
            try:
                sent = self._sock.send(self._current)
            except BlockingIOError:
                return False
            self._current = self._current[sent:]


def answer_frames(number: int, value: Callable[[], Any]) -> List[bytes]:
    """The frames of an answer; of an error, when the value cannot be sent."""
    try:
        return wire.encode({"id": number, "ok": value()})
    except (TypeError, ValueError) as error:
        return wire.encode({"id": number, "error": {"type": type(error).__name__, "message": str(error)[:2000]}})
