"""The scripted provider's HTTP/1.1 server: one asyncio Protocol, keep-alive, content-length bodies. Standard library only."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote

from .provider_board import Board
from .provider_messages import Call, Request, Sent
from .wires import called, spoken
from .wires.base import Trouble, Wire

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_HEAD = 2**16  # bytes
WAITING = (429, 503)  # statuses that carry Retry-After


class Connection(asyncio.Protocol):
    """One client connection. Requests are answered one after the other; a client that leaves while it waits counts as aborted."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._need = 0
        self._waiting: asyncio.Handle | None = None
        self._busy = False
        self._transport: asyncio.Transport | None = None
        self.has_called = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected; the connection counts from its first call on, so that a look at the counters does not."""
        self._transport = cast("asyncio.Transport", transport)
        self._board.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        self._board.connections.discard(self)
        if self._waiting is not None:
            self._waiting.cancel()
        if self._busy:
            self._board.counts["aborted"] += 1
            self._end_call()
        self._transport = None
        self._board.changed()

    def close(self) -> None:
        """Close the connection without a reply."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Collect, and answer once a request is whole."""
        self._buffer += data
        if not self._busy and len(self._buffer) >= self._need:
            self._next()

    def _next(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > LONGEST_HEAD or not self._buffer[:1].isupper():
                self.close()  # not HTTP: a TLS handshake, for example
            return
        head = bytes(self._buffer[:end]).decode("latin-1")
        request_line, *lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        method, path, *_ = [*request_line.split(" "), "", ""]
        if "transfer-encoding" in headers:
            self._refuse(spoken(path, headers), Trouble(what="body", status=411, told="this server wants a content-length"))
            return
        self._need = end + 4 + int(headers.get("content-length", 0))
        if len(self._buffer) < self._need:
            return
        body = bytes(self._buffer[end + 4 : self._need])
        del self._buffer[: self._need]
        self._need = 0
        self._route(method, path, headers, body)

    def _route(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> None:
        board = self._board
        path, _, query = target.partition("?")
        if method == "POST" and (wire := called(path)) is not None:
            self._call(wire, Request(path=path, query=query, headers=headers, body=body))
            return
        match method, path:
            case "GET", "/_stats":
                self._send_json(200, board.stats())
            case "GET", "/_requests":
                self._send_json(200, list(board.requests))
            case "POST", "/_reset":
                board.reset()
                self._send_json(200, {})
            case "POST", "/_script":
                try:
                    board.configure(json.loads(body))
                    self._send_json(200, {})
                except (ValueError, TypeError) as error:
                    self._send_json(400, {"error": {"message": str(error)}})
            case "GET", _ if path.endswith("/models") or "/models/" in path:
                self._models(spoken(path, headers), path, headers)
            case _:
                self._refuse(spoken(path, headers), Trouble(what="url", status=404, told=f"{method} {path}"))

    def _models(self, wire: Wire, path: str, headers: Mapping[str, str]) -> None:
        script = self._board.player.script
        name = unquote(path.rpartition("/models")[2].removeprefix("/"))
        if script.key is not None and (key := wire.key(headers)) != script.key:
            self._refuse(wire, Trouble(what="key", status=401, key=key))
        elif name in script.missing_models:
            self._refuse(wire, Trouble(what="model", status=404, model=name))
        else:
            self._send_json(200, wire.model(name, script) if name else wire.models(script, path))

    def _call(self, wire: Wire, request: Request) -> None:
        board, script = self._board, self._board.player.script
        board.counts["calls"] += 1
        if not self.has_called:
            self.has_called = True
            board.counts["connections"] += 1
        key = wire.key(request.headers)
        if script.key is not None and key != script.key:
            self._reject(wire, Trouble(what="key", status=401, key=key))
            return
        try:
            body = json.loads(request.body)
            asked = wire.asked(request.path, request.headers, body)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            self._reject(wire, Trouble(what="body", status=400, told=str(error) if isinstance(error, ValueError) else repr(error)))
            return
        board.requests.append(request.shown(wire.name, body))
        if (trouble := board.player.trouble(asked, wire)) is not None:
            self._reject(wire, trouble)
        elif not board.player.lets_in(self._loop.time()):
            board.counts["limited"] += 1
            self._refuse(wire, Trouble(what="rate", status=429, model=asked.model, wait=script.wait))
        else:
            self._answer(Call(wire, asked, board.player.answer(asked.messages)))

    def _answer(self, call: Call) -> None:
        board = self._board
        board.counts["root_calls" if call.answer.is_root else "sub_calls"] += 1
        self._busy = True
        board.held.append(lambda: self._release(call))
        board.begin()

    def _release(self, call: Call) -> None:
        if not self._busy:
            return  # the client left while it was held
        fault, delay = call.answer.fault, call.answer.delay
        if fault == "stall":
            self._board.counts["fault:stall"] += 1
            return
        if fault == "slow_first_byte":
            delay += self._board.player.script.slow
        if delay > 0:
            self._waiting = self._loop.call_later(delay, self._reply, call)
        else:
            self._reply(call)

    def _reply(self, call: Call) -> None:
        board, script, fault = self._board, self._board.player.script, call.answer.fault
        if fault is not None:
            board.counts[f"fault:{fault}"] += 1
        if fault == "stall_body":
            self._send_half(call.body(script, next(board.numbers)))
            board.changed()
            return  # in flight until the client leaves
        self._end_call()
        match fault:
            case None | "slow_first_byte":
                board.bill(call.answer, call.asked.model)
                self._send(200, call.body(script, next(board.numbers)))
            case "reset":
                self._reset()
            case "cut":
                self._send_half(call.body(script, next(board.numbers))).close()
            case "invalid_json":
                self._send(200, call.broken())
            case "html":
                self._send(200, Sent(b"<!doctype html><html><body>Welcome</body></html>", kind="text/html"))
            case "stream_error" if call.asked.stream:
                self._send(200, call.interrupted(script, next(board.numbers)))
            case _:
                status = 529 if fault == "stream_error" else int(fault)
                self._refuse(call.wire, Trouble(what="fault", status=status, model=call.asked.model, wait=script.wait))

    def _end_call(self) -> None:
        self._busy = False
        self._waiting = None
        self._board.in_flight -= 1
        self._board.changed()

    def _reject(self, wire: Wire, trouble: Trouble) -> None:
        self._board.counts["rejected"] += 1
        self._refuse(wire, trouble)

    def _refuse(self, wire: Wire, trouble: Trouble) -> None:
        number, script = next(self._board.numbers), self._board.player.script
        status, body = wire.error(trouble, number)
        extra = f"{wire.id_header}: req_{number}\r\n"
        if wire.says_wait_in_headers and (trouble.what == "rate" or trouble.status in WAITING):
            waits = {"Retry-After": script.retry_after, "retry-after-ms": script.retry_after_ms}
            extra += "".join(f"{name}: {value}\r\n" for name, value in waits.items() if value is not None)
        self._send(status, Sent(json.dumps(body).encode(), extra=extra))

    def _send_json(self, status: int, body: object) -> None:
        self._send(status, Sent(json.dumps(body).encode()))

    def _send(self, status: int, sent: Sent) -> None:
        if self._transport is None:
            return
        self._transport.write(sent.head(status) + sent.body)
        if self._buffer:
            self._loop.call_soon(self._next)

    def _send_half(self, sent: Sent) -> asyncio.Transport:
        assert self._transport is not None
        self._transport.write(sent.head(200) + sent.body[: len(sent.body) // 2])
        return self._transport

    def _reset(self) -> None:
        assert self._transport is not None
        peer: socket.socket = self._transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
