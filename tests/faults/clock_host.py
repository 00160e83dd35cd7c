"""A host whose wall clock jumps by hours, forward and back, at each look. Prints what became of its run."""

import itertools
import json
import time

real = time.time
jumps = itertools.cycle([0.0, 7_200.0, -86_400.0, 3_600.0, -3_600.0, 31_536_000.0, -1e9])
looks = 0


def jumping() -> float:
    global looks
    looks += 1
    return real() + next(jumps)


time.time = jumping
time.time_ns = lambda: int(jumping() * 1e9)

import asyncio  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import arlm  # noqa: E402
from arlm.clients.openai import OpenAILM  # noqa: E402
from arlm.log import read_log  # noqa: E402
from arlm.testing.provider import ScriptedProvider  # noqa: E402
from arlm.testing.provider_script import Script  # noqa: E402

CELL = """```repl
import itertools, time
real, jumps = time.time, itertools.cycle([0, 1e5, -1e9])
time.time = lambda: real() + next(jumps)
r = llm_query_batched([str(n) for n in range(20)])
time.sleep(0.05)
answer.update(content=''.join(r), ready=True)
```"""


async def main() -> None:
    script = Script(turns=[CELL], faults=["cut"], jitter=0.02)  # the first call is cut off, and tried again
    with tempfile.TemporaryDirectory() as folder:
        async with ScriptedProvider(script) as provider:
            lm = OpenAILM("m", base_url=provider.url, api_key="sk-none", timeout=60)
            result = await arlm.run("q", context="c" * 100_000, model=lm, timeout=60, cell_timeout=30, log_dir=folder)
            calls = (await provider.stats())["calls"]
        (log,) = Path(folder).glob("*.jsonl")
        times = [event["time"] for event in read_log(log)]
    print(
        json.dumps(
            {
                "answer": result.answer,
                "calls": calls,
                "duration_s": result.duration_s,
                "looks": looks,
                "backward": sum(later < earlier for earlier, later in itertools.pairwise(times)),
            }
        )
    )


asyncio.run(main())
