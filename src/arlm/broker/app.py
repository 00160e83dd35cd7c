"""The broker's web application.

    GET  /pending?epoch=E&after=N&wait=S   host: what waits for it, as a packet (streams.py); a long poll, ended by a newer one
    POST /respond                          host: its pieces, as a packet; each is taken once, however often it comes
    GET  /health                           host: {"ok": true, "epoch": E}
    POST /enqueue                          anybody here with a REPL's token: {"call": "llm_query", "args": {"prompt": "…"}};
                                           answered, when the host has, with {"ok": value} or {"error": {"type": …, "message": …}}

Every request has its token in the header ``x-arlm-token``. A wrong one, or the guest's on a route of the host's, gets 401 and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .relay import Refused, Relay, same
from .streams import BODY_BYTES, TOKEN, Broken, Packet, unpack

PACKET = "application/x-arlm-packet"
LONGEST_POLL_SECONDS = 60.0

Handler = Callable[[Request], Awaitable[Response]]


class Broker:
    """The application and when the host was last heard of.

    Attributes:
        heard: on ``time.monotonic``'s clock.
        app: for uvicorn.
    """

    def __init__(self, relay: Relay, host_token: str) -> None:
        self.heard = time.monotonic()
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

    def _for_host(self, handle: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            if not same(request.headers.get(TOKEN, ""), self._token):
                return _refused(401, "the token is not valid here")
            self.heard = time.monotonic()
            try:
                return await handle(request)
            finally:
                self.heard = time.monotonic()

        return guarded

    async def _health(self, _request: Request) -> Response:
        return JSONResponse({"ok": True, "epoch": self._relay.epoch})

    async def _pending(self, request: Request) -> Response:
        asked = request.query_params
        try:
            after, wait = int(asked.get("after", "0")), float(asked.get("wait", "0"))
        except ValueError:
            return _refused(400, "after and wait are numbers")
        if after < 0 or not 0 <= wait <= LONGEST_POLL_SECONDS:
            return _refused(400, f"after is at least 0, wait at most {LONGEST_POLL_SECONDS:g}")
        return _packet(await self._relay.pending(asked.get("epoch", ""), after, wait))

    async def _respond(self, request: Request) -> Response:
        try:
            body = await _body(request)
            return _packet(await self._relay.respond(unpack(body)))
        except (Broken, ClientDisconnect) as error:
            return _refused(400, f"the body cannot be read: {error}")
        except _TooLong:
            return _refused(413, f"a body may have {BODY_BYTES:,} bytes")

    async def _enqueue(self, request: Request) -> Response:
        door = self._relay.door(request.headers.get(TOKEN, ""))
        if door is None:
            return _refused(401, "the token is not valid here")
        try:
            asked = json.loads(await _body(request))
            method, args = asked["call"], asked.get("args", {})
            if not isinstance(method, str) or not isinstance(args, dict):
                raise TypeError
        except _TooLong:
            return _refused(413, f"a body may have {BODY_BYTES:,} bytes")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ClientDisconnect):
            return _refused(400, 'the body is {"call": name, "args": {…}}')
        calling = asyncio.ensure_future(door.call(method, args))
        leaving = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait({calling, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not calling.done():
                return _refused(499, "nobody waits for it")
            return JSONResponse(calling.result())
        except Refused as error:
            return _refused(503, str(error))
        finally:
            calling.cancel()
            leaving.cancel()
            await asyncio.wait({calling, leaving})


class _TooLong(Exception):
    pass


async def _body(request: Request) -> bytes:
    parts = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > BODY_BYTES:
            raise _TooLong
        parts.append(part)
    return b"".join(parts)


async def _left(request: Request) -> None:
    """Wait until whoever asks has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _packet(packet: Packet) -> Response:
    return Response(packet.pack(), media_type=PACKET, headers={"cache-control": "no-store"})


def _refused(status: int, why: str) -> Response:
    facts: dict[str, Any] = {"error": {"type": "Refused", "message": why}}
    return JSONResponse(facts, status_code=status)
