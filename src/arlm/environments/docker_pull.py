"""Images that an engine fetches, and how far it has come."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

from ..errors import SandboxError
from .docker_engine import Engine
from .docker_errors import Told, cut
from .opening import progress

if TYPE_CHECKING:
    from aiohttp import ClientResponse

LONGEST = 256 * 1024  # bytes of a refusal
TELL_SECONDS = 1.0  # between two words on a pull that goes on
MIB = 1024 * 1024


async def pull(engine: Engine, image: str) -> None:
    """Have the engine fetch an image, telling how far it is. Raises SandboxError. Cancelled, the engine stops fetching."""
    progress(f"pulling the image {image}")
    wanted = {"fromImage": image} if _names_one(image) else {"fromImage": image, "tag": "latest"}
    layers: dict[str, tuple[int, int]] = {}
    told = time.monotonic()
    # Not by the client's own method, which leaves the connection open when it is cancelled.
    async with (
        Told(f"the image {image!r} could not be pulled", seconds=None),
        engine.docker.session.post(engine.at("images/create"), params=wanted) as answer,
    ):
        while step := await _step(answer, image):
            detail = step.get("progressDetail") or {}
            if step.get("status") == "Downloading" and detail.get("total"):
                layers[step["id"]] = (int(detail.get("current", 0)), int(detail["total"]))
            if layers and time.monotonic() - told >= TELL_SECONDS:
                told = time.monotonic()
                here, whole = (sum(sizes) // MIB for sizes in zip(*layers.values(), strict=True))
                progress(f"pulling the image {image}: {here:,} of {whole:,} MiB")
    progress(f"the image {image} is there")


async def _step(answer: ClientResponse, image: str) -> dict[str, Any]:
    """The next thing that an engine says of a pull; nothing at its end. Raises SandboxError for a refusal."""
    from aiohttp.http_exceptions import HttpProcessingError

    line = b""
    try:
        line = await (answer.content.readline() if answer.ok else _beginning(answer))
        step: dict[str, Any] = json.loads(line) if line else {}
    except (ValueError, HttpProcessingError):  # the page that a proxy showed to the engine, for instance, is a line of any length
        step = {"error": line.decode("utf-8", "replace") or "the engine says more than can be read"}
    if "error" in step or not answer.ok:
        raise SandboxError(_refused(image, str(step.get("error") or step.get("message") or f"HTTP status {answer.status}")))
    return step


async def _beginning(answer: ClientResponse) -> bytes:
    try:
        return await answer.content.readexactly(LONGEST)
    except asyncio.IncompleteReadError as whole:
        return whole.partial


def _names_one(image: str) -> bool:
    """Whether a name has a tag or a digest; of one without, an engine would fetch every tag there is."""
    last = image.rpartition("/")[2]
    return ":" in last or "@" in last


def _refused(image: str, message: str) -> str:
    return (
        f"the image {image!r} is not on the Docker engine and could not be pulled: {cut(message)}; pull, load or build it there, "
        "or name one that is there by the environment's option `image`"
    )
