"""Quill, the made-up text service that examples/arlm-quill speaks to: a server on loopback. Standard library only."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, Self

Turns = list[dict[str, str]]


class Quill:
    """``async with Quill(write) as quill``: answers every request by ``write``.

    Args:
        write: from a request's turns to the text; or to a status, headers and a body instead of one.
        key: the only one that is let in.

    Attributes:
        url: its base URL.
        requests: the bodies that came, oldest first.
        cut: how many clients left before they had their reply.
    """

    def __init__(self, write: Callable[[Turns], Any], *, key: str = "quill-key") -> None:
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self.cut = 0
        self.waiting = asyncio.Event()
        self._write = write
        self._key = key
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", backlog=1_024)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while head := await _head(reader):
                await self._answer(head, await reader.readexactly(int(head["content-length"])), reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left
        except asyncio.CancelledError:
            pass  # the server ends; a stream server would report it as an error of the handler
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, head: Mapping[str, str], body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        given = head.get("authorization", "").removeprefix("Bearer ")
        status, headers, reply = 200, {}, b""
        if head[""] != "POST /write HTTP/1.1":
            status, reply = 404, _error(f"nothing is at {head['']}")
        elif given != self._key:
            status, reply = 401, _error(f"the key {given} is not known")
        else:
            request = json.loads(body)
            self.requests.append(request)
            written = self._write(request["turns"])
            if written is None:  # never: until the client leaves
                self.waiting.set()
                await reader.read()
                self.cut += 1
                return
            status, headers, reply = written if isinstance(written, tuple) else (200, {}, _text(written, request["turns"]))
        lines = {"Content-Type": "application/json", "Content-Length": str(len(reply)), **headers}
        writer.write(
            f"HTTP/1.1 {status} X\r\n{''.join(f'{name}: {value}{chr(13)}{chr(10)}' for name, value in lines.items())}\r\n".encode()
        )
        writer.write(reply)
        await writer.drain()


async def _head(reader: asyncio.StreamReader) -> dict[str, str]:
    """The header fields in lower case, the request line under ``""``; empty when the client has left."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n") if not reader.at_eof() else [""]
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:]) if name}
    return {"": lines[0], **fields} if lines[0] else {}


def _text(text: str, turns: Turns) -> bytes:
    tokens = {"read": sum(len(turn["text"]) for turn in turns), "written": len(text)}
    return json.dumps({"text": text, "ended": "done", "tokens": tokens}).encode()


def _error(message: str) -> bytes:
    return json.dumps({"error": {"message": message}}).encode()
