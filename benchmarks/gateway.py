"""1,000 calls through a gateway that fails: each is made and answered once, and what that costs in time and requests.

The cell makes 700 calls of its own, 16 at a time from threads, then one batch of 300; the host answers at once. The gateway is one of
``arlm.testing``, with the same seed for the same faults. A call that is made twice, lost or answered wrongly fails the case.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial

from measure import Benchmark, Figures

from arlm.testing.conformance import Subject, open_bench
from arlm.testing.gateway import open_gateway
from arlm.testing.gateway_faults import Plan, Rates
from arlm.testing.loopback import LoopbackREPL

SINGLE, BATCH, THREADS = 700, 300, 16
CELL_SECONDS = 600.0
NAMES = ("drop_request", "drop_reply", "delay_request", "delay_reply", "duplicate")
OTHERS = ("replay", "cut_request", "cut_reply", "answer", "old_reply", "close_idle", "corrupt")

CODE = f"""
import json, time
from concurrent.futures import ThreadPoolExecutor

def ask(n):
    began = time.perf_counter()
    said = llm_query(f"single {{n}}")
    return said == f"single {{n}}", time.perf_counter() - began

with ThreadPoolExecutor({THREADS}) as pool:
    own = list(pool.map(ask, range({SINGLE})))
prompts = [f"batch {{n}}" for n in range({BATCH})]
right = sum(ok for ok, _ in own) + sum(got == asked for got, asked in zip(llm_query_batched(prompts), prompts))
print(json.dumps([right, sorted(took for _, took in own)]))
"""


async def measure(plan: Plan | None) -> Figures:
    async with open_gateway() as gateway:

        def reach(url: str) -> str:
            gateway.upstream = url
            return gateway.url

        subject = Subject(name="measured", environment=lambda: LoopbackREPL(reach=reach))
        async with open_bench(subject, cell_timeout=CELL_SECONDS) as bench:
            await bench.out("llm_query('warm')")
            bench.script.prompts.clear()
            before = gateway.counts["requests"]
            gateway.plan = plan
            began = time.perf_counter()
            right, took = json.loads(await bench.out(CODE))
            seconds = time.perf_counter() - began
            gateway.plan = None
            requests = gateway.counts["requests"] - before
            faults = sum(entry.fault is not None for entry in gateway.log[before:])
    expected = Counter([f"single {n}" for n in range(SINGLE)] + [f"batch {n}" for n in range(BATCH)])
    made = Counter(bench.script.prompts)
    if right != SINGLE + BATCH or made != expected:
        raise SystemExit(f"{right} right, {len(expected - made)} never made, {len(made - expected)} made twice")
    return {
        "right": right,
        "made_twice": (made - expected).total(),
        "requests": requests,
        "faults": faults,
        "all_s": seconds,
        "call_p50_ms": took[len(took) // 2] * 1000,
        "call_p99_ms": took[len(took) * 99 // 100] * 1000,
        "call_longest_ms": took[-1] * 1000,
    }


def compared(medians: Mapping[str, Figures]) -> Mapping[str, Figures]:
    """How many times as long all calls take as without faults."""
    if SOUND not in medians:
        return {}
    return {name: {"times_sound": figures["all_s"] / medians[SOUND]["all_s"]} for name, figures in medians.items()}


def rates(share: float, *names: str) -> Rates:
    """Of all requests this share, each kind of fault as often as the others."""
    return Rates(**dict.fromkeys(names, share / len(names)), seconds=0.05, statuses=(200, 400, 401, 403, 404, 502, 503, 504), outage=3)


SOUND = "no faults"

BENCHMARK = Benchmark(
    claim=f"{SINGLE + BATCH:,} calls through a gateway that fails",
    cases={
        SOUND: partial(measure, None),
        "1 % dropped, delayed or repeated": partial(measure, rates(0.01, *NAMES)),
        "10 % dropped, delayed or repeated": partial(measure, rates(0.1, *NAMES)),
        "36 %, of twelve kinds": partial(measure, rates(0.36, *NAMES, *OTHERS)),
    },
    derive=compared,
    rounds=3,
    sampled=False,
    notes=[
        "*right*: calls whose answer is theirs; *made twice*: calls that reached the host more than once; *requests* of the Poller, and "
        f"*faults* among them; *call*: one of {SINGLE}, {THREADS} at a time from threads of the cell. Delays, and the distance of repeated "
        "requests, are drawn from 0 to 50 ms. The twelve kinds: requests and replies dropped, delayed, cut; repeated at once and later; "
        "answers of the gateway's own (200 with a page, 400 to 504, up to three in a row); old replies served again; bytes changed; "
        "connections closed."
    ],
)

if __name__ == "__main__":
    BENCHMARK.main()
