"""One request to a broker and its answer: bounded in size and in time, whatever a gateway makes of it."""

from __future__ import annotations

import asyncio
import io
import itertools
import secrets
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

import aiohttp

from ..broker.streams import BODY_BYTES, TOKEN, Broken, Packet, unpack
from ..network import proxy_for, trusted

CONNECT_SECONDS = 10.0
TRANSFER_SECONDS = 60.0  # for both bodies, beyond the time that an answer may take to begin: 4 MiB at 70 kB/s
SAID_CHARS = 200  # of what a gateway said, in messages
HIDDEN_CHARS = 8  # a header's value of so many may be a secret; a shorter one would be found in any text

Method = Literal["GET", "POST"]


class Failed(Exception):
    """A request brought no answer of the broker's to it; the text says what came instead, ``status`` with what number."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class Asker:
    """What asks one broker. It follows no redirect, keeps no cookie, and its headers go to ``url`` alone; made on the loop it is used on.

    Proxies and certificates are those that the environment names. Raises ConfigError for a proxy of a kind that cannot be used.

    Args:
        url: of the broker, as its gateway has it.
        token: the host's.
        headers: for the gateway, in each request.
    """

    def __init__(self, url: str, token: str, headers: Mapping[str, str]) -> None:
        self._url = url.rstrip("/")
        self._proxy = proxy_for(url)
        login = urlsplit(self._proxy or "")
        self._hidden = [it for it in (token, *headers.values(), login.username or "", login.password or "") if len(it) >= HIDDEN_CHARS]
        self._name = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=8, ssl=trusted(url)),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={**headers, TOKEN: token, "Accept-Encoding": "identity"},
            auto_decompress=False,
        )

    async def ask(self, method: Method, path: str, query: Mapping[str, str], body: bytes | None, seconds: float) -> Packet:
        """Send a request; returns the answer to it. Raises Failed, whatever came instead. Cancelled, the connection is closed.

        Args:
            seconds: until the answer begins.
        """
        name = f"{self._name}-{next(self._numbers)}"
        try:
            async with asyncio.timeout(seconds + TRANSFER_SECONDS):
                packet = unpack(await self._exchange(method, path, {**query, "asked": name}, body, seconds))
        except (aiohttp.ClientError, aiohttp.http.HttpProcessingError, OSError, ValueError, Broken) as error:
            failed = Failed(self._without_secrets(f"{type(error).__name__}: {error}".removesuffix(": ")))
        else:
            if packet.asked == name:
                return packet
            failed = Failed("an answer to another request came")
        raise failed  # out here, or aiohttp's own error, which may have headers, would stay its context

    async def _exchange(self, method: Method, path: str, query: Mapping[str, str], body: bytes | None, seconds: float) -> bytes:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=seconds)
        data = None if body is None else io.BytesIO(body)  # aiohttp writes it in pieces, and bytes in one
        async with self._session.request(
            method, self._url + path, params=query, data=data, timeout=timeout, allow_redirects=False, proxy=self._proxy
        ) as answer:
            try:
                said = await _read(answer)
                if answer.status != 200:
                    text = self._without_secrets(said.decode("utf-8", "replace"))[:SAID_CHARS]
                    raise Failed(f"status {answer.status}: {text!r}", answer.status)
                if (coding := answer.headers.get("Content-Encoding", "").lower()) not in ("", "identity"):
                    raise Failed(f"the gateway compressed the answer ({coding[:20]!r}), which it was asked not to: switch that off there")
            except BaseException:
                answer.close()  # whoever answers so may not have read the request
                raise
            return said

    def _without_secrets(self, text: str) -> str:
        for secret in self._hidden:
            text = text.replace(secret, "***")
        return text

    async def close(self) -> None:
        """Close its connections."""
        await self._session.close()


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    """The body, unless it is longer than any of the broker's. Raises Broken."""
    parts: list[bytes] = []
    size = 0
    async for part in answer.content.iter_any():
        size += len(part)
        if size > BODY_BYTES:
            raise Broken("the body is too long")
        parts.append(part)
    return b"".join(parts)
