"""A host with a container in which much goes on: it prints its label once a sub-call is pending, and waits to be killed.

python docker_host.py URL IMAGE
"""

import asyncio
import sys

import arlm
from arlm.environments.docker import DockerREPL
from arlm.environments.owner import owner
from arlm.testing.cases_process import DETACHED

CELL = f"```repl\n{DETACHED}\nllm_query('hang')\n```"


async def model(messages: list[arlm.Message]) -> str:
    if messages[0]["role"] == "system":
        return CELL
    print(owner(), flush=True)
    return await asyncio.Event().wait()


if __name__ == "__main__":
    environment = DockerREPL(engine=sys.argv[1], image=sys.argv[2])
    asyncio.run(arlm.run("q", context="c" * 200_000, model=model, environment=environment))
