"""The Poller: the host's end of a broker, by long polls and posts through whatever gateways are between.

What a request could not bring is brought by the next one: both directions are numbered streams (``broker.streams``), of which nothing is
lost and nothing comes twice, whatever becomes of single requests. Only when nothing gets through for long, or the broker is another one, is
the connection lost. It is carried by aiohttp, as the models' calls are.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from ..broker.streams import PACKET_BYTES, PIECE_BYTES, Gap, Incoming, Outgoing, Packet
from ..errors import SandboxError
from ..shielding import in_own_task
from .asking import Asker, Failed, Method

logger = logging.getLogger("arlm.server")

WAIT_SECONDS = 20.0  # of a long poll: gateways allow 30 to 100
SHORTEST_SECONDS = 0.5  # of one, where a gateway allows less than was thought
LATE = 1 / 20  # of its time: a poll that fails after that may have been too long for a gateway
QUIET_POLLS = 10  # without news, after which a longer one is tried again; twice as many each time that it was too long
ANSWER_SECONDS = 15.0  # for an answer to begin, beyond that
GONE_SECONDS = 15.0  # for the question whether the sandbox is there
GONE_GRACE_SECONDS = 1.0  # for an SDK to let go of it
START_SECONDS = 60.0  # until a broker just started is heard of
LOST_SECONDS = 60.0  # in which nothing got through, in one direction or in both: then the connection is lost
PAUSES = (0.05, 2.0)  # after a failure: the first, the longest; each is twice the last, and up to half of it is chance
FAILURES = 3  # in a row, until it is asked whether the sandbox is there at all
TOO_LARGE = 413


IsGone = Callable[[], Coroutine[Any, Any, str | None]]


class Poller:
    """A connection to a broker: bytes both ways, on numbered channels. docs/broker.md says what the broker is told, and what each carries.

        poller = Poller(url, token, receive=lambda channel, data: ..., on_lost=lambda reason: ...)
        try:
            await poller.open()
            poller.send(0, data)
            ...
        finally:
            await poller.close()

    Everything happens on the event loop on which it is opened, calls of ``receive`` and ``on_lost`` too. Bytes of a channel come as they
    were sent, in other pieces perhaps. It ends with ``close`` or with its loss, never by itself; a lost one is not opened again.

    Args:
        url: of the broker, as its gateway has it.
        token: the host's.
        receive: called with each piece of the guest's, once and in order: channel, bytes. What it raises is logged, and the end.
        on_lost: called once, with the reason, when the connection is lost for good; not by ``close``.
        is_gone: asks, when several requests in a row have failed, whether the sandbox is: returns why, or None while it is there. Where it
            fails or does not answer, nothing is known. It is cancelled once, in a task of its own.
        headers: for the gateway, in each request.
        wait_seconds: of a long poll; polls become shorter where a gateway does not wait so long, and longer again where it does.
        lost_seconds: in which nothing gets through, in one direction or in both, after which the connection is lost.

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
        is_gone: IsGone | None = None,
        headers: Mapping[str, str] | None = None,
        wait_seconds: float = WAIT_SECONDS,
        lost_seconds: float = LOST_SECONDS,
    ) -> None:
        self.lost: str | None = None
        self._url, self._token, self._headers = url, token, headers or {}
        self._receive = receive
        self._on_lost = on_lost
        self._is_gone = is_gone
        self._wait = _Wait(min(wait_seconds, lost_seconds / 3))
        self._lost_seconds = lost_seconds
        self._epoch = ""
        self._incoming = Incoming()
        self._outgoing = Outgoing()
        self._more = asyncio.Event()
        self._heard = 0.0
        self._asker: Asker | None = None
        self._loops: list[asyncio.Task[None]] = []

    def unsent(self, channel: int) -> int:
        """Bytes of a channel that the broker has not said to have."""
        return self._outgoing.waiting(channel)

    def send(self, channel: int, data: bytes) -> None:
        """Send bytes; returns at once. They are kept until the broker has them (see ``unsent``). Nothing happens once it is lost."""
        if self.lost is None:
            self._outgoing.put(channel, data)
            self._more.set()

    async def open(self) -> None:
        """Wait for the broker's first answer, and begin. ``close`` ends it in any case, also when this fails or is cancelled.

        Raises:
            SandboxError: nothing was heard of it within START_SECONDS, or it is gone.
            ConfigError: the environment names a proxy that cannot be used.
        """
        self._asker = Asker(self._url, self._token, self._headers)
        self._heard = self._now()
        pauses = _Pauses("no poll was answered by", self._heard)
        while not self._epoch:
            try:
                self._epoch = (await self._ask("GET", "/pending", {"wait": "0"}, None, ANSWER_SECONDS)).epoch
            except Failed as error:
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
        """End it, in any state. What was not sent is not sent."""
        self.lost = self.lost or "it was closed"
        for loop in self._loops:
            loop.cancel()
        try:
            if self._loops:
                await asyncio.wait(self._loops)
        finally:
            if self._asker is not None:
                await self._asker.close()

    async def _poll(self) -> None:
        pauses = _Pauses("no poll was answered by", self._heard)
        while self.lost is None:
            began = self._now()
            wait = self._wait.seconds
            asked = {"epoch": self._epoch, "after": str(self._incoming.after), "wait": f"{wait:g}", "most": str(pauses.most)}
            try:
                packet = await self._ask("GET", "/pending", asked, None, wait + ANSWER_SECONDS)
            except Failed as error:
                if pauses.failures and self._now() - began > wait * LATE:
                    self._wait.shorten()
                await self._weigh(error, pauses, self._lost_seconds)
                continue
            pauses.since = self._now()
            if self._take(packet):
                pauses.reset()
            elif pauses.since - began > wait / 2:
                pauses.reset()
                self._wait.passed()
            else:
                await pauses.pause()  # another poll ended it, or an old answer came again

    def _take(self, packet: Packet) -> bool:
        """Take what is new in an answer; whether there was something."""
        if not self._is_ours(packet):
            return False
        self._outgoing.taken(packet.after)
        try:
            new = self._incoming.take(packet)
        except Gap as error:
            self._lose(f"its broker does not keep what it was not told to forget: {error}")
            return False
        for channel, data in new:
            if self.lost is None:
                self._receive(channel, data)
        return bool(new)

    async def _post(self) -> None:
        pauses = _Pauses("nothing could be sent to", self._heard)
        while self.lost is None:
            await self._more.wait()
            self._more.clear()
            pauses.since = self._now()
            while self._outgoing.size and self.lost is None:
                first, pieces = self._outgoing.next(pauses.most)
                body = Packet(self._epoch, self._incoming.after, first, pieces).pack()
                try:
                    packet = await self._ask("POST", "/respond", {}, body, ANSWER_SECONDS)
                except Failed as error:
                    await self._weigh(error, pauses, self._lost_seconds)
                    continue
                if not self._is_ours(packet):
                    break
                if packet.after < first:
                    self._lose(f"its broker did not take what it was sent: from {first} on after {packet.after}")
                self._outgoing.taken(packet.after)
                pauses.since = self._now()
                pauses.reset()

    def _is_ours(self, packet: Packet) -> bool:
        if packet.epoch != self._epoch:  # in an answer to a request of ours: no old one that came again
            self._lose("the broker was restarted, and what ran there is gone")
            return False
        return True

    async def _ask(self, method: Method, path: str, query: Mapping[str, str], body: bytes | None, seconds: float) -> Packet:
        assert self._asker is not None
        packet = await self._asker.ask(method, path, query, body, seconds)
        self._heard = self._now()
        return packet

    async def _weigh(self, error: Failed, pauses: _Pauses, seconds: float) -> None:
        """A request failed: pause before the next, or give up."""
        logger.debug("the broker at %s: %s", self._url, error)
        pauses.failed(error.status)
        if pauses.failures % FAILURES == 0 and (why := await self._why_gone()) is not None:
            self._lose(why)
            return
        for since, what in ((self._heard, "nothing came from"), (pauses.since, pauses.what)):
            if (silent := self._now() - since) >= seconds and pauses.failures > 1:  # a single one may have been too large for a slow link
                self._lose(f"{what} the sandbox's broker for {silent:.0f} s (last: {error})")
                return
        await pauses.pause()

    async def _why_gone(self) -> str | None:
        """What the adapter says; None also where it does not know: it fails, or does not answer."""
        if self._is_gone is None:
            return None
        try:
            async with asyncio.timeout(GONE_SECONDS):
                return await in_own_task(self._is_gone, grace=GONE_GRACE_SECONDS)
        except Exception as error:
            logger.warning("whether the sandbox is there could not be asked: %s", type(error).__name__)
            return None

    def _lose(self, reason: str) -> None:
        if self.lost is None:
            self.lost = reason
            self._more.set()
            self._on_lost(reason)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


class _Wait:
    """How long a poll waits.

    Attributes:
        seconds: of the next one.
    """

    def __init__(self, longest: float) -> None:
        self.seconds = self._longest = longest
        self._quiet = 0
        self._needed = QUIET_POLLS
        self._trying = False  # a longer one, which no poll has passed yet

    def shorten(self) -> None:
        """It was too long for a gateway, or may have been."""
        self.seconds = max(self.seconds / 2, SHORTEST_SECONDS)
        self._quiet = 0
        if self._trying:
            self._trying = False
            self._needed *= 2

    def passed(self) -> None:
        """It went by without news. After some of them a longer one is tried: an outage may have been taken for a short patience."""
        self._trying = False
        self._quiet += 1
        if self._quiet >= self._needed and self.seconds < self._longest:
            self.seconds = min(2 * self.seconds, self._longest)
            self._quiet = 0
            self._trying = True


class _Pauses:
    """How one direction fares: how long to wait before trying again, and with how much.

    Attributes:
        what: is said of it when it is lost.
        since: when something got through last, or was there to be sent.
        failures: in a row.
        most: bytes in a packet, as far as pieces are smaller. After a failure one piece, and more with each success: a gateway may have a
            limit and not say so, or the way be slow.
    """

    def __init__(self, what: str, now: float) -> None:
        self.what = what
        self.since = now
        self.failures = 0
        self.most = self._limit = PACKET_BYTES
        self._next = PAUSES[0]

    def failed(self, status: int | None) -> None:
        self.failures += 1
        if status == TOO_LARGE:
            self._limit = max(self.most // 2, PIECE_BYTES)
        self.most = PIECE_BYTES

    def reset(self) -> None:
        self.failures = 0
        self.most = min(2 * self.most, self._limit)
        self._next = PAUSES[0]

    async def pause(self) -> None:
        await asyncio.sleep(self._next * random.uniform(0.5, 1.0))  # to spread those who wait
        self._next = min(2 * self._next, PAUSES[1])
