"""The Poller: the host's end of a broker, by long polls and posts through whatever gateways are between.

What a request could not bring is brought by the next one: both directions are numbered streams (``broker.streams``), of which nothing is
lost and nothing comes twice, whatever becomes of single requests. Only when nothing gets through for long, or the broker is another one, is
the connection lost. It is carried by aiohttp, as the models' calls are.
"""

from __future__ import annotations

import asyncio
import io
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

import aiohttp

from ..broker.streams import BODY_BYTES, TOKEN, Broken, Gap, Incoming, Outgoing, Packet, unpack
from ..errors import SandboxError

logger = logging.getLogger("arlm.server")

WAIT_SECONDS = 20.0  # of a long poll: gateways allow 30 to 100
ANSWER_SECONDS = 15.0  # for an answer to come, beyond that
CONNECT_SECONDS = 10.0
START_SECONDS = 60.0  # until a broker just started is heard of
LOST_SECONDS = 60.0  # without one answer of the broker's: then the connection is lost
PAUSES = (0.05, 2.0)  # after a failure: the first, the longest; each is twice the last, and up to half of it is chance
FAILURES = 3  # in a row, until it is asked whether the sandbox is there at all
SAID_CHARS = 200  # of what a gateway said, in messages

Method = Literal["GET", "POST"]


class Poller:
    """A connection to a broker.

    Args:
        url: of the broker, as its gateway has it.
        token: the host's.
        receive: called with each piece of the guest's, once and in order: channel, bytes.
        on_lost: called once, with the reason, when the connection is lost for good.
        is_gone: asks, when several requests in a row have failed, whether the sandbox is: returns why, or None while it is there.
        headers: for the gateway, in each request.
        wait_seconds, lost_seconds: of a long poll; without any answer.

    Attributes:
        lost: the reason once it is lost, else None.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        receive: Callable[[int, bytes], None],
        on_lost: Callable[[str], None],
        is_gone: Callable[[], Awaitable[str | None]] | None = None,
        headers: Mapping[str, str] | None = None,
        wait_seconds: float = WAIT_SECONDS,
        lost_seconds: float = LOST_SECONDS,
    ) -> None:
        self.lost: str | None = None
        self._url = url.rstrip("/")
        self._headers = {**(headers or {}), TOKEN: token, "Accept-Encoding": "identity"}
        self._receive = receive
        self._on_lost = on_lost
        self._is_gone = is_gone
        self._wait = wait_seconds
        self._lost_seconds = lost_seconds
        self._epoch = ""
        self._incoming = Incoming()
        self._outgoing = Outgoing()
        self._more = asyncio.Event()
        self._heard = 0.0
        self._session: aiohttp.ClientSession | None = None
        self._loops: list[asyncio.Task[None]] = []

    def unsent(self, channel: int) -> int:
        """Bytes of a channel that the broker has not said to have."""
        return self._outgoing.waiting(channel)

    def send(self, channel: int, data: bytes) -> None:
        """Send bytes. Nothing happens once it is lost."""
        if self.lost is None:
            self._outgoing.put(channel, data)
            self._more.set()

    async def open(self) -> None:
        """Wait for the broker's first answer, and begin. Raises SandboxError; ``close`` ends it in any case."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=8),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        self._heard = self._now()
        pauses = _Pauses()
        while not self._epoch:
            try:
                packet = await self._ask("GET", "/pending", {"wait": "0"}, None, ANSWER_SECONDS)
                self._epoch = packet.epoch
            except _Failed as error:
                await self._weigh(error, pauses, START_SECONDS)
                if self.lost is not None:
                    raise SandboxError(f"the sandbox was started, and its broker was not heard of: {self.lost}") from error
        self._loops = [asyncio.ensure_future(self._poll()), asyncio.ensure_future(self._post())]
        for task in self._loops:
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("the connection to a broker ended by a fault", exc_info=error)
        self._lose(f"its connection ended: {type(error).__name__}" if error is not None else "its connection was given up")

    async def close(self) -> None:
        """End it. What was not sent is not sent."""
        self.lost = self.lost or "it was closed"
        for loop in self._loops:
            loop.cancel()
        if self._loops:
            await asyncio.wait(self._loops)
        if self._session is not None:
            await self._session.close()

    async def _poll(self) -> None:
        pauses = _Pauses()
        while self.lost is None:
            began = self._now()
            asked = {"epoch": self._epoch, "after": str(self._incoming.after), "wait": f"{self._wait:g}"}
            try:
                packet = await self._ask("GET", "/pending", asked, None, self._wait + ANSWER_SECONDS)
            except _Failed as error:
                await self._weigh(error, pauses, self._lost_seconds)
                continue
            if self._take(packet) or self._now() - began > self._wait / 2:
                pauses.reset()
            else:
                await pauses.pause()  # another poll ended it, or an old answer came again

    def _take(self, packet: Packet) -> bool:
        """Take what is new in an answer; whether there was something."""
        if not self._is_ours(packet):
            return False
        self._outgoing.taken(packet.after)
        try:
            new = self._incoming.take(packet)
        except Gap:
            return False
        for channel, data in new:
            if self.lost is None:
                self._receive(channel, data)
        return bool(new)

    async def _post(self) -> None:
        pauses = _Pauses()
        while self.lost is None:
            await self._more.wait()
            self._more.clear()
            while self._outgoing.size and self.lost is None:
                first, pieces = self._outgoing.next()
                body = Packet(self._epoch, self._incoming.after, first, pieces).pack()
                try:
                    packet = await self._ask("POST", "/respond", {}, body, ANSWER_SECONDS)
                except _Failed as error:
                    await self._weigh(error, pauses, self._lost_seconds)
                    continue
                if not self._is_ours(packet):
                    break
                self._outgoing.taken(packet.after)
                if packet.after >= first:
                    pauses.reset()
                else:
                    await pauses.pause()

    def _is_ours(self, packet: Packet) -> bool:
        if packet.epoch != self._epoch:
            self._lose("the broker was restarted, and what ran there is gone")
            return False
        return True

    async def _ask(self, method: Method, path: str, asked: dict[str, str], body: bytes | None, seconds: float) -> Packet:
        """One request. Raises _Failed, whatever came instead of the broker's answer."""
        assert self._session is not None
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        data = None if body is None else io.BytesIO(body)  # aiohttp writes it in pieces, and bytes in one
        try:
            async with self._session.request(
                method, self._url + path, params=asked, data=data, headers=self._headers, timeout=timeout, allow_redirects=False
            ) as answer:
                said = await _read(answer)
                if answer.status != 200:
                    raise _Failed(f"status {answer.status}: {said[:SAID_CHARS].decode('utf-8', 'replace')!r}")
            packet = unpack(said)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, Broken) as error:
            raise _Failed(f"{type(error).__name__}: {error}".removesuffix(": ")) from None
        self._heard = self._now()
        return packet

    async def _weigh(self, error: _Failed, pauses: _Pauses, seconds: float) -> None:
        """A request failed: pause before the next, or give up."""
        logger.debug("the broker at %s: %s", self._url, error)
        pauses.failures += 1
        if self._is_gone is not None and pauses.failures % FAILURES == 0:
            why = await self._is_gone()
            if why is not None:
                self._lose(why)
                return
        silent = self._now() - self._heard
        if silent >= seconds:
            self._lose(f"nothing came from the sandbox's broker for {silent:.0f} s (last: {error})")
            return
        await pauses.pause()

    def _lose(self, reason: str) -> None:
        if self.lost is None:
            self.lost = reason
            self._more.set()
            self._on_lost(reason)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


class _Failed(Exception):
    """A request brought no answer of the broker's; the text says what came instead."""


class _Pauses:
    """How long to wait before trying again."""

    def __init__(self) -> None:
        self.failures = 0
        self._next = PAUSES[0]

    def reset(self) -> None:
        self.failures = 0
        self._next = PAUSES[0]

    async def pause(self) -> None:
        await asyncio.sleep(self._next * random.uniform(0.5, 1.0))  # to spread those who wait
        self._next = min(2 * self._next, PAUSES[1])


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
