"""An engine on loopback that runs nothing: it takes its time to make a container, and has what a test says it has."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web
from anyio.from_thread import start_blocking_portal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

API = "/v1.41"


class Double:
    """What it has. A container that is asked for is made, whether the asker is still there or not, once somebody has looked for it in vain.

    Attributes:
        url: where it listens.
        asked: a container was asked for.
        made: names of containers.
        listed: further ones, as the engine's API lists them.
        removed: names and ids by which containers were removed, in order.
        removes: whether it does so; else whoever asks waits.
        stuck: names and ids of those that it cannot remove, and says so.
    """

    def __init__(self, listed: list[dict[str, Any]], *, removes: bool, stuck: Collection[str]) -> None:
        self.url = ""
        self.asked = threading.Event()
        self.made: set[str] = set()
        self.listed = listed
        self.removed: list[str] = []
        self.removes = removes
        self.stuck = stuck
        self._names: set[str] = set()
        self._looked_for = asyncio.Event()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/version", self._said({"ApiVersion": API[2:]}))
        app.router.add_get(f"{API}/info", self._said({"ID": "double"}))
        app.router.add_get(f"{API}/images/{{name}}/json", self._said({}))
        app.router.add_get(f"{API}/volumes", self._said({"Volumes": None}))
        app.router.add_get(f"{API}/containers/json", self._said(self.listed))
        app.router.add_post(f"{API}/containers/create", self._create)
        app.router.add_delete(f"{API}/containers/{{name}}", self._remove)
        return app

    def _said(self, answer: Any) -> Any:
        async def handler(_request: web.Request) -> web.Response:
            return web.json_response(answer)

        return handler

    async def _create(self, request: web.Request) -> web.Response:
        name = request.query["name"]
        if name in self._names:
            told = f'Conflict. The container name "/{name}" is already in use by container "0123".'
            return web.json_response({"message": told}, status=409)
        self._names.add(name)
        self.asked.set()
        await self._looked_for.wait()
        self.made.add(name)
        return web.json_response({"Id": name}, status=201)

    async def _remove(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        while not self.removes:
            await asyncio.sleep(0.01)
        if name in self.stuck:
            return web.json_response({"message": "it is a zombie"}, status=500)
        if name not in self.made | {each["Id"] for each in self.listed}:
            self._looked_for.set()
            return web.json_response({"message": f"No such container: {name}"}, status=404)
        self.made.discard(name)
        self.removed.append(name)
        return web.Response(status=204)


@contextmanager
def double(listed: list[dict[str, Any]] | None = None, *, removes: bool = True, stuck: Collection[str] = ()) -> Iterator[Double]:
    """One, in a thread of its own: it outlives the test's event loop."""
    engine = Double(listed or [], removes=removes, stuck=stuck)
    runner = web.AppRunner(engine.app(), shutdown_timeout=1.0)

    async def begin() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()

    with start_blocking_portal() as portal:
        portal.call(begin)
        engine.url = f"tcp://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield engine
        finally:
            engine.removes = True
            portal.call(runner.cleanup)
