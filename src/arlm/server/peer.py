"""One connection to a guest, seen from the host: calls in both directions, many at once, answered in any order."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from ..errors import ProtocolError
from ..guest import wire
from ..types import JSON
from . import heavy

logger = logging.getLogger("arlm.server")

MAX_CALLS = 100_000  # requests of one guest under way; at so many it is not read until half of them are answered
MAX_CALL_BYTES = 512 * 1024 * 1024  # their size, likewise; a batch is one request per MiB
ADMITTED = 2_000  # of them that are worked on at once, each in a task; the others wait for their turn
BEGUN_A_TURN = 50  # tasks started, or waiting requests refused, before the rest of the loop gets a turn: a few milliseconds
MAX_UNSENT = 256 * 1024 * 1024  # bytes waiting for a guest that does not read
STALL_SECONDS = 60.0  # a guest that takes nothing for so long, with bytes waiting, has stopped reading

METHOD_CHARS = 100  # of what a guest sends, in messages and names of tasks
KIND_CHARS = 100
ERROR_CHARS = 2_000

Answer = Callable[[str, dict[str, Any]], Awaitable[JSON]]


class Transport(Protocol):
    """What a peer writes to: an asyncio transport, or a channel that looks like one."""

    def write(self, data: bytes) -> None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102
    def abort(self) -> None: ...  # noqa: D102
    def get_write_buffer_size(self) -> int: ...  # noqa: D102
    def pause_reading(self) -> None: ...  # noqa: D102
    def resume_reading(self) -> None: ...  # noqa: D102


class CallError(Exception):
    """The answer to a request is an error: ``kind`` is the exception's name on the other side. Data, not a failure of the host."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class PeerLost(ProtocolError):
    """The connection is gone; the text says why."""


class _Serving:
    """A request being worked on. Its cancel scope is made in its task; a cancel may come before that."""

    __slots__ = ("_scope", "cancelled", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.cancelled = False
        self._scope: anyio.CancelScope | None = None

    def scope(self) -> anyio.CancelScope:
        self._scope = anyio.CancelScope()
        if self.cancelled:
            self._scope.cancel()
        return self._scope

    def cancel(self) -> None:
        self.cancelled = True
        if self._scope is not None:
            self._scope.cancel()


_Request = tuple[int, str, dict[str, Any], _Serving]
_Inbox = asyncio.Queue[_Request | None]


def _read(answer: asyncio.Future[JSON]) -> None:
    if not answer.cancelled():
        answer.exception()  # whoever waits is told; nobody has to wait


def _failed(number: int, kind: str, message: str) -> list[bytes]:
    return wire.encode({"id": number, "error": {"type": kind, "message": message[:ERROR_CHARS]}})


def _cancelled(number: int, method: str) -> list[bytes]:
    return _failed(number, "RuntimeError", f"{method[:METHOD_CHARS]}: cancelled")


def _is_cancelled() -> bool:
    """Whether this task was told to end, natively or by a scope around it."""
    task = asyncio.current_task()
    return (task is not None and task.cancelling() > 0) or anyio.current_effective_deadline() == -math.inf


class _Unsendable(Exception):
    """An answer that no frame can carry: ``kind`` is the name of what was raised."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.kind = type(error).__name__


async def _encoded(message: wire.Message) -> list[bytes]:
    """The frames of an answer. A large one is written in a thread, which a cancel leaves to its end: nobody waits for what it makes."""
    try:
        if heavy.is_heavy(message["ok"]):
            return await asyncio.get_running_loop().run_in_executor(None, heavy.encode, message)
        return wire.encode(message)
    except (TypeError, ValueError, RecursionError) as error:
        raise _Unsendable(error) from None


class Peer:
    """A connection whose hello is done.

    Args:
        transport: where frames go.
        name: for messages and logs.

    Attributes:
        lost: the reason once the connection is gone, else None.
        on_note: called with each one-way message of the guest.
        on_room: called when ``is_full`` is no longer so.
        max_unsent: bytes that may wait for the guest; None: MAX_UNSENT.
        written: bytes handed to the transport so far.
    """

    def __init__(self, transport: Transport, name: str) -> None:
        self.name = name
        self.lost: str | None = None
        self.on_note: Callable[[wire.Message], None] | None = None
        self.on_room: Callable[[], None] | None = None
        self.max_unsent: int | None = None
        self.written = 0
        self._transport = transport
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[JSON]] = {}
        self._serving: dict[int, _Serving] = {}
        self._serving_bytes = 0
        self._is_full = False
        self._inbox: _Inbox | None = None
        self._gone = asyncio.Event()

    # -- asking -----------------------------------------------------------------------------------------------------

    async def call(self, method: str, args: dict[str, Any]) -> JSON:
        """Ask the guest and wait for its answer.

        Raises:
            CallError: the guest answered with an error.
            PeerLost: the connection is gone, or goes before the answer.
            wire.TooLarge, TypeError, ValueError: the arguments cannot be sent; nothing was.

        Cancellation sends a cancel and forgets the answer.
        """
        answer = self.start_call(method, args)
        try:
            return await answer
        finally:
            self.forget(answer)

    def start_call(self, method: str, args: dict[str, Any]) -> asyncio.Future[JSON]:
        """Send a request now; the future is its answer. Raises as ``call`` does."""
        if self.lost is not None:
            raise PeerLost(self.lost)
        number = next(self._numbers)
        frames = wire.encode({"id": number, "call": method, "args": args})
        answer: asyncio.Future[JSON] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(_read)
        self._asked[number] = answer
        answer.arlm_number = number  # type: ignore[attr-defined]
        self._write(frames)
        return answer

    def forget(self, answer: asyncio.Future[JSON]) -> None:
        """Give a request up. Harmless when it is answered."""
        number: int = answer.arlm_number  # type: ignore[attr-defined]
        if self._asked.pop(number, None) is not None and self.lost is None:
            self._write(wire.encode({"cancel": number}))
        answer.cancel()

    def note(self, message: wire.Message) -> None:
        """Send a one-way message; nothing happens when the connection is gone."""
        if self.lost is None:
            self._write(wire.encode(message))

    async def wait_lost(self) -> str:
        """Wait until the connection is gone; returns why."""
        await self._gone.wait()
        assert self.lost is not None
        return self.lost

    # -- answering --------------------------------------------------------------------------------------------------

    def serve(self, task_group: TaskGroup, answer: Answer) -> None:
        """From now on, answer the guest's requests with ``answer(method, args)``, each in a task of ``task_group``.

        ``answer`` raises CallError for what the guest is to see as an error; of any other exception it sees that there was one, and the
        log has it. A cancel from the guest, or the loss of the connection, cancels the task.
        """
        self.stop_serving()
        self._inbox = asyncio.Queue()
        task_group.start_soon(self._dispatch, self._inbox, task_group, answer, name=f"{self.name}: requests")

    def stop_serving(self) -> None:
        """Cancel the requests under way and refuse further ones."""
        if self._inbox is not None:
            self._inbox.put_nowait(None)
            self._inbox = None
        self.cancel_calls()

    def cancel_calls(self) -> None:
        """Cancel the guest's requests under way; each is answered with an error."""
        for serving in list(self._serving.values()):
            serving.cancel()

    @property
    def calls_under_way(self) -> int:
        """How many requests of the guest are being worked on, or wait for it."""
        return len(self._serving)

    @property
    def is_full(self) -> bool:
        """Whether so many requests are under way that the guest should not be read now; ``on_room`` is called when that is over."""
        self._is_full = self._is_full or len(self._serving) >= MAX_CALLS or self._serving_bytes > MAX_CALL_BYTES
        return self._is_full

    def _serve(self, number: int, method: str, args: dict[str, Any], size: int) -> None:
        if number in self._serving:
            raise wire.WireError(f"request id {number} is used twice at once")
        if self._inbox is None:
            self._write(_failed(number, "RuntimeError", f"{method[:METHOD_CHARS]}: no run is active"))
            return
        serving = self._serving[number] = _Serving(size)
        self._serving_bytes += size
        self._inbox.put_nowait((number, method, args, serving))

    async def _dispatch(self, inbox: _Inbox, task_group: TaskGroup, answer: Answer) -> None:
        # Requests arrive in a callback of the loop, where anyio starts no task; this task starts them.
        slots = anyio.Semaphore(ADMITTED, fast_acquire=True)
        begun = 0
        request: _Request | None = None
        try:
            while (request := await inbox.get()) is not None:
                await slots.acquire()
                if request[3].cancelled:
                    slots.release()
                    self._finish(request[0], request[3], _cancelled(*request[:2]))
                else:
                    task_group.start_soon(self._run_call, answer, slots, *request, name=request[1][:METHOD_CHARS])
                request = None
                begun += 1
                if begun % BEGUN_A_TURN == 0:
                    await anyio.lowlevel.checkpoint()
        finally:
            if self._inbox is inbox:
                self._inbox = None
            if request is not None:
                inbox.put_nowait(request)
            self._refuse_rest(inbox)

    def _refuse_rest(self, inbox: _Inbox) -> None:
        """Answer what was not begun, a part in each turn of the loop."""
        for _ in range(BEGUN_A_TURN):
            if inbox.empty():
                return
            if (request := inbox.get_nowait()) is not None:
                self._finish(request[0], request[3], _cancelled(*request[:2]))
        asyncio.get_running_loop().call_soon(self._refuse_rest, inbox)

    async def _run_call(
        self, answer: Answer, slots: anyio.Semaphore, number: int, method: str, args: dict[str, Any], serving: _Serving
    ) -> None:
        reply: list[bytes] | None = None
        try:
            with serving.scope():
                reply = await self._answered(answer, number, method, args)
        finally:
            slots.release()
            self._finish(number, serving, _cancelled(number, method) if reply is None else reply)

    async def _answered(self, answer: Answer, number: int, method: str, args: dict[str, Any]) -> list[bytes]:
        """The frames of an answer, or of the error that came instead. Raises CancelledError when this call was cancelled."""
        try:
            return await _encoded({"id": number, "ok": await answer(method, args)})
        except CallError as error:
            return _failed(number, error.kind, str(error))
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            logger.exception("%s raised CancelledError, and nobody had cancelled it", method[:METHOD_CHARS])
            return _failed(number, "RuntimeError", f"{method[:METHOD_CHARS]}: it was cancelled from within")
        except _Unsendable as error:
            return _failed(number, error.kind, str(error))
        except Exception as error:
            logger.exception("%s failed", method[:METHOD_CHARS])
            return _failed(number, "RuntimeError", f"{method[:METHOD_CHARS]}: it failed on the host ({type(error).__name__})")

    def _finish(self, number: int, serving: _Serving, reply: list[bytes]) -> None:
        del self._serving[number]
        self._serving_bytes -= serving.size
        if self.lost is None:
            self._write(reply)
        if self._is_full and len(self._serving) <= MAX_CALLS // 2 and self._serving_bytes <= MAX_CALL_BYTES // 2:
            self._is_full = False
            if self.on_room is not None:
                asyncio.get_running_loop().call_soon(self.on_room)

    # -- the wire ---------------------------------------------------------------------------------------------------

    def receive(self, message: wire.Message, size: int) -> None:
        """Take one message of the guest. Raises wire.WireError when it breaks a rule."""
        match wire.kind(message):
            case "call":
                self._serve(message["id"], message["call"], message["args"], size)
            case "ok" | "error":
                self._settle(message)
            case "cancel":
                serving = self._serving.get(message["cancel"])
                if serving is not None:
                    serving.cancel()
            case "note":
                if self.on_note is not None:
                    self.on_note(message)
            case "bye":
                self.lose(f"{self.name} left: {message['bye'][:500]}")
            case _:
                raise wire.WireError("a second hello")

    def _settle(self, message: wire.Message) -> None:
        answer = self._asked.pop(message["id"], None)
        if answer is None or answer.done():
            return  # given up meanwhile, or never asked: a late answer harms nobody
        if "ok" in message:
            answer.set_result(message["ok"])
        else:
            error = message["error"]
            answer.set_exception(CallError(error["type"][:KIND_CHARS], error["message"][:ERROR_CHARS]))

    def _write(self, frames: list[bytes]) -> None:
        for frame in frames:
            self._transport.write(frame)
            self.written += len(frame)
        allowed = MAX_UNSENT if self.max_unsent is None else self.max_unsent
        if self.unsent > allowed:
            self.break_off(f"{self.name} does not read: {allowed:,} bytes wait for it")

    @property
    def unsent(self) -> int:
        """Bytes written that the guest has not taken."""
        return self._transport.get_write_buffer_size()

    def break_off(self, reason: str) -> None:
        """End the connection because the guest broke a rule; it is told the reason if it still reads."""
        if self.lost is None:
            logger.warning("connection of %s ended: %s", self.name, reason)
            self._transport.write(wire.encode({"bye": reason})[0])
            self._transport.close()
            self.lose(reason)

    def lose(self, reason: str) -> None:
        """The connection is gone: everything that waits for it is told."""
        if self.lost is not None:
            return
        self.lost = reason
        self._gone.set()
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            if not answer.done():
                answer.set_exception(PeerLost(reason))
        self.cancel_calls()
        self._transport.close()
