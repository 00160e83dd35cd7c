"""What ``arlm doctor`` sees of containers: the engine that is there, or why none is, and a container that is tried."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..environments.docker import IMAGE, DockerREPL
from ..environments.docker_container import LABEL
from ..environments.docker_engine import Engine, open_engine
from ..environments.docker_errors import EngineDown, without_credentials
from ..environments.owner import owner
from ..errors import ConfigError, describe
from ..options import RunOptions
from ..types import JSON
from .engine_parts import AREA, TOLD_CHARS, findings_of, grade_of
from .findings import Finding, Status
from .probes import Probe, run_one
from .text import one_line

ENGINE_S = 2.0  # for an engine to say what it is; one that is there takes milliseconds
CONTAINER_S = 20.0  # for a container to run its first cell; it takes a fifth of a second, and some on a loaded machine


async def look(url: str | None = None, image: str = IMAGE) -> list[Finding]:
    """What there is of an engine. Raises nothing, and takes a few seconds at most where nothing answers.

    A container is started where the image is there already; nothing is pulled. Cancelled, it removes the container first.

    Args:
        url: of the engine; None: the one that the environment docker takes by itself.
        image: of the container.
    """
    with contextlib.suppress(ImportError):  # what asks the engine says so in words
        await asyncio.to_thread(importlib.import_module, "aiodocker")
    try:
        async with _asked(url, image) as (engine, there):
            found = [*findings_of(engine, str(engine.docker.api_version).removeprefix("v"))]
            if found[0].status != "ok":
                return found
            tried = [await _try(engine, url, image)] if there else []
            return [*found, _image(image, there=there), *tried, grade_of(engine)]
    except TimeoutError:
        return [_absent(f"{_at(url)} did not answer within {ENGINE_S:g} s: see whether `docker info` does, and restart the engine")]
    except (ConfigError, EngineDown) as error:
        return [_absent(str(error))]
    except Exception as error:  # of whatever answers there
        return [_absent(f"{_at(url)} is no Docker engine that lets this user in ({describe(error)})", status="failed")]


@asynccontextmanager
async def _asked(url: str | None, image: str) -> AsyncIterator[tuple[Engine, bool]]:
    """An engine, and whether it has the image. Raises TimeoutError, ConfigError, SandboxError."""
    async with contextlib.AsyncExitStack() as stack:
        async with asyncio.timeout(ENGINE_S):
            engine = await stack.enter_async_context(open_engine(url))
            there = await engine.has_image(image)
        yield engine, there


def _at(url: str | None) -> str:
    return url or os.environ.get("DOCKER_HOST") or "what answers at Docker's usual address"


def _absent(text: str, *, status: Status = "missing") -> Finding:
    text = one_line(without_credentials(text), 2 * TOLD_CHARS)
    return Finding(area=AREA, name="engine", status=status, text=text, facts={"found": False, "grade": "none"})


def _image(image: str, *, there: bool) -> Finding:
    text = f"{image} is there" if there else f"{image} will be pulled at first use; once it is there, a container is tried here"
    return Finding(area=AREA, name="image", status="ok" if there else "info", text=text, facts={"image": image, "there": there})


async def _try(engine: Engine, url: str | None, image: str) -> Finding:
    outcome = await _probe(engine, DockerREPL(image=image, engine=url))
    status: Status = "ok" if outcome.worked else "failed"
    return Finding(area=AREA, name="container", status=status, text=one_line(outcome.text, 2 * TOLD_CHARS), facts=outcome.facts)


async def _probe(engine: Engine, environment: DockerREPL) -> Probe:
    """Start a container, run a cell in it, leave it."""
    began = time.monotonic()
    try:
        cell, started = await run_one(environment, "print(6 * 7)", RunOptions(), seconds=CONTAINER_S)
        left = [it.name for it in await engine.labelled(LABEL) if it.labels.get(LABEL) == owner()]
    except TimeoutError:
        return Probe(worked=False, text=f"no cell ran in a container within {CONTAINER_S:g} s")
    except Exception as error:  # a doctor reports what is broken, whatever it is
        return Probe(worked=False, text=f"no container could run: {without_credentials(describe(error))}")
    if cell.output.strip() != "42":
        return Probe(worked=False, text=f"a container's cell should have printed 42, and said {cell.output or cell.error!r}")
    text = f"first cell after {started * 1000:,.0f} ms; its container is {'STILL THERE' if left else 'gone'} after the run"
    facts: dict[str, JSON] = {"first_cell_s": round(started, 4), "total_s": round(time.monotonic() - began, 4)}
    return Probe(worked=not left, text=text, facts=facts)
