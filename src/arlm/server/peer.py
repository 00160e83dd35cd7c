"""One connection to a guest, seen from the host: calls in both directions, many at once, answered in any order."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import anyio
from anyio.abc import TaskGroup

from ..errors import ProtocolError
from ..guest import wire
from ..types import JSON

logger = logging.getLogger("arlm.server")

MAX_CALLS = 20_000  # requests of one guest under way at once; a batch is one request per MiB
MAX_CALL_BYTES = 512 * 1024 * 1024  # size of a guest's requests under way; above it the guest is not read until some are answered
MAX_UNSENT = 256 * 1024 * 1024  # bytes waiting for a guest that does not read
STALL_SECONDS = 60.0  # a guest that takes nothing for so long, with bytes waiting, has stopped reading

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

    __slots__ = ("_cancelled", "_scope", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._scope: anyio.CancelScope | None = None
        self._cancelled = False

    def scope(self) -> anyio.CancelScope:
        self._scope = anyio.CancelScope()
        if self._cancelled:
            self._scope.cancel()
        return self._scope

    def cancel(self) -> None:
        self._cancelled = True
        if self._scope is not None:
            self._scope.cancel()


_Request = tuple[int, str, dict[str, Any], _Serving]


def _read(answer: asyncio.Future[JSON]) -> None:
    if not answer.cancelled():
        answer.exception()  # whoever waits is told; nobody has to wait


def _cancelled(number: int, method: str) -> wire.Message:
    return {"id": number, "error": {"type": "RuntimeError", "message": f"{method}: cancelled"}}


class Peer:
    """A connection whose hello is done.

    Args:
        transport: where frames go.
        name: for messages and logs.

    Attributes:
        lost: the reason once the connection is gone, else None.
        on_note: called with each one-way message of the guest.
    """

    def __init__(self, transport: Transport, name: str) -> None:
        self.name = name
        self.lost: str | None = None
        self.on_note: Callable[[wire.Message], None] | None = None
        self._transport = transport
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[JSON]] = {}
        self._serving: dict[int, _Serving] = {}
        self._serving_bytes = 0
        self._paused = False
        self._inbox: asyncio.Queue[_Request | None] | None = None
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

        ``answer`` raises CallError for what the guest is to see as an error; any other exception ends the task group.
        A cancel from the guest, or the loss of the connection, cancels the task.
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
        """How many requests of the guest are being worked on."""
        return len(self._serving)

    def _serve(self, number: int, method: str, args: dict[str, Any], size: int) -> None:
        if number in self._serving:
            raise wire.WireError(f"request id {number} is used twice at once")
        if len(self._serving) >= MAX_CALLS:
            raise wire.WireError(f"more than {MAX_CALLS:,} requests are under way")
        if self._inbox is None:
            self._reply({"id": number, "error": {"type": "RuntimeError", "message": f"{method}: no run is active"}})
            return
        serving = self._serving[number] = _Serving(size)
        self._count(size)
        self._inbox.put_nowait((number, method, args, serving))

    async def _dispatch(self, inbox: asyncio.Queue[_Request | None], task_group: TaskGroup, answer: Answer) -> None:
        # Requests arrive in a callback of the loop, where anyio starts no task; this task starts them.
        try:
            while (request := await inbox.get()) is not None:
                task_group.start_soon(self._run_call, answer, *request, name=request[1])
        finally:
            if self._inbox is inbox:
                self._inbox = None
            while not inbox.empty():
                if (request := inbox.get_nowait()) is not None:
                    self._finish(request[0], request[3], _cancelled(request[0], request[1]))

    async def _run_call(self, answer: Answer, number: int, method: str, args: dict[str, Any], serving: _Serving) -> None:
        reply = _cancelled(number, method)
        try:
            with serving.scope():
                try:
                    reply = {"id": number, "ok": await answer(method, args)}
                except CallError as error:
                    reply = {"id": number, "error": {"type": error.kind, "message": str(error)}}
        finally:
            self._finish(number, serving, reply)

    def _finish(self, number: int, serving: _Serving, reply: wire.Message) -> None:
        del self._serving[number]
        self._count(-serving.size)
        self._reply(reply)

    def _reply(self, message: wire.Message) -> None:
        if self.lost is not None:
            return
        try:
            frames = wire.encode(message)
        except (TypeError, ValueError) as error:
            frames = wire.encode({"id": message["id"], "error": {"type": type(error).__name__, "message": str(error)}})
        self._write(frames)

    def _count(self, size: int) -> None:
        self._serving_bytes += size
        if self._serving_bytes > MAX_CALL_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        elif self._paused and self._serving_bytes <= MAX_CALL_BYTES // 2 and self.lost is None:
            self._paused = False
            self._transport.resume_reading()

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
            answer.set_exception(CallError(message["error"]["type"], message["error"]["message"]))

    def _write(self, frames: list[bytes]) -> None:
        for frame in frames:
            self._transport.write(frame)
        if self._transport.get_write_buffer_size() > MAX_UNSENT:
            self.break_off(f"{self.name} does not read: {MAX_UNSENT:,} bytes wait for it")

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
