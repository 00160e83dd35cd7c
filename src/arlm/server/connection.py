"""Bytes to messages: the asyncio protocol of one connection, from its hello to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..guest import wire
from .peer import STALL_SECONDS, Peer, Transport

HELLO_FRAME = 64 * 1024  # bytes; a hello is small, and a stranger gets no more memory than this
HIGH_WATER = 4 * 1024 * 1024  # bytes unsent before the stall clock runs

Welcome = Callable[[wire.Message, Transport], Peer]


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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the hello clock."""
        assert isinstance(transport, asyncio.Transport)
        if self._closed:  # the handler ended between accepting and this call
            transport.abort()
            return
        transport.set_write_buffer_limits(high=HIGH_WATER)
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(self._hello_seconds, self._refuse, "no hello came in time")

    def data_received(self, data: bytes) -> None:
        """Take bytes; a broken rule ends this connection and nothing else."""
        assert self._transport is not None
        if self._transport.is_closing():
            return
        try:
            messages = self._decoder.feed(data)
            for message, size in zip(messages, self._decoder.sizes, strict=True):
                if self._peer is None:
                    self._greet(message)
                elif self._peer.lost is None:
                    self._peer.receive(message, size)
        except wire.WireError as error:
            self._refuse(str(error))

    def _greet(self, message: wire.Message) -> None:
        assert self._transport is not None
        if wire.kind(message) != "hello":
            raise wire.WireError("the first message is not a hello")
        if message["hello"] != wire.VERSION:
            raise wire.WireError(f"this host speaks version {wire.VERSION} of the wire, not {message['hello']}")
        self._peer = self._welcome(message, self._transport)
        self._decoder.max_frame, self._decoder.max_message = wire.MAX_FRAME, wire.MAX_MESSAGE
        self._stop_timer()

    def _refuse(self, reason: str) -> None:
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
