"""Bytes to messages: the asyncio protocol of one connection, from its hello to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..guest import wire
from . import heavy
from .peer import STALL_SECONDS, Peer, Transport

HELLO_FRAME = 64 * 1024  # bytes; a hello is small, and a stranger gets no more memory than this
HIGH_WATER = 4 * 1024 * 1024  # bytes unsent before the stall clock runs
TURN_MESSAGES = 200  # handed over before the rest of the loop gets a turn: a few milliseconds
TURN_BYTES = 1024 * 1024

Welcome = Callable[[wire.Message, Transport], Peer]
Complete = tuple[wire.Message, int]


class Connection(asyncio.Protocol):
    """One accepted connection.

    Args:
        welcome: given the hello, returns the Peer that takes over; raises wire.WireError to refuse.
        hello_seconds: a connection that has not said hello in this time is closed.
        stall_seconds: one that takes none of the waiting bytes in this time is closed.
        on_end: called once when the connection is gone.
    """

    def __init__(
        self,
        welcome: Welcome,
        *,
        hello_seconds: float = 10.0,
        stall_seconds: float = STALL_SECONDS,
        on_end: Callable[[Connection], None] | None = None,
    ) -> None:
        self._welcome = welcome
        self._decoder = wire.Decoder(max_frame=HELLO_FRAME, max_message=HELLO_FRAME)
        self._hello_seconds = hello_seconds
        self._stall_seconds = stall_seconds
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._peer: Peer | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._closed = False
        self._held = False  # not read until the step that was put off is done: there is one at a time
        self._parsing: asyncio.Future[Complete | None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the hello clock."""
        assert isinstance(transport, asyncio.Transport)
        if self._closed:  # the handler ended between accepting and this call
            transport.abort()
            return
        transport.set_write_buffer_limits(high=HIGH_WATER)
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(self._hello_seconds, self.break_off, "no hello came in time")

    def data_received(self, data: bytes) -> None:
        """Take bytes; a broken rule ends this connection and nothing else."""
        self._decoder.push(data)
        if not self._held:
            self._hand_over()

    def _hand_over(self) -> None:
        """Pass messages on, for one turn of the loop at most; while something is put off, nothing more is read."""
        handed = size = 0
        try:
            while self._is_open():
                if self._peer is not None and self._peer.is_full:
                    self._hold()  # until the peer says that it has room
                    return
                if handed >= TURN_MESSAGES or size >= TURN_BYTES:
                    self._hold()
                    asyncio.get_running_loop().call_soon(self._hand_over)
                    return
                payload = self._decoder.take()
                if payload is None:
                    self._read_on()
                    return
                handed += 1
                size += len(payload)
                if self._decoder.weight(payload) > heavy.LIGHT_BYTES:
                    self._hold()
                    self._parse_aside(payload)
                    return
                self._pass_on(self._decoder.message(payload))
        except wire.WireError as error:
            self.break_off(str(error))

    def _is_open(self) -> bool:
        assert self._transport is not None
        return not self._transport.is_closing() and (self._peer is None or self._peer.lost is None)

    def _hold(self) -> None:
        assert self._transport is not None
        if not self._held:
            self._held = True
            self._transport.pause_reading()

    def _read_on(self) -> None:
        assert self._transport is not None
        if self._held:
            self._held = False
            self._transport.resume_reading()

    def _parse_aside(self, payload: bytes) -> None:
        # In a thread, which a cancel or the connection's end leaves to its end: it holds nothing but this message.
        self._parsing = asyncio.get_running_loop().run_in_executor(None, self._decoder.message, payload, heavy.loads)
        self._parsing.add_done_callback(self._parsed)

    def _parsed(self, parsing: asyncio.Future[Complete | None]) -> None:
        self._parsing = None
        if parsing.cancelled():
            return
        try:
            complete = parsing.result()
            if self._is_open():
                self._pass_on(complete)
        except (wire.WireError, MemoryError) as error:
            self.break_off(str(error) or "a message is too large for this machine's memory")
        else:
            self._hand_over()

    def _pass_on(self, complete: Complete | None) -> None:
        if complete is None:
            return
        message, size = complete
        if self._peer is None:
            self._greet(message)
        else:
            self._peer.receive(message, size)

    def _greet(self, message: wire.Message) -> None:
        assert self._transport is not None
        if wire.kind(message) != "hello":
            raise wire.WireError("the first message is not a hello")
        if message["hello"] != wire.VERSION:
            raise wire.WireError(f"this host speaks version {wire.VERSION} of the wire, not {message['hello']}")
        self._peer = self._welcome(message, self._transport)
        self._peer.on_room = self._hand_over
        self._decoder.max_frame, self._decoder.max_message = wire.MAX_FRAME, wire.MAX_MESSAGE
        self._stop_timer()

    def break_off(self, reason: str) -> None:
        """End the connection because the other side broke a rule; it is told the reason if it still reads."""
        assert self._transport is not None
        if self._peer is not None:
            self._peer.break_off(reason)
        else:
            self._transport.write(wire.encode({"bye": reason})[0])
            self._transport.close()
        self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side is gone, or we closed."""
        self._stop_timer()
        if self._parsing is not None:
            self._parsing.cancel()
        if self._peer is not None:
            self._peer.lose(self._how_it_ended(exc))
        if self._on_end is not None:
            self._on_end(self)

    def _how_it_ended(self, exc: Exception | None) -> str:
        try:
            self._decoder.end()
        except wire.WireError as error:
            return str(error)
        return f"the connection broke: {exc}" if exc else "the connection was closed by the other side"

    def pause_writing(self) -> None:
        """Too much waits to be read by the other side: start the stall clock."""
        self._watch_stall()

    def resume_writing(self) -> None:
        """The other side reads again."""
        self._stop_timer()

    def _watch_stall(self) -> None:
        assert self._transport is not None
        self._unsent = self._transport.get_write_buffer_size()
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(self._stall_seconds, self._check_stall)

    def _check_stall(self) -> None:
        assert self._transport is not None
        if self._transport.get_write_buffer_size() < self._unsent:
            self._watch_stall()
            return
        if self._peer is not None:
            self._peer.lose("the other side stopped reading")
        self._transport.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """End the connection from our side."""
        self._closed = True
        if self._transport is not None:
            self._stop_timer()
            self._transport.abort()
