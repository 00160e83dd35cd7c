"""The broker's web application.

    GET  /pending?epoch=E&after=N&wait=S   host: what waits for it, as a packet (streams.py), with &most=B of so many bytes;
                                           a long poll, ended by a newer one
    POST /respond                          host: its pieces, as a packet; each is taken once, however often it comes
    GET  /health                           host: {"ok": true, "epoch": E}
    POST /enqueue                          anybody here with a REPL's token: {"call": "llm_query", "args": {"prompt": "…"}};
                                           answered, when the host has, with {"ok": value} or {"error": {"type": …, "message": …}}

The answers to the first two name the request's ``asked``, if its query has one: a gateway may serve an old answer again.
Every request has its token in the header ``x-arlm-token``. A wrong one, or the guest's on a route of the host's, gets 401 and nothing else,
before a byte of its body is read. The host's is compared in constant time (``relay.same``), a guest's is looked up by its digest
(``Relay.door``): how long that takes says nothing about how much of a guess was right.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from .relay import Busy, Door, Refused, Relay, same
from .streams import BODY_BYTES, PACKET_BYTES, TOKEN, Broken, Packet, unpack

PACKET = "application/x-arlm-packet"
LONGEST_POLL_SECONDS = 60.0
BODY_SECONDS = 60.0  # for a request's body to come
ASKED_CHARS = 100  # of what a request is called
MAX_NESTED = 500  # lists and objects within each other: a Python 3.11 reads some 900, newer ones more, and the host may be any
MAX_VALUES = 500_000  # of one request: the host reads a million, and ends the connection of who sends more

Handler = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")


class Broker:
    """The application and when the host was last heard of.

    Attributes:
        app: for uvicorn.
    """

    def __init__(self, relay: Relay, host_token: str) -> None:
        self._heard = time.monotonic()
        self._waiting = 0  # polls of the host's
        self._relay = relay
        self._token = host_token
        self.app = Starlette(
            routes=[
                Route("/pending", self._for_host(self._pending), methods=["GET"]),
                Route("/respond", self._for_host(self._respond), methods=["POST"]),
                Route("/health", self._for_host(self._health), methods=["GET"]),
                Route("/enqueue", self._enqueue, methods=["POST"]),
            ]
        )
        self.app.router.redirect_slashes = False

    def heard(self) -> float:
        """When the host was last heard of, by ``time.monotonic``: now, while it waits for news."""
        return time.monotonic() if self._waiting else self._heard

    def _for_host(self, handle: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            if not same(request.headers.get(TOKEN, ""), self._token):
                return _refused(401, "the token is not valid here")
            self._heard = time.monotonic()
            try:
                return await handle(request)
            finally:
                self._heard = time.monotonic()

        return guarded

    async def _health(self, _request: Request) -> Response:
        return _json({"ok": True, "epoch": self._relay.epoch})

    async def _pending(self, request: Request) -> Response:
        asked = request.query_params
        try:
            after, wait, most = int(asked.get("after", "0")), float(asked.get("wait", "0")), int(asked.get("most", PACKET_BYTES))
        except ValueError:
            return _refused(400, "after, wait and most are numbers")
        if after < 0 or not 0 <= wait <= LONGEST_POLL_SECONDS:
            return _refused(400, f"after is at least 0, wait at most {LONGEST_POLL_SECONDS:g}")
        most = min(most, PACKET_BYTES)
        self._waiting += 1
        try:
            return _packet(await _unless_left(request, self._relay.pending(asked.get("epoch", ""), after, wait, most)), request)
        except ClientDisconnect:
            return _left_alone()
        finally:
            self._waiting -= 1

    async def _respond(self, request: Request) -> Response:
        try:
            return _packet(await self._relay.respond(unpack(await _body(request))), request)
        except Broken as error:
            return _refused(400, f"the body cannot be read: {error}")
        except Refused as error:
            return _refused(503, str(error))
        except _BodyRefused as error:
            return _refused(error.status, str(error))
        except ClientDisconnect:
            return _left_alone()

    async def _enqueue(self, request: Request) -> Response:
        door = self._relay.door(request.headers.get(TOKEN, ""))
        if door is None:
            return _refused(401, "the token is not valid here")
        try:
            with door.admitted():
                return _json(await _unless_left(request, await self._ask(request, door)))
        except Busy as error:
            return _refused(429, str(error))
        except Refused as error:
            return _refused(503, str(error))
        except _BodyRefused as error:
            return _refused(error.status, str(error))
        except ClientDisconnect:
            return _left_alone()
        except (ValueError, KeyError, TypeError, RecursionError):
            return _refused(400, 'the body is {"call": name, "args": {…}}')

    async def _ask(self, request: Request, door: Door) -> Coroutine[Any, Any, dict[str, Any]]:
        """Read what is asked, and pass it on when there is room; what is returned waits for the answer."""
        await self._relay.room()
        with door.holding() as hold:
            body = await _body(request, hold)
            await self._relay.room()  # all who were let in before may have sent theirs meanwhile
            return door.ask(*_asked(body))


def _asked(body: bytes) -> tuple[str, dict[str, Any]]:
    """Method and arguments of a request to ``/enqueue``. Raises ValueError, KeyError, TypeError, RecursionError or _BodyRefused."""
    asked = _loaded(body)
    method, args = asked["call"], asked.get("args", {}) if isinstance(asked, dict) else None
    if not isinstance(method, str) or not isinstance(args, dict):
        raise TypeError
    _measure(args)
    return method, args


def _loaded(body: bytes) -> Any:
    gc.disable()  # or it would look through all that was read so far again and again: four times as long, in which nobody else is served
    try:
        return json.loads(body)
    finally:
        gc.enable()


def _measure(value: Any) -> None:
    """Raises _BodyRefused when lists and objects are nested too deep, or have too many values in all."""
    depth, values, level = 0, 0, [value]
    while holders := [it for it in level if isinstance(it, dict | list)]:
        level = [inner for it in holders for inner in (it.values() if isinstance(it, dict) else it)]
        depth, values = depth + 1, values + len(level)
        if depth > MAX_NESTED:
            raise _BodyRefused(400, f"lists and objects may be nested {MAX_NESTED} deep")
        if values > MAX_VALUES:
            raise _BodyRefused(400, f"it may have {MAX_VALUES:,} values")


class _BodyRefused(Exception):
    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


async def _body(request: Request, hold: Callable[[int], None] = lambda size: None) -> bytes:
    """A request's body; ``hold`` is told of its bytes as they come. Raises _BodyRefused, ClientDisconnect, what ``hold`` does."""
    if int(request.headers.get("content-length", "0")) > BODY_BYTES:
        raise _BodyRefused(413, f"a body may have {BODY_BYTES:,} bytes")
    try:
        return await asyncio.wait_for(_whole(request, hold), BODY_SECONDS)
    except asyncio.TimeoutError:  # noqa: UP041 - another class on Python 3.10
        raise _BodyRefused(408, f"the body did not come within {BODY_SECONDS:g} s") from None


async def _whole(request: Request, hold: Callable[[int], None]) -> bytes:
    parts = []
    size = 0
    async for part in request.stream():
        size += len(part)
        hold(len(part))
        if size > BODY_BYTES:
            raise _BodyRefused(413, f"a body may have {BODY_BYTES:,} bytes")
        parts.append(part)
    return b"".join(parts)


async def _unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives. Raises ClientDisconnect, with the work cancelled, when whoever asked has gone."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait({working, leaving})


async def _left(request: Request) -> None:
    """Wait until whoever asks has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _packet(packet: Packet, request: Request) -> Response:
    packet = replace(packet, asked=request.query_params.get("asked", "")[:ASKED_CHARS])
    return Response(packet.pack(), media_type=PACKET, headers={"cache-control": "no-store"})


def _json(facts: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(facts), status, media_type="application/json")  # in ASCII, so that lone surrogates survive


def _refused(status: int, why: str) -> Response:
    return _json({"error": {"type": "Refused", "message": why}}, status)


def _left_alone() -> Response:
    return _refused(499, "nobody waits for it")
