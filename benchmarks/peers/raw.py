"""A client that does nothing but ask, on raw asyncio protocols: how many calls a second the provider can carry."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit

CONNECTIONS = 64


class Asking(asyncio.Protocol):
    """One connection that asks again as soon as it is answered, while there is something left to ask."""

    def __init__(self, left: list[int], done: asyncio.Future[None]) -> None:
        body = json.dumps({"model": "bench", "messages": [{"role": "user", "content": "question"}]}).encode()
        self._request = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        self._left = left
        self._done = done
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]):
            return
        self._buffer = b""
        self._left[0] -= 1
        if self._left[0] > 0:
            self._transport.write(self._request)
        elif not self._done.done():
            self._done.set_result(None)


async def calls_per_second(url: str, calls: int) -> float:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    left = [calls]
    address = urlsplit(url)
    began = time.perf_counter()
    opened = [await loop.create_connection(lambda: Asking(left, done), address.hostname, address.port) for _ in range(CONNECTIONS)]
    await done
    took = time.perf_counter() - began
    for transport, _ in opened:
        transport.close()
    return calls / took


if __name__ == "__main__":
    print(asyncio.run(calls_per_second(sys.argv[1], int(sys.argv[2]))))
