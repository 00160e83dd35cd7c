"""A registry on loopback with one image, as far as an engine needs it for a pull: the distribution protocol's GET requests."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web

from docker_places import asking

if TYPE_CHECKING:
    from docker_engine import Engine

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar"
PIECE = 256 * 1024


class Registry:
    """What is served.

    Attributes:
        image: its name there, for an engine to pull.
        stalls: whether the last layer comes without end.
        stalled, dropped: such a layer was asked for; whoever asked has gone.
    """

    def __init__(self, config: bytes, layers: list[bytes], *, stalls: bool) -> None:
        self.image = ""
        self.stalls = stalls
        self.stalled, self.dropped = asyncio.Event(), asyncio.Event()
        self._blobs = {digest(blob): blob for blob in (config, *layers)}
        self._last = digest(layers[-1])
        described = [{"mediaType": LAYER, "size": len(layer), "digest": digest(layer)} for layer in layers]
        head = {"mediaType": CONFIG, "size": len(config), "digest": digest(config)}
        self._manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": head, "layers": described}).encode()

    async def hello(self, _request: web.Request) -> web.Response:
        return web.json_response({})

    async def manifest(self, _request: web.Request) -> web.Response:
        headers = {"Docker-Content-Digest": digest(self._manifest)}
        return web.Response(body=self._manifest, content_type=MANIFEST, headers=headers)

    async def blob(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["digest"]
        blob = self._blobs[name]
        response = web.StreamResponse(headers={"Content-Length": str(len(blob))})
        await response.prepare(request)
        if self.stalls and name == self._last:
            await self._stall(response)
            return response
        for at in range(0, len(blob), PIECE):
            await response.write(blob[at : at + PIECE])
        return response

    async def _stall(self, response: web.StreamResponse) -> None:
        self.stalled.set()
        try:
            while True:
                await response.write(b"\0")
                await asyncio.sleep(0.01)
        except OSError:
            self.dropped.set()


def digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def exported(on: Engine, image: str) -> tuple[bytes, list[bytes]]:
    """The configuration and the layers of an image that an engine has."""
    with asking(on.url) as asked, tarfile.open(fileobj=io.BytesIO(asked.get(f"/images/{image}/get").content)) as archive:

        def read(name: str) -> bytes:
            member = archive.extractfile(name)
            assert member is not None
            return member.read()

        (manifest,) = json.loads(read("manifest.json"))
        return read(manifest["Config"]), [read(layer) for layer in manifest["Layers"]]


@asynccontextmanager
async def registry(on: Engine, image: str, *, stalls: bool = False) -> AsyncIterator[Registry]:
    """Serve an image of an engine under a name with which any engine of this machine can pull it; engines trust loopback."""
    served = Registry(*exported(on, image), stalls=stalls)
    app = web.Application()
    app.router.add_get("/v2/", served.hello)
    app.router.add_get("/v2/{name}/manifests/{reference}", served.manifest)
    app.router.add_get("/v2/{name}/blobs/{digest}", served.blob)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        served.image = f"127.0.0.1:{runner.addresses[0][1]}/served:1"
        yield served
    finally:
        await runner.cleanup()
