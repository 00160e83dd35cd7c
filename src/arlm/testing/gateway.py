"""A gateway between a client and a server, as public tunnels are, that can be told to go wrong.

``async with open_gateway("http://127.0.0.1:8000", plan=[None, DropReply()]) as gateway`` listens at ``gateway.url`` and passes HTTP/1.1
on: bodies as they come, in both directions, headers as they are, connections kept alive, replies after however long, up to a limit. The
plan says what goes wrong with which request: values that are used up, a function of what is :class:`Seen`, or :class:`Rates`. A fault that
has to do with a body, a delay or a copy waits for the whole body first. Upgrades (websockets) are not passed on.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import anyio

from ..lifetimes import finish
from ..server.listening import Listener
from .gateway_acts import Acts, Cut
from .gateway_client import Client, Inbox, discarded
from .gateway_faults import AnswerInstead, CloseIdle, Corrupt, CutRequest, DropRequest, Fault, OldReply, Plan, Seen, decider
from .gateway_http import LAST_CHUNK, Answered, Body, Broken, Head, framed, read_head, shown
from .gateway_upstream import KEPT_BYTES, Absent, Ask, address, exchange

LIMIT_S = 60.0  # for a request, until its reply has passed: what nginx waits for a silent upstream, if not told otherwise
IDLE_S = 60.0  # for a connection on which nothing is asked


class Entry(NamedTuple):
    """One request of the log. Of its query, names and short numbers are shown; ``fault`` is a class's name, None where it passed."""

    method: str
    path: str
    fault: str | None


@asynccontextmanager
async def open_gateway(
    upstream: str | None = None,
    *,
    plan: Plan | None = None,
    limit_s: float = LIMIT_S,
    idle_s: float = IDLE_S,
    absent: AnswerInstead = AnswerInstead(status=502),  # noqa: B008 - a frozen value
) -> AsyncIterator[Gateway]:
    """A gateway on a port of 127.0.0.1, for as long as the block lasts. Leaving it closes what is open and ends copies under way.

    Args:
        upstream: ``http://HOST:PORT``; None: nowhere yet.
        plan: what goes wrong; None: nothing.
        limit_s: seconds for a request; then its client gets 504, or the rest of the reply is cut off.
        idle_s: seconds after which an idle connection is closed.
        absent: the answer where there is no upstream, or nothing listens there.

    Raises:
        ValueError: ``upstream`` is something else.
        Exception: what the plan's function raised; at the block's end, if nothing else did. The connection that met it was reset.
    """
    gateway = Gateway(limit_s=limit_s, idle_s=idle_s, absent=absent)
    gateway.upstream, gateway.plan = upstream, plan
    listener = Listener(gateway._protocol, path=None, on_short=gateway._short)
    host, port = listener.address["tcp"]
    gateway.url = f"http://{host}:{port}"
    try:
        yield gateway
    finally:
        await finish(lambda: gateway._close(listener), what="a gateway")
    if gateway._failures:
        raise gateway._failures[0]


class Gateway:
    """What :func:`open_gateway` gives.

    Attributes:
        url: where it listens.
        absent: the answer where there is no upstream; may be replaced.
        log: a line for each request in order of arrival, and one more, ``Replay``, for each stale copy when it is sent.
        counts: by the name of a fault, how often; ``requests``; and what happened by itself: ``left`` (clients gone before their reply),
            ``absent``, ``broken`` (upstream left in between), ``limit``, ``idle``, ``malformed``, ``copies`` (stale ones that were sent).
        in_flight: requests of clients that have no whole reply yet.
        most_in_flight: the highest that it was.
    """

    def __init__(self, *, limit_s: float, idle_s: float, absent: AnswerInstead) -> None:
        self.url = ""
        self.absent = absent
        self.log: list[Entry] = []
        self.counts: Counter[str] = Counter()
        self.in_flight = self.most_in_flight = 0
        self._upstream: str | None = None
        self._limit_s, self._idle_s = limit_s, idle_s
        self._numbers = itertools.count(1)
        self._outage: tuple[AnswerInstead, int, float] | None = None  # the answer, for how many more, until when
        self._serving: set[asyncio.Task[None]] = set()
        self._open: set[Client] = set()
        self._changed = asyncio.Event()
        self._acts = Acts(limit_s=limit_s, on_copy=self._note_copy, on_change=self._change)
        self._failures = self._acts.failures
        self.plan = None

    @property
    def upstream(self) -> str | None:
        """Where requests go: ``http://HOST:PORT``, or None. May be set at any time; exchanges under way go on where they are."""
        return self._upstream

    @upstream.setter
    def upstream(self, url: str | None) -> None:
        self._acts.upstream = None if url is None else address(url)
        self._upstream = url

    @property
    def plan(self) -> Plan | None:
        """What goes wrong. Set anew, it begins anew and an outage is over; copies that :class:`Replay` has planned are still sent."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan | None) -> None:
        self._plan, self._planned, self._outage = plan, decider(plan), None

    @property
    def strays(self) -> int:
        """Exchanges under way upstream that do not end when their client leaves: copies, delayed requests, those whose reply is dropped."""
        return len(self._acts.strays)

    def reset_connections(self) -> int:
        """Reset every client's connection, idle or not, as a tunnel does that starts anew. Returns how many."""
        for client in self._open:
            client.reset()
        return len(self._open)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until ``condition()`` holds; it is asked after each change, such as ``lambda: gateway.in_flight == 50``."""
        while not condition():
            await self._changed.wait()

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _short(self, why: str) -> None:
        self._failures.append(OSError(why))

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(Inbox(), self._connected)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert isinstance(reader, Inbox)
        task = asyncio.create_task(self._serve(Client(reader, writer)), name="a gateway's client")
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _close(self, listener: Listener) -> None:
        listener.close()
        await listener.settle()
        while running := self._serving | self._acts.strays:
            for task in running:
                task.cancel()
            await asyncio.wait(running)

    async def _serve(self, client: Client) -> None:
        self._open.add(client)
        try:
            while await self._turn(client):
                pass
            client.writer.close()
            await client.writer.wait_closed()
        except OSError:
            pass  # the client left
        except Exception as error:
            self._failures.append(error)
        finally:
            self._open.discard(client)
            client.writer.transport.abort()

    async def _turn(self, client: Client) -> bool:
        """Answer one request; whether the connection stays."""
        request = await self._next(client)
        if request is None:
            return False
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.counts["requests"] += 1
        try:
            with anyio.CancelScope() as scope:
                client.inbox.watch(scope.cancel)
                return await self._within_limit(*request, client)
            self.counts["left"] += 1
            return False
        finally:
            client.inbox.watch(None)
            self.in_flight -= 1
            self._change()

    async def _next(self, client: Client) -> tuple[Head, Body] | None:
        try:
            async with asyncio.timeout(self._idle_s):
                head = await read_head(client.inbox)
            if head is None:
                return None
            if head.words[2] == "HTTP/1.1":
                return head, Body(client.inbox, head.length)
        except TimeoutError:
            self.counts["idle"] += 1
            return None
        except Broken:
            pass
        self.counts["malformed"] += 1
        await client.send(Answered.by_gateway(AnswerInstead(status=400), "GET").encoded(close=True))
        return None

    async def _within_limit(self, head: Head, body: Body, client: Client) -> bool:
        client.begun = False
        seen = Seen(number=next(self._numbers), method=head.words[0], path=head.words[1].partition("?")[0])
        try:
            async with asyncio.timeout(self._limit_s):
                return await self._handle(seen, head, body, client) and not head.closes
        except TimeoutError:
            what, instead = "limit", AnswerInstead(status=504)
        except Absent:
            what, instead = "absent", self.absent
        except Broken:
            what, instead = "broken", AnswerInstead(status=502)
        self.counts[what] += 1
        if client.begun:
            return False
        await client.send(Answered.by_gateway(instead, seen.method).encoded(close=head.closes))
        return await discarded(body) and not head.closes

    async def _handle(self, seen: Seen, head: Head, body: Body, client: Client) -> bool:
        fault = self._decide(seen, head, body)
        if head.get("expect") == "100-continue":
            client.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        match fault:
            case None | CloseIdle():
                await self._pass(seen, head, body, client)
                return fault is None
            case DropRequest():
                client.reset()
                return False
        match await self._acts.act(fault, Ask(number=seen.number, head=head, body=await body.whole())):
            case Cut(reset=True):
                client.reset()
                return False
            case Cut(data=data):
                await client.send(data)
                return False
            case Answered() as answered:
                await client.send(answered.encoded(close=head.closes))
                return True

    async def _pass(self, seen: Seen, head: Head, body: Body, client: Client) -> None:
        async with exchange(self._acts.upstream, head, head.length, body) as reply:
            self._acts.answering(seen.number)
            has_body, copy = not reply.body.ended, bytearray()
            await client.send(reply.head.encoded(reply.length, close=head.closes))
            while piece := await reply.body.read():
                await client.send(framed(piece, reply.length))
                if len(copy) <= KEPT_BYTES:
                    copy += piece
            if reply.length == "chunked":
                await client.send(LAST_CHUNK)
        answered = Answered(head=reply.head, length=len(copy) if has_body else reply.length, body=bytes(copy))
        self._acts.kept.keep(seen.method, seen.path, answered)
        await body.whole()  # upstream may have answered before it had read all

    def _decide(self, seen: Seen, head: Head, body: Body) -> Fault | None:
        fault = self._during_outage() or self._planned(seen)
        match fault:
            case CutRequest() | Corrupt(side="request") if body.ended:
                fault = None
            case OldReply(back=back) if self._acts.kept.find(seen.method, seen.path, back) is None:
                fault = None
            case AnswerInstead(requests=requests, seconds=seconds) if self._outage is None:
                self._outage = fault, requests - 1, asyncio.get_running_loop().time() + seconds
        self._note(head, fault)
        return fault

    def _during_outage(self) -> AnswerInstead | None:
        if self._outage is None:
            return None
        answer, left, until = self._outage
        if left <= 0 and asyncio.get_running_loop().time() >= until:
            self._outage = None
            return None
        self._outage = answer, left - 1, until
        return answer

    def _note(self, head: Head, fault: Fault | None) -> None:
        name = None if fault is None else type(fault).__name__
        self.log.append(Entry(head.words[0], shown(head.words[1]), name))
        if name is not None:
            self.counts[name] += 1
        self._change()

    def _note_copy(self, ask: Ask) -> None:
        self.log.append(Entry(ask.method, shown(ask.head.words[1]), "Replay"))
        self.counts["copies"] += 1
        self._change()
