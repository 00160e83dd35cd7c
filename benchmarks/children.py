"""What a child costs before it does anything: workers beside fresh interpreters and beside `fork` alone, and a thousand alive.

All are started side by side, as fast as they will come, and stay alive until the last one is there. A worker counts when it is confined,
connected, and has answered a request; an interpreter when it has printed; a fork when it has written a byte.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import psutil
from measure import Benchmark, Figures, memory_mib, spending

from arlm import functions
from arlm.environments import ProcessREPL
from arlm.environments.base import Place
from arlm.environments.repl import REPL
from arlm.guest.__main__ import PRELOAD
from arlm.server import LMHandler

COUNT = 200
MANY = 1000
AT_ONCE = 32  # starts under way at a time
ONE_BY_ONE = 50
PAUSE_SECONDS = 0.02  # between starts one by one: what the last one left is cleared up


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[Place, LMHandler]]:
    environment = ProcessREPL()
    with tempfile.TemporaryDirectory(prefix="arlm-") as folder:
        scratch = Path(folder)
        async with LMHandler(transport=environment.transport, directory=scratch) as handler, environment.open(handler, scratch) as place:
            warm = repl(place, handler, "warm")
            await ready(warm)
            await warm.close()
            yield place, handler


def repl(place: Place, handler: LMHandler, name: str) -> REPL:
    return REPL(place, handler, name=name, functions=functions.specs(), cell_timeout=600, memory_limit=None)


async def ready(repl: REPL) -> None:
    await repl.begin_run(cell_timeout=600, on_output=lambda _: None, history=[{"prompt": "", "answer": ""}])
    await repl.start()


async def workers(count: int) -> Figures:
    async with opened() as (place, handler):
        repls = [repl(place, handler, str(number)) for number in range(count)]
        turns = asyncio.Semaphore(AT_ONCE)

        async def start(repl: REPL) -> None:
            async with turns:
                await ready(repl)

        host = psutil.Process()
        before = memory_mib([host])
        with spending() as spent:
            await asyncio.gather(*[start(repl) for repl in repls])
        (supervisor,) = host.children()
        alive = supervisor.children()
        assert len(alive) == count, alive
        children = memory_mib(alive)
        figures = {
            "each_ms": spent.wall / count * 1000,
            "per_second": count / spent.wall,
            "cpu_each_ms": spent.tree_cpu / count * 1000,
            "pss_each_mib": children / count,
            "all_mib": children + memory_mib([supervisor]) + memory_mib([host]) - before,
            "host_fds": float(host.num_fds()),
            "supervisor_fds": float(supervisor.num_fds()),
        }
        await asyncio.gather(*[repl.close() for repl in repls])
    return figures


async def workers_one_by_one() -> Figures:
    async with opened() as (place, handler):
        took = []
        for number in range(ONE_BY_ONE):
            one = repl(place, handler, str(number))
            began = time.perf_counter()
            await ready(one)
            took.append(time.perf_counter() - began)
            await one.close()
            await asyncio.sleep(PAUSE_SECONDS)
    return {"each_ms": sorted(took)[len(took) // 2] * 1000}


HERE = "import sys; sys.stdout.write('x'); sys.stdout.flush(); sys.stdin.read()"
# What a worker has in memory when it answers: the modules that the supervisor has imported for cells, and its own.
AS_FAR = f"import {', '.join(PRELOAD)}, selectors, socket, threading, ctypes, mmap, ast, codeop, linecache, traceback; {HERE}"


def interpreters(code: str) -> Figures:
    """``python -I -c …``, with a byte that says that it is there, and the wait for the others."""
    with spending() as spent:
        started = [
            subprocess.Popen([sys.executable, "-I", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(COUNT)
        ]
        for process in started:
            assert process.stdout is not None
            assert process.stdout.read(1) == b"x"
    memory = memory_mib([psutil.Process(process.pid) for process in started])
    for process in started:
        process.communicate()
    return {
        "each_ms": spent.wall / COUNT * 1000,
        "per_second": COUNT / spent.wall,
        "cpu_each_ms": spent.tree_cpu / COUNT * 1000,
        "pss_each_mib": memory / COUNT,
    }


def interpreters_one_by_one() -> Figures:
    took, memory = [], 0.0
    for _ in range(ONE_BY_ONE):
        began = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-I", "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            process.stdout.readline()
            took.append(time.perf_counter() - began)
            memory += memory_mib([psutil.Process(process.pid)])
            process.stdin.write(b"\n")
        time.sleep(PAUSE_SECONDS)
    return {"each_ms": sorted(took)[len(took) // 2] * 1000, "pss_each_mib": memory / ONE_BY_ONE}


def forks() -> Figures:
    """``os.fork`` of this process, which has imported about as much as a supervisor."""
    reader, writer = os.pipe()
    keep_reader, keep_writer = os.pipe()
    pids = []
    with spending() as spent:
        for _ in range(COUNT):
            pid = os.fork()
            if pid == 0:
                os.close(keep_writer)
                os.write(writer, b"x")
                os.read(keep_reader, 1)
                os._exit(0)
            pids.append(pid)
        got = 0
        while got < COUNT:
            got += len(os.read(reader, COUNT))
    memory = memory_mib([psutil.Process(pid) for pid in pids])
    os.close(keep_writer)
    for pid in pids:
        os.waitpid(pid, 0)
    return {"each_ms": spent.wall / COUNT * 1000, "per_second": COUNT / spent.wall, "cpu_each_ms": spent.tree_cpu / COUNT * 1000,
            "pss_each_mib": memory / COUNT}  # fmt: skip


def compared(medians: Mapping[str, Figures]) -> Mapping[str, Figures]:
    """Ratios of a worker to a fresh interpreter, where both were measured."""
    found: dict[str, Figures] = {}
    for worker, fresh, name in (
        (SIDE_BY_SIDE, FRESH, "times_faster"),
        (SIDE_BY_SIDE, FRESH_AS_FAR, "times_faster_at_equal_terms"),
        (ONE, FRESH_ONE, "times_faster"),
    ):
        if worker in medians and fresh in medians:
            found.setdefault(worker, {})[name] = medians[fresh]["each_ms"] / medians[worker]["each_ms"]
    if SIDE_BY_SIDE in found and FRESH_AS_FAR in medians:
        found[SIDE_BY_SIDE]["pss_at_equal_terms"] = medians[SIDE_BY_SIDE]["pss_each_mib"] / medians[FRESH_AS_FAR]["pss_each_mib"]
    if SIDE_BY_SIDE in found and FRESH in medians:
        found[SIDE_BY_SIDE]["pss_to_fresh"] = medians[SIDE_BY_SIDE]["pss_each_mib"] / medians[FRESH]["pss_each_mib"]
        if FRESH_ONE in medians:
            found[SIDE_BY_SIDE]["pss_to_a_lone_fresh"] = medians[SIDE_BY_SIDE]["pss_each_mib"] / medians[FRESH_ONE]["pss_each_mib"]
    return found


SIDE_BY_SIDE = f"{COUNT} workers side by side"
FRESH = f"{COUNT} fresh interpreters side by side"
FRESH_AS_FAR = f"{COUNT} fresh interpreters with a worker's imports"
ONE, FRESH_ONE = "workers, one by one", "fresh interpreters, one by one"

BENCHMARK = Benchmark(
    claim="what a child costs",
    cases={
        SIDE_BY_SIDE: partial(workers, COUNT),
        FRESH: partial(interpreters, HERE),
        FRESH_AS_FAR: partial(interpreters, AS_FAR),
        f"{COUNT} forks": forks,
        ONE: workers_one_by_one,
        FRESH_ONE: interpreters_one_by_one,
        f"{MANY} workers alive": partial(workers, MANY),
    },
    derive=compared,
    target="200 a second; 1,000 alive within 4 GiB; 10 times faster than a fresh interpreter, with at most half its memory",
    rounds=3,
    sampled=False,
)

if __name__ == "__main__":
    BENCHMARK.main()
