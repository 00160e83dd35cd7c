"""A host with a sandbox in which much goes on: it prints the process ids of all that runs there, and waits to be killed."""

import asyncio

import psutil

from arlm.testing.bench import open_bench
from arlm.testing.cases_process import DETACHED
from brokers import loopback, subject

IDLE_S = 1.0


async def main() -> None:
    environment = loopback(idle_seconds=IDLE_S)
    async with open_bench(subject(environment)) as bench:
        await bench.context("c" * 200_000)
        await bench.out(DETACHED)
        async with bench.running("llm_query('hang')"):
            await bench.script.until(lambda: bench.script.in_flight == 1)
            broker = psutil.Process(environment.made[0].process.pid)
            print(broker.pid, *(child.pid for child in broker.children(recursive=True)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
