"""What dead hosts left on a Docker engine, and its removal."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager

from ..errors import SandboxError
from ..lifetimes import finish
from .docker_container import LABEL
from .docker_engine import Engine, Labelled, open_engine
from .docker_errors import EngineDown
from .owner import is_dead, is_owner

logger = logging.getLogger("arlm.environments")

LONG_SECONDS = 3600.0  # since its container ended a living host has long learned of it, and makes another one where it needs one

_looked_at: set[str] = set()  # engines that this process has looked through


async def sweep(engine_url: str | None, *, everything: bool) -> list[str]:
    """Remove what hosts that are dead for certain have there, what ended LONG_SECONDS ago, or all that arlm made.

    Returns a line for each. Raises SandboxError.
    """
    async with open_engine(engine_url) as engine:
        return await _sweep(engine, everything=everything)


async def _sweep(engine: Engine, *, everything: bool) -> list[str]:
    """One that cannot be removed keeps none of the others; it is told at the end. Raises SandboxError."""
    removed: list[str] = []
    failed: list[str] = []

    def goes(labels: Mapping[str, str]) -> bool:
        return everything or is_dead(labels.get(LABEL, ""), same_machine=engine.is_here)

    async def remove(what: str, removal: Awaitable[object]) -> None:
        try:
            await removal
            removed.append(what)
        except EngineDown:
            raise
        except SandboxError as error:
            failed.append(f"{what}: {error}")

    for container in await engine.labelled(LABEL):
        if goes(container.labels) or await _is_of_no_use(engine, container):
            await remove(f"container {container.name}", engine.remove(container.id))
    for volume in await engine.labelled_volumes(LABEL):
        if goes(volume.labels):
            await remove(f"volume {volume.name}", engine.remove_volume(volume.id))
    if failed:
        raise SandboxError("; ".join(failed) + (f"; removed were {', '.join(removed)}" if removed else ""))
    return removed


async def _is_of_no_use(engine: Engine, container: Labelled) -> bool:
    """Whether it ended long ago: of hosts on other machines and in other containers nobody knows whether they live."""
    if container.runs or not is_owner(container.labels.get(LABEL)):
        return False
    return await engine.seconds_since_end(container.id) > LONG_SECONDS


@asynccontextmanager
async def sweeping(engine: Engine) -> AsyncIterator[None]:
    """The first of a process to use an engine has what dead hosts left there removed, beside the block, which does not wait for it."""
    if engine.id in _looked_at:
        yield
        return
    task = asyncio.get_running_loop().create_task(_look(engine), name="what dead hosts left")
    try:
        yield
    finally:
        task.cancel()
        await finish(lambda: asyncio.wait({task}), what="the look for what dead hosts left")


async def _look(engine: Engine) -> None:
    try:
        for line in await _sweep(engine, everything=False):
            logger.info("removed what a dead host left: %s", line)
        _looked_at.add(engine.id)
    except SandboxError as error:
        logger.info("what dead hosts left could not be looked for: %s", error)
