"""One row: a provider of its own, a driver in a fresh process, its memory, a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from measure import MIB

from arlm.testing.provider import ProviderProcess, start_provider

from . import cells
from .rows import Row

HERE = Path(__file__).parent
DENSE_S = 0.02  # between two looks at memory, in a round that is not timed
GRACE_S = 1.0  # for workers to notice that their host is gone
SPARSE = 40  # in a timed round: so many times as long as a look took, so that looking costs at most 2.5 % of a core
Figures = dict[str, Any]


async def play(row: Row, python: str, *, faults: dict[str, Any], dense: bool = False) -> Figures:
    """The row's figures; ``failed`` among them says why there are no others."""
    script = {**cells.script(row.peer, **row.script), **faults}
    async with start_provider(script) as provider:
        figures = await _driven(row, python, provider, dense=dense)
        stats = await provider.stats()
        provider_cpu = sum(psutil.Process(provider.pid).cpu_times()[:2])
    return {**figures, "in_flight": stats["max_in_flight"], "calls": stats["calls"], "provider_cpu_s": provider_cpu}


async def ceiling(calls: int) -> float:
    """Calls a second that the provider carries for a client that does nothing else."""
    async with start_provider() as provider:
        command = [sys.executable, str(HERE / "raw.py"), provider.url, str(calls)]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        output, _ = await process.communicate()
    return float(output)


async def _driven(row: Row, python: str, provider: ProviderProcess, *, dense: bool) -> Figures:
    job = {**row.job, "play": row.play, "size": row.size}
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as home:
        process = await asyncio.create_subprocess_exec(
            python,
            str(HERE / f"drive_{row.peer}.py"),
            json.dumps(job),
            env=_variables(home, provider.url),
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        tree = Tree(process.pid)
        ending = asyncio.ensure_future(process.communicate())
        try:
            await _watch(tree, ending, row.limit, dense=dense)
            in_time = ending.done()
        finally:
            left = tree.end()
            await asyncio.wait({ending})
    if not in_time:
        return {"failed": f"not done after {row.limit:g} s, stopped by the harness", "over_s": row.limit, "peak_mib": tree.peak_mib}
    output, errors = ending.result()
    lines = output.decode("utf-8", "replace").strip().splitlines()
    if not lines:
        return {"failed": errors.decode("utf-8", "replace").strip()[-300:] or f"ended with status {process.returncode}"}
    return {**json.loads(lines[-1]), "peak_mib": tree.peak_mib, "left_behind": left}


def _variables(home: str, url: str) -> dict[str, str]:
    """The driver's whole environment: nothing of ours, no downloads, nothing written but to its own folder."""
    return {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": home,
        "TMPDIR": home,
        "OPENAI_API_KEY": "none",
        "PROVIDER_URL": url,  # OPENAI_BASE_URL in the environment would make dspy go by litellm, at several times the cost
        "DSPY_CACHEDIR": home,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
    }


async def _watch(tree: Tree, ending: asyncio.Future[Any], limit: float, *, dense: bool) -> None:
    """Look at the tree's memory until the driver has ended or its time is over."""
    until = time.monotonic() + limit
    while not ending.done() and (left := until - time.monotonic()) > 0:
        began = time.perf_counter()
        tree.look()
        pause = DENSE_S if dense else max(DENSE_S, SPARSE * (time.perf_counter() - began))
        await asyncio.wait({ending}, timeout=min(pause, left))


class Tree:
    """A driver's process and all that was seen below it; ``peak_mib`` is the most they held at once, shared pages counted once (PSS)."""

    def __init__(self, pid: int) -> None:
        self.peak_mib = 0.0
        self._root = psutil.Process(pid)
        self._seen: set[psutil.Process] = set()

    def look(self) -> None:
        with contextlib.suppress(psutil.Error):
            alive = [self._root, *self._root.children(recursive=True)]
            self._seen.update(alive)
            self.peak_mib = max(self.peak_mib, sum(map(_memory, alive)) / MIB)

    def end(self) -> int:
        """Kill what is still there, also what its parents have left behind; returns how many outlived the driver by GRACE_S."""
        with contextlib.suppress(psutil.Error):
            self._seen.update([self._root, *self._root.children(recursive=True)])
        until = time.monotonic() + GRACE_S
        while not _runs(self._root) and time.monotonic() < until and any(map(_runs, self._seen)):
            time.sleep(DENSE_S)
        left = [process for process in self._seen if _runs(process)]
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        return len(left)


def _memory(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        info = process.memory_full_info()
        return int(getattr(info, "pss", info.uss))
    return 0


def _runs(process: psutil.Process) -> bool:
    """A zombie does not."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
