"""What ``arlm doctor`` tries: a worker, a memory limit, servers on this machine."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ..clients.endpoint import endpoint_of
from ..clients.rows import Row
from ..errors import ConfigError
from ..home import find_environment, open_home
from ..options import RunOptions, resolve
from ..types import JSON, CellResult

LIMIT_BYTES = 512 * 1024 * 1024
SERVER_S = 1.0  # for a server of this machine to answer
PROBE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What came of a try."""

    worked: bool
    text: str
    facts: dict[str, JSON] = field(default_factory=dict)


async def probe_process() -> Probe:
    """Start a worker of the `process` environment, run a cell, leave it."""
    began = time.monotonic()
    try:
        cell, started = await _run_one("import os; os.getpid()", RunOptions())
        pid = int(cell.output.strip())
    except Exception as error:  # a doctor reports what is broken, whatever it is
        return Probe(worked=False, text=f"a worker could not run: {type(error).__name__}: {error}")
    gone = not _alive(pid)
    text = f"first cell after {started * 1000:,.0f} ms; its worker is {'gone' if gone else 'STILL THERE'} after the run"
    return Probe(worked=gone, text=text, facts={"first_cell_s": round(started, 4), "total_s": round(time.monotonic() - began, 4)})


async def probe_memory_limit() -> Probe:
    """Whether a worker under a limit is refused more memory than that."""
    try:
        cell, _ = await _run_one(f"hog = bytearray({2 * LIMIT_BYTES})", RunOptions(memory_limit=LIMIT_BYTES))
    except Exception as error:  # as above
        return Probe(worked=False, text=f"could not be tried: {type(error).__name__}: {error}")
    held = (cell.error or "").startswith("MemoryError") or cell.stopped == "exited"
    text = "holds: 1 GiB was refused under 512 MiB" if held else "does NOT hold: 1 GiB was given under a limit of 512 MiB"
    return Probe(worked=held, text=text, facts={"holds": held})


async def _run_one(code: str, options: RunOptions) -> tuple[CellResult, float]:
    """Run a cell in a fresh worker; the result, and the seconds until it was there."""
    began = time.monotonic()
    async with asyncio.timeout(PROBE_S), open_home(find_environment("process", {}), resolve(options)) as home:
        cell = await home.repl.run_cell(code, 1)
        return cell, time.monotonic() - began


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


async def probe_server(row: Row) -> Probe:
    """Whether a model server answers where this provider's calls would go."""
    try:
        url = endpoint_of(row).base_url
    except ConfigError as error:
        return Probe(worked=False, text=str(error))
    parts = urlsplit(url)
    where = f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    if parts.scheme != "http":
        return Probe(worked=False, text=f"{where}: not tried (https)", facts={"at": where})
    try:
        models = await asyncio.to_thread(_models_at, parts.hostname or "", parts.port or 80, f"{parts.path}/models")
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = "something else answers" if isinstance(error, (ValueError, http.client.HTTPException)) else "nothing answers"
        return Probe(worked=False, text=f"{why} at {where}; start it, or set {row.base_url_variable}", facts={"at": where})
    shown = ", ".join(models[:5]) + (", …" if len(models) > 5 else "")
    return Probe(worked=True, text=f"answers at {where}; models: {shown or 'none loaded'}", facts={"at": where, "models": [*models]})


def _models_at(host: str, port: int, path: str) -> list[str]:
    """The model names of ``GET /v1/models``. Raises ValueError when the reply is none of an OpenAI-compatible server."""
    connection = http.client.HTTPConnection(host, port, timeout=SERVER_S)
    try:
        connection.request("GET", path, headers={"Accept": "application/json"})
        reply = connection.getresponse()
        body = json.loads(reply.read())
    finally:
        connection.close()
    if reply.status != 200 or not isinstance(body, dict):
        raise ValueError(f"status {reply.status}")
    return [str(model["id"]) for model in body.get("data") or [] if isinstance(model, dict) and "id" in model]
