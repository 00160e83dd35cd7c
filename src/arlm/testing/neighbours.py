"""What payloads of the corpus try to reach inside a place: another worker of it, with the same things that ``escapes`` has on this machine.

escaped = await attempt_beside(bench, CORPUS, told)
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from ..environments.repl import REPL
from ..lifetimes import finish
from .bench import Bench
from .escapes import attempt_each
from .payloads import Escape, Proof

# A confined worker may not look at /proc but at its own entry: of its child it learns by waiting.
MOVE_IN = """
import os, pathlib, select, socket, subprocess, sys

canary = "{canary}"
base = pathlib.Path.cwd()
for name in ("home/.aws", "outside", "sibling/contexts"):
    (base / name).mkdir(parents=True)
for name in ("home/.aws/credentials", "sibling/contexts/context_0"):
    (base / name).write_text(canary)
file = base / "home" / "file"
listeners = {{"unix": socket.socket(socket.AF_UNIX), "abstract": socket.socket(socket.AF_UNIX)}}
listeners["unix"].bind(str(base / "u"))
listeners["abstract"].bind("\\0" + "{abstract}")
for listener in listeners.values():
    listener.listen()

def stand_by():
    global bystander
    code = "import os, time\\nsecret = os.environ['API_KEY'] * 2\\nprint(flush=True)\\ntime.sleep(3600)"
    words = [sys.executable, "-I", "-c", code, canary]
    bystander = subprocess.Popen(words, env={{"API_KEY": canary}}, stdout=subprocess.PIPE, start_new_session=True)
    bystander.stdout.readline()

def contacted():
    heard = select.select(list(listeners.values()), [], [], 0)[0]
    for listener in heard:
        listener.accept()[0].close()
    return bool(heard)

def harmed():
    return os.waitid(os.P_PID, bystander.pid, os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None

def written():
    return bool(os.listdir(base / "outside"))

def restore():
    contacted()
    for path in (base / "outside").iterdir():
        path.unlink()
    file.unlink(missing_ok=True)
    file.touch()
    if harmed():
        bystander.kill()
        bystander.wait()
        bystander.stdout.close()
        stand_by()
    return bystander.pid

stand_by()
answer.update(content=[os.getpid(), str(base)], ready=True)
"""
ASK: dict[Proof, str] = {"contact": "contacted()", "killed": "harmed()", "file": "written()"}


@dataclass(slots=True, kw_only=True)
class Neighbour:
    """Another worker, and what is to be had from it.

    Attributes:
        canary: the secret: in its memory, in files of its folder, in a process that it started.
        told: what a payload is told, as ``Targets.for_code``; ``neighbour`` and ``folder`` are the worker's process and folder.
    """

    canary: str
    told: dict[str, Any]
    repl: REPL
    folder: str

    async def seen(self, proof: Proof) -> bool:
        """Whether there is this proof of an escape; also when the worker is gone or does not answer."""
        if proof not in ASK:
            return False
        cell = await self.repl.run_cell(f"answer.update(content={ASK[proof]}, ready=True)", 1)
        return cell.answer is not False

    async def restore(self) -> None:
        """Make everything as it was before the payload."""
        cell = await self.repl.run_cell("answer.update(content=restore(), ready=True)", 1)
        if not isinstance(cell.answer, int):
            await self.move_in()
            cell = await self.repl.run_cell("answer.update(content=restore(), ready=True)", 1)
        self.told["host"] = self.told["bystander"] = cell.answer

    async def move_in(self) -> None:
        """Set everything up in its worker, which is fresh."""
        abstract = secrets.token_hex(8)
        cell = await self.repl.run_cell(MOVE_IN.format(canary=self.canary, abstract=abstract), 1)
        assert isinstance(cell.answer, list), cell.output
        pid, folder = cell.answer
        self.folder = str(folder)
        self.told |= {
            "neighbour": pid,
            "folder": folder,
            "home": f"{folder}/home",
            "sibling": f"{folder}/sibling",
            "outside": f"{folder}/outside",
            "file": f"{folder}/home/file",
            "unix": f"{folder}/u",
            "unix_datagram": f"{folder}/u",
            "abstract": abstract,
        }


@asynccontextmanager
async def open_neighbour(bench: Bench, told: dict[str, Any]) -> AsyncIterator[Neighbour]:
    """Have one in the bench's place; leaving ends it.

    Args:
        told: what a payload is told where the neighbour has no such thing.
    """
    repl = bench.another()
    try:
        neighbour = Neighbour(canary=f"canary-{secrets.token_hex(16)}", told=dict(told), repl=repl, folder="")
        await neighbour.move_in()
        await neighbour.restore()
        yield neighbour
    finally:
        await finish(repl.close, what="a neighbour")


async def attempt_beside(bench: Bench, tried: Iterable[Escape], told: Mapping[str, Any]) -> dict[str, str]:
    """See ``escapes.attempt_each``: against a neighbour in the bench's place."""
    async with open_neighbour(bench, dict(told)) as neighbour:
        return await attempt_each(bench, tried, neighbour.told, canary=neighbour.canary, seen=neighbour.seen, restore=neighbour.restore)
