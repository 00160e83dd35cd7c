"""What ``arlm doctor`` tries: a worker, and a memory limit."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field

from ..environments.base import Environment
from ..home import find_environment, open_home
from ..options import RunOptions, resolve
from ..types import JSON, CellResult

LIMIT_BYTES = 512 * 1024 * 1024
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
        cell, started = await run_one(find_environment("process", {}), "import os; os.getpid()", RunOptions())
        pid = int(cell.output.strip())
    except Exception as error:  # a doctor reports what is broken, whatever it is
        return Probe(worked=False, text=f"a worker could not run: {type(error).__name__}: {error}")
    gone = not _alive(pid)
    text = f"first cell after {started * 1000:,.0f} ms; its worker is {'gone' if gone else 'STILL THERE'} after the run"
    return Probe(worked=gone, text=text, facts={"first_cell_s": round(started, 4), "total_s": round(time.monotonic() - began, 4)})


async def probe_memory_limit() -> Probe:
    """Whether a worker under a limit is refused more memory than that."""
    try:
        hog = f"hog = bytearray({2 * LIMIT_BYTES})"
        cell, _ = await run_one(find_environment("process", {}), hog, RunOptions(memory_limit=LIMIT_BYTES))
    except Exception as error:  # as above
        return Probe(worked=False, text=f"could not be tried: {type(error).__name__}: {error}")
    held = (cell.error or "").startswith("MemoryError") or cell.stopped == "exited"
    text = "holds: 1 GiB was refused under 512 MiB" if held else "does NOT hold: 1 GiB was given under a limit of 512 MiB"
    return Probe(worked=held, text=text, facts={"holds": held})


async def run_one(environment: Environment, code: str, options: RunOptions, *, seconds: float = PROBE_S) -> tuple[CellResult, float]:
    """Run a cell in a fresh worker; the result, and the seconds until it was there. Raises TimeoutError after ``seconds``, ArlmError."""
    began = time.monotonic()
    async with asyncio.timeout(seconds), open_home(environment, resolve(options)) as home:
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
