"""A call by each road to the host: sockets, standard streams, the broker with its Poller, and a broker that is polled every 100 ms.

The host answers with a number, at once or after 200 ms; there is no model and no provider. The polled broker is a Flask application
(``peers/polled_*.py``) in an environment of its own in .benchmarks/, made by pip the first time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import anyio
from measure import Benchmark, Figures
from peers import calls, venvs

from arlm.environments import Environment, ProcessREPL
from arlm.environments.repl import REPL
from arlm.server import LMHandler
from arlm.testing.conformance import FUNCTIONS
from arlm.testing.gateway import open_gateway
from arlm.testing.loopback import LoopbackREPL

HERE = Path(__file__).parent
VENVS = HERE.parent / ".benchmarks"
POLLED = {"one_by_one": 20, "rounds": 1}  # at 100 ms each
POLLED_IN_TURN = {**POLLED, "slow": 25}  # at 200 ms each, one after the other
CELL_SECONDS = 600.0

MEASURE = """
import asyncio, json

def _at_once(prompts):
    async def all_of_them():
        return await asyncio.gather(*[llm_query_async(prompt) for prompt in prompts])

    return asyncio.run(all_of_them())

print(json.dumps(measured(llm_query, llm_query_batched, _at_once)))
"""


async def framed(make: Callable[[], Environment]) -> Figures:
    """The figures of a cell of arlm."""
    async with opened(make()) as repl:
        result = await repl.run_cell(Path(calls.__file__).read_text("utf-8") + MEASURE, 1)
    assert result.error is None, f"{result.error}\n{result.output}"
    figures: Figures = json.loads(result.output)
    return figures


@contextlib.asynccontextmanager
async def opened(environment: Environment) -> AsyncIterator[REPL]:
    """A REPL whose model functions are answered at once, or after what their prompts say."""
    with tempfile.TemporaryDirectory(prefix="arlm-") as folder:
        scratch = Path(folder)
        async with (
            LMHandler(transport=environment.transport, directory=scratch) as handler,
            environment.open(handler, scratch) as place,
            anyio.create_task_group() as tasks,
        ):
            repl = REPL(place, handler, name="bench", functions=FUNCTIONS, cell_timeout=CELL_SECONDS, memory_limit=None)
            repl.serve(tasks, answer)
            yield repl
            await repl.close()
            tasks.cancel_scope.cancel()


async def answer(method: str, args: dict[str, Any]) -> Any:
    if method == "llm_query":
        return await model(args["prompt"])
    return [await model(prompt) for prompt in args["prompts"]]  # those of a batch wait for nothing


async def model(prompt: str) -> dict[str, str]:
    if delay := int(prompt.split(" ", 1)[0]):
        await asyncio.sleep(delay / 1000)
    return {"text": calls.reply(prompt)}


async def behind_a_gateway() -> Figures:
    with contextlib.ExitStack() as gateways:
        return await framed(partial(LoopbackREPL, reach=lambda url: gateways.enter_context(gateway(url))))


@contextlib.contextmanager
def gateway(upstream: str) -> Iterator[str]:
    """One that passes everything on, in a process of its own."""
    fresh = multiprocessing.get_context("spawn")
    ours, theirs = fresh.Pipe()
    process = fresh.Process(target=_serve_gateway, args=(upstream, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


def _serve_gateway(upstream: str, told: Connection) -> None:
    async def serve() -> None:
        async with open_gateway(upstream) as gateway:
            told.send(gateway.url)
            await asyncio.Event().wait()

    asyncio.run(serve())


def polled(threads: bool, sizes: dict[str, int]) -> Figures:
    """The figures of a cell behind a Flask application."""
    flask = venvs.installed("flask", VENVS)
    if flask.failed:
        raise SystemExit(flask.failed)
    job = json.dumps({"threads": threads, "sizes": sizes})
    command = [flask.python, str(HERE / "peers" / "polled_host.py"), job]
    figures: Figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return figures


def compared(medians: Mapping[str, Figures]) -> Mapping[str, Figures]:
    """Calls a second, and how many times as long each takes as by the framed socket."""
    found: dict[str, Figures] = {name: {"per_second": calls.CALLS / figures["at_once_s"]} for name, figures in medians.items()}
    if FRAMED in medians:
        for name, figures in medians.items():
            found[name] |= {
                f"times_framed_{what}": figures[metric] / medians[FRAMED][metric]
                for what, metric in (("call", "call_us"), ("at_once", "at_once_s"))
            }
    return found


FRAMED = "framed socket (Unix)"

BENCHMARK = Benchmark(
    claim=f"a call by each road: one after the other, {calls.CALLS:,} at once, large ones",
    cases={
        FRAMED: partial(framed, ProcessREPL),
        "framed TCP": partial(framed, partial(ProcessREPL, transport="tcp")),
        "standard streams": partial(framed, partial(ProcessREPL, transport="stdio")),
        "broker and Poller": partial(framed, LoopbackREPL),
        "broker and Poller, behind a gateway": behind_a_gateway,
        "Flask, polled every 100 ms, a thread a call": partial(polled, True, POLLED),
        "Flask, polled every 100 ms, calls in turn": partial(polled, False, POLLED_IN_TURN),
    },
    derive=compared,
    rounds=3,
    sampled=False,
    notes=[
        "*call*, *1 kb*, *100 kb*: one `llm_query` that the host answers at once, by the size of its prompt; *mb a second*: by prompts of "
        f"10 MB; *at once*: {calls.CALLS:,} calls, each a request of its own, answered at once or after 200 ms; *batch*: as many in one "
        "`llm_query_batched`, answered at once; *per second*: of those at once. Flask with calls in turn is what rlms does in clouds, "
        f"measured with {POLLED_IN_TURN['slow']} calls of 200 ms; with a thread a call the host remembers what it has in hand."
    ],
)

if __name__ == "__main__":
    BENCHMARK.main()
