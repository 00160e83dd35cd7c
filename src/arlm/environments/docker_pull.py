"""Images that an engine fetches, and how far it has come."""

from __future__ import annotations

import json
import time

from ..errors import SandboxError
from .docker_engine import Engine, Told
from .opening import progress

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
        while line := await answer.content.readline():
            step = json.loads(line)
            if not answer.ok or "error" in step:
                raise SandboxError(_refused(image, str(step.get("error") or step.get("message"))))
            detail = step.get("progressDetail") or {}
            if step.get("status") == "Downloading" and detail.get("total"):
                layers[step["id"]] = (int(detail.get("current", 0)), int(detail["total"]))
            if layers and time.monotonic() - told >= TELL_SECONDS:
                told = time.monotonic()
                here, whole = (sum(sizes) // MIB for sizes in zip(*layers.values(), strict=True))
                progress(f"pulling the image {image}: {here:,} of {whole:,} MiB")
    progress(f"the image {image} is there")


def _names_one(image: str) -> bool:
    """Whether a name has a tag or a digest; of one without, an engine would fetch every tag there is."""
    last = image.rpartition("/")[2]
    return ":" in last or "@" in last


def _refused(image: str, message: str) -> str:
    return (
        f"the image {image!r} is not on the Docker engine and could not be pulled: {message}; pull, load or build it there, "
        "or name one that is there by the environment's option `image`"
    )
