"""The scripted provider's HTTP/1.1 server: one asyncio Protocol, keep-alive, content-length bodies. Standard library only."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, cast

from .provider_script import Answer, Player, Script

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LONGEST_HEAD = 2**16  # bytes
KEPT_REQUESTS = 64  # how many request bodies are kept for a test to look at
_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 411: "Length Required", 429: "Too Many Requests"}


class Board:
    """The server's state: the script that plays, the counters, the last requests, the open connections."""

    def __init__(self, script: Script) -> None:
        self.player = Player(script)
        self.connections: set[Connection] = set()
        self.held: list[Callable[[], None]] = []
        self._watchers: list[tuple[Callable[[Mapping[str, Any]], bool], asyncio.Future[None]]] = []
        self.reset()

    def reset(self) -> None:
        """Set the counters to zero."""
        self.counts: Counter[str] = Counter()
        self.by_model: Counter[str] = Counter()
        self.in_flight = 0
        self.max_in_flight = 0
        self.requests: deque[dict[str, Any]] = deque(maxlen=KEPT_REQUESTS)

    def configure(self, values: Mapping[str, Any]) -> None:
        """Replace the script. Counters stay; calls that wait keep the reply they have."""
        self.player = Player(Script.from_dict(values))

    def stats(self) -> dict[str, Any]:
        """The counters, as JSON."""
        counted = {name: self.counts[name] for name in (*_COUNTED, *_TOKENS)}
        faults = {name[6:]: count for name, count in self.counts.items() if name.startswith("fault:")}
        return {
            **counted,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "open_connections": sum(connection.has_called for connection in self.connections),
            "faults": faults,
            "by_model": dict(self.by_model),
        }

    async def until(self, condition: Callable[[Mapping[str, Any]], bool]) -> None:
        """Wait until the counters meet ``condition``."""
        if not condition(self.stats()):
            met: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._watchers.append((condition, met))
            await met

    def changed(self) -> None:
        """Tell those who wait that a counter has changed."""
        for watcher in list(self._watchers):
            condition, met = watcher
            if met.done() or condition(self.stats()):
                self._watchers.remove(watcher)
                if not met.done():
                    met.set_result(None)

    def begin(self) -> None:
        """One more call in flight; replies that were held for it go out."""
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        self.changed()
        if self.in_flight >= self.player.script.hold:
            held, self.held = self.held, []
            for release in held:
                release()

    def bill(self, answer: Answer, model: str) -> None:
        """Count a reply that is being sent."""
        self.counts["answered"] += 1
        self.by_model[model] += 1
        usage = answer.usage
        self.counts["prompt_tokens"] += usage["prompt_tokens"]
        self.counts["completion_tokens"] += usage["completion_tokens"]
        self.counts["cached_tokens"] += usage["prompt_tokens_details"]["cached_tokens"]
        self.counts["reasoning_tokens"] += usage["completion_tokens_details"]["reasoning_tokens"]


_COUNTED = ("calls", "root_calls", "sub_calls", "answered", "limited", "rejected", "aborted", "connections")
_TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")


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
            self._send_json(411, _error("this server wants a content-length", "invalid_request_error"))
            return
        self._need = end + 4 + int(headers.get("content-length", 0))
        if len(self._buffer) < self._need:
            return
        body = bytes(self._buffer[end + 4 : self._need])
        del self._buffer[: self._need]
        self._need = 0
        self._route(method, path.partition("?")[0], headers, body)

    def _route(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        board = self._board
        match method, path:
            case "POST", _ if path.endswith("/chat/completions"):
                self._chat(path, headers, body)
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
                    self._send_json(400, _error(str(error), "script"))
            case "GET", _ if path.endswith("/models"):
                self._send_json(200, {"object": "list", "data": [{"id": "any", "object": "model"}]})
            case _:
                self._send_json(404, _error(f"Invalid URL ({method} {path})", "invalid_request_error"))

    def _chat(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        board, script = self._board, self._board.player.script
        board.counts["calls"] += 1
        if not self.has_called:
            self.has_called = True
            board.counts["connections"] += 1
        key = headers.get("api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if script.key is not None and key != script.key:
            self._reject(401, _error(f"Incorrect API key provided: {key}.", "invalid_request_error", "invalid_api_key"))
            return
        try:
            request = json.loads(body)
            messages = request["messages"]
            model = str(request["model"])
        except (ValueError, KeyError, TypeError) as error:
            self._reject(400, _error(f"We could not parse the JSON body of your request: {error!r}", "invalid_request_error"))
            return
        board.requests.append({"path": path, "headers": dict(headers), "body": request})
        if model in script.missing_models:
            self._reject(404, _error(f"The model `{model}` does not exist", "invalid_request_error", "model_not_found"))
        elif script.context_chars is not None and sum(len(message.get("content") or "") for message in messages) > script.context_chars:
            told = f"This model's maximum context length is {script.context_chars // 4} tokens."
            self._reject(400, _error(told, "invalid_request_error", "context_length_exceeded"))
        elif not board.player.lets_in(self._loop.time()):
            board.counts["limited"] += 1
            self._send_json(429, _error("Rate limit reached", "requests", "rate_limit_exceeded"), self._retry_headers())
        else:
            self._answer(board.player.answer(messages), model)

    def _answer(self, answer: Answer, model: str) -> None:
        board = self._board
        board.counts["root_calls" if answer.is_root else "sub_calls"] += 1
        self._busy = True
        board.held.append(lambda: self._release(answer, model))
        board.begin()

    def _release(self, answer: Answer, model: str) -> None:
        if not self._busy:
            return  # the client left while it was held
        if answer.fault == "stall":
            self._board.counts["fault:stall"] += 1
        elif answer.delay > 0:
            self._waiting = self._loop.call_later(answer.delay, self._reply, answer, model)
        else:
            self._reply(answer, model)

    def _reply(self, answer: Answer, model: str) -> None:
        self._end_call()
        board, script = self._board, self._board.player.script
        if answer.fault is None:
            board.bill(answer, model)
            self._send_json(200, _completion(answer, model, script, board.counts["answered"]))
            return
        board.counts[f"fault:{answer.fault}"] += 1
        match answer.fault:
            case "reset":
                self._reset()
            case "cut":
                self._cut(json.dumps(_completion(answer, model, script, 0)).encode())
            case "invalid_json":
                self._send(200, b'{"choices": [{"message"', "application/json")
            case "html":
                self._send(200, b"<!doctype html><html><body>Welcome</body></html>", "text/html")
            case status:
                extra = self._retry_headers() if status in ("429", "503") else {}
                self._send_json(int(status), _error(f"scripted {status}", "server_error"), extra)

    def _retry_headers(self) -> Mapping[str, str | None]:
        script = self._board.player.script
        return {"Retry-After": script.retry_after, "retry-after-ms": script.retry_after_ms}

    def _end_call(self) -> None:
        self._busy = False
        self._waiting = None
        self._board.in_flight -= 1
        self._board.changed()

    def _reject(self, status: int, body: object) -> None:
        self._board.counts["rejected"] += 1
        self._send_json(status, body)

    def _send_json(self, status: int, body: object, headers: Mapping[str, str | None] | None = None) -> None:
        self._send(status, json.dumps(body).encode(), "application/json", headers)

    def _send(self, status: int, body: bytes, kind: str, headers: Mapping[str, str | None] | None = None) -> None:
        if self._transport is None:
            return
        extra = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value is not None) if headers else ""
        reason = _REASONS.get(status, "Error")
        head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
        self._transport.write(head.encode("latin-1") + body)
        if self._buffer:
            self._loop.call_soon(self._next)

    def _cut(self, body: bytes) -> None:
        assert self._transport is not None
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body[: len(body) // 2])
        self._transport.close()

    def _reset(self) -> None:
        assert self._transport is not None
        peer: socket.socket = self._transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


def _completion(answer: Answer, model: str, script: Script, number: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if script.refusal is not None:
        message["refusal"] = script.refusal
    completion: dict[str, Any] = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": script.finish_reason}],
    }
    return {**completion, "usage": answer.usage} if script.usage else completion


def _error(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
