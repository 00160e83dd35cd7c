"""Hosts that run out of file descriptors, at one stage or another.

``python short_host.py SCENARIO`` prints what became of each run: "ok", or the error's type and text; and the descriptors left.
"""

import asyncio
import json
import os
import resource
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import arlm
from arlm.clients.openai import OpenAILM
from arlm.environments import process  # noqa: F401 - imported before the shortage: what cannot be imported was never started
from arlm.rlm import run as arlm_run
from arlm.server import listening
from arlm.testing.provider import start_provider
from arlm.testing.scripted import ScriptedLM

LIMIT = 400  # descriptors of this process, and no way to raise it
PATIENCE_S = 60.0  # a run that takes so long hangs
MANY = 12  # descriptors are more than enough for a run without sub-calls: the walks go from none to there

FINAL = "```repl\nanswer.update(content=context[:1], ready=True)\n```"


def opened() -> set[int]:
    found = set()
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):  # the listing's own
            os.fstat(int(name))
            found.add(int(name))
    return found


@contextmanager
def only(free: int) -> Iterator[None]:
    """So many more descriptors can be opened, and not one more; all others are taken."""
    taken = []
    with suppress(OSError):
        while True:
            taken.append(os.dup(0))
    for _ in range(free):
        os.close(taken.pop())
    try:
        yield
    finally:
        for number in taken:
            os.close(number)


async def run(model: arlm.BaseLM | None = None) -> None:
    model = model or ScriptedLM(["```repl\nprint(llm_query('x'))\n```", FINAL], sub="ok")
    result = await arlm_run("q", context="c" * 100_000, model=model)
    assert result.answer == "c"


async def end_of(work: Awaitable[object]) -> str:
    try:
        await asyncio.wait_for(work, PATIENCE_S)
    except Exception as error:
        return f"{type(error).__name__ if isinstance(error, arlm.ArlmError) else 'NOT OURS'}: {error}"
    return "ok"


async def short(free: int, work: Callable[[], Awaitable[object]] = run) -> tuple[str, str, int]:
    """How a run ends with so many descriptors, how the next one does with enough, and how many descriptors are left of the first."""
    before = opened()
    with only(free):
        first = await end_of(work())
    return first, await end_of(work()), len(opened() - before)


async def cold(free: int) -> tuple[str, str, int]:
    return await short(free)


async def warm(free: int) -> tuple[str, str, int]:
    await run()
    return await short(free)


def walk(stage: Callable[[int], Awaitable[tuple[str, str, int]]]) -> list[object]:
    """Each number of descriptors in a process of its own, so that the first run of it is the first run of a process."""
    ends = []
    for free in range(MANY):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.write(writer, json.dumps(asyncio.run(stage(free))).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        with open(reader, encoding="utf-8") as told:
            ends.append(json.loads(told.read()))
        os.waitpid(pid, 0)
    return ends


async def crowd() -> tuple[list[str], str, int]:
    """30 runs at once, with descriptors for some of them."""
    await run()
    before = opened()
    with only(40):
        first = await asyncio.gather(*(end_of(run()) for _ in range(30)))
    return first, await end_of(run()), len(opened() - before)


async def calls() -> list[object]:
    """200 sub-calls at once, with a dozen descriptors for their connections."""
    code = "r = llm_query_batched([str(n) for n in range(200)])\nanswer.update(content=','.join(r), ready=True)"
    async with start_provider({"turns": [f"```repl\n{code}\n```"], "latency": 0.01}) as provider:
        model = OpenAILM("m", base_url=provider.url, api_key="sk-none")
        found: list[object] = []

        async def batch() -> None:
            result = await arlm_run("q", context="c", model=model)
            assert result.answer == ",".join(map(str, range(200))), result.answer
            found.append((await provider.stats())["max_in_flight"])

        return [await short(20, batch), *found]


async def held() -> tuple[str, str, int]:
    """All descriptors are taken while the worker starts, and stay so."""
    listening.SHORT_SECONDS = 0.3
    taken: list[int] = []

    async def take_all() -> None:
        async def greedy(_messages: list[arlm.Message]) -> str:
            with suppress(OSError):
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            await asyncio.Event().wait()
            return ""

        try:
            await run(ScriptedLM([greedy]))
        finally:
            for number in taken:
                os.close(number)

    await run()
    before = opened()
    with only(5):
        first = await end_of(take_all())
    return first, await end_of(run()), len(opened() - before)


SCENARIOS: dict[str, Callable[[], object]] = {
    "cold": lambda: walk(cold),
    "warm": lambda: walk(warm),
    "crowd": lambda: asyncio.run(crowd()),
    "calls": lambda: asyncio.run(calls()),
    "held": lambda: asyncio.run(held()),
}

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    print(json.dumps(SCENARIOS[sys.argv[1]]()))
