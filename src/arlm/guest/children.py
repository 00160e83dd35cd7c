"""What a supervisor knows of one process below it: its name, its output, and the connection that is relayed for it."""

from __future__ import annotations

import os
import selectors
import socket
from typing import Callable, Iterable, List, Optional, Tuple

from . import capture, processes, wire
from .bounds import Bound

READ_BYTES = 256 * 1024
MAX_BACKLOG = 8 * 1024 * 1024  # bytes waiting for a slow host before relayed workers are no longer read
MAX_UNSENT = 256 * 1024 * 1024  # bytes that may wait for one relayed worker
LAST_WORDS = 64 * 1024  # bytes of a dead worker's unread output that are passed on

Send = Callable[[wire.Message], None]


class Child:
    """A worker or a holder.

    Attributes:
        request: the request of the host that it was started for, to be answered once it runs.
        pid: 0 until it is forked.
        output: the read end of its output.
        relay: the near end of its relayed connection.
        channel: of a holder, the far end of its connection, until it has it.
        waiting: requests to kill it, to be answered once it is dead.
        doomed: to be killed, with all below it.
        bound: its limits; None for a holder.
    """

    def __init__(self, name: str, request: int, *, relayed: bool) -> None:
        self.name = name
        self.request = request
        self.pid = 0
        self.output = -1
        self.relay: Optional[socket.socket] = None
        self.channel: Optional[socket.socket] = None
        self.unsent = bytearray()
        self.waiting: List[int] = []
        self.doomed = False
        self.bound: Optional[Bound] = None
        self._relayed = relayed

    def open(self) -> Tuple[Tuple[int, int], Optional[socket.socket]]:
        """Make its descriptors; returns those that it gets itself: the output's (read end, write end), its end of the relayed connection.

        The caller closes the write end and the connection's end after the fork.
        """
        output = capture.open_pipe()
        self.output = output[0]
        theirs: Optional[socket.socket] = None
        if self._relayed:
            try:
                self.relay, theirs = socket.socketpair()
            except OSError:
                os.close(output[1])
                self.close()
                raise
            self.relay.setblocking(False)
        return output, theirs

    def last_words(self) -> str:
        """What it printed and nobody has read."""
        try:
            return os.read(self.output, LAST_WORDS).decode("utf-8", "replace")
        except OSError:
            return ""

    def close(self) -> None:
        """Let go of its output and its connection, which is not registered any more."""
        if self.output >= 0:
            os.close(self.output)
            self.output = -1
        for sock in (self.relay, self.channel):
            if sock is not None:
                sock.close()
        self.relay = self.channel = None


class Relays:
    """Connections of children that pass through the host's own.

    Args:
        selector: where they are registered; the data of a key is what to call.
        send: passes a message to the host.
    """

    def __init__(self, selector: selectors.BaseSelector, send: Send) -> None:
        self._selector = selector
        self._send = send

    def mind(self, children: Iterable[Child], backlog: int) -> None:
        """Ask to be woken for what is due; with a large backlog for the host nothing is read."""
        reading = 0 if backlog > MAX_BACKLOG else selectors.EVENT_READ
        for child in children:
            if child.relay is not None:
                self._mind(child, child.relay, reading | (selectors.EVENT_WRITE if child.unsent else 0))

    def _mind(self, child: Child, relay: socket.socket, wanted: int) -> None:
        known = self._selector.get_map().get(relay)
        if known is None and wanted:
            self._selector.register(relay, wanted, lambda: self._pass(child))
        elif known is not None and not wanted:
            self._selector.unregister(relay)
        elif known is not None and known.events != wanted:
            self._selector.modify(relay, wanted, known.data)

    def _pass(self, child: Child) -> None:
        if child.relay is None:
            return  # it was buried by an earlier event of the same round
        try:
            while child.unsent:
                del child.unsent[: child.relay.send(child.unsent[:READ_BYTES])]
        except BlockingIOError:
            pass
        except OSError:
            child.unsent.clear()
        self._pass_out(child)

    def _pass_out(self, child: Child) -> bool:
        """Pass on what a child has sent, one piece; False when nothing is there."""
        if child.relay is None:
            return False
        try:
            data = child.relay.recv(READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._unregister(child.relay)
            child.relay.close()
            child.relay = None
            return False
        self._send({"note": "relay", "worker": child.name, "data": data.decode("latin-1")})
        return True

    def _unregister(self, relay: socket.socket) -> None:
        if relay in self._selector.get_map():
            self._selector.unregister(relay)

    def pass_in(self, child: Child, data: bytes) -> None:
        """Bytes from the host."""
        if child.relay is not None:
            child.unsent += data
            if len(child.unsent) > MAX_UNSENT:
                processes.kill(child.pid)  # it does not read; the other workers' memory is not its to fill

    def end(self, child: Child) -> None:
        """The child is dead: pass on all that it has sent."""
        while self._pass_out(child):
            pass
        if child.relay is not None:
            self._unregister(child.relay)
