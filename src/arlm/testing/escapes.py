"""The escape corpus (``payloads``) tried in a cell, against real targets on this machine.

async with open_targets() as targets:
    escaped = await attempt(subject, CORPUS[0], targets)
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..environments.repl import REPL
from ..lifetimes import finish
from .bench import Bench, Subject, open_bench
from .payloads import Escape, Proof

CELL_SECONDS = 20.0
RESULT_CHARS = 6_000_000  # of what a payload returned: more than any returns, less than the wire carries
SETTLE_SECONDS = 0.2  # for what a payload set off: a packet of a subprocess, the end of a killed process
WORDS = {"contact": "a listener was reached", "killed": "a process was ended or stopped", "file": "a file was written outside"}
NOTHING = ("None", "False", "0", "''", "b''", "[]", "")


@dataclass(slots=True, kw_only=True)
class Targets:
    """What payloads try to reach.

    Attributes:
        canary: the secret.
        home: a folder with credentials that hold it.
        sibling: another run's folder, whose context holds it.
        outside: an empty folder that no cell may write to.
        file: a file of the same user.
        bystander: a process of the same user with the secret in its environment, its arguments and its memory.
        listeners: sockets that nobody may reach, by name.
    """

    canary: str
    home: Path
    sibling: Path
    outside: Path
    file: Path
    bystander: subprocess.Popen[bytes]
    listeners: dict[str, socket.socket] = field(default_factory=dict)

    def for_code(self, bench: Bench, supervisor: int) -> dict[str, Any]:
        """What a payload is told."""
        return {
            "host": self.bystander.pid,
            "bystander": self.bystander.pid,
            "supervisor": supervisor,
            "home": str(self.home),
            "sibling": str(self.sibling),
            "outside": str(self.outside),
            "file": str(self.file),
            "context": bench.contexts[0].path,
            "handler": bench.handler.address.get("unix", ""),
            "tcp": self.listeners["tcp"].getsockname()[1],
            "udp": self.listeners["udp"].getsockname()[1],
            "unix": self.listeners["unix"].getsockname(),
            "unix_datagram": self.listeners["unix_datagram"].getsockname(),
            "abstract": os.fsdecode(self.listeners["abstract"].getsockname()[1:]),
        }

    def contacted(self) -> bool:
        """Whether a listener heard of anybody since the last look."""
        heard = False
        for listener in self.listeners.values():
            try:
                while True:
                    if listener.type == socket.SOCK_STREAM:
                        listener.accept()[0].close()
                    else:
                        listener.recv(4096)
                    heard = True
            except BlockingIOError:
                continue
        return heard

    def harmed(self) -> bool:
        """Whether the bystander was ended or stopped."""
        if self.bystander.poll() is not None:
            return True
        return _state(self.bystander.pid) in "Tt"

    def seen(self, proof: Proof) -> bool:
        """Whether there is this proof of an escape."""
        match proof:
            case "contact":
                return self.contacted()
            case "killed":
                return self.harmed()
            case "file":
                return any(self.outside.iterdir())
            case "canary" | "true":
                return False  # what the payload returned shows it

    def restore(self) -> None:
        """Make everything as it was before the payload."""
        self.contacted()
        for path in self.outside.iterdir():
            path.unlink()
        self.file.unlink(missing_ok=True)
        self.file.touch()
        if self.harmed():
            _end(self.bystander)
            self.bystander = _bystander(self.canary)

    async def restored(self) -> None:
        """The same, for ``attempt_each``."""
        self.restore()


def has_ended(pid: int) -> bool:
    """Whether a process of this machine is there no more."""
    return _state(pid) in "ZX"


def _state(pid: int) -> str:
    """The kernel's letter for what a process is doing; "X" when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


@asynccontextmanager
async def open_targets() -> AsyncIterator[Targets]:
    """Set the targets up; leaving takes them away."""
    async with AsyncExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="arlm-targets-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        canary = f"canary-{secrets.token_hex(16)}"
        for name in ("home/.aws", "outside", "sibling/contexts"):
            (folder / name).mkdir(parents=True)
        (folder / "home/.aws/credentials").write_text(canary)
        (folder / "sibling/contexts/context_0").write_text(canary)
        targets = Targets(
            canary=canary,
            home=folder / "home",
            sibling=folder / "sibling",
            outside=folder / "outside",
            file=folder / "home/file",
            bystander=_bystander(canary),
        )
        stack.callback(lambda: _end(targets.bystander))
        _listen(targets, folder)
        for listener in targets.listeners.values():
            stack.callback(listener.close)
        yield targets


def _bystander(canary: str) -> subprocess.Popen[bytes]:
    code = "import os, sys, time\nsecret = os.environ['API_KEY'] * 2\nprint(flush=True)\ntime.sleep(3600)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, canary], env={"API_KEY": canary}, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    with process.stdout as ready:
        ready.readline()
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _listen(targets: Targets, folder: Path) -> None:
    kinds: dict[str, tuple[socket.AddressFamily, socket.SocketKind, Any]] = {
        "tcp": (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        "udp": (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
        "unix": (socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "u")),
        "unix_datagram": (socket.AF_UNIX, socket.SOCK_DGRAM, str(folder / "d")),
        "abstract": (socket.AF_UNIX, socket.SOCK_STREAM, f"\0{secrets.token_hex(8)}"),
    }
    for name, (family, kind, address) in kinds.items():
        listener = targets.listeners[name] = socket.socket(family, kind)
        listener.bind(address)
        listener.setblocking(False)
        if kind == socket.SOCK_STREAM:
            listener.listen()


async def attempt(subject: Subject, escape: Escape, targets: Targets, *, supervisor: int | None = None) -> str | None:
    """Run one payload in a fresh REPL; returns what shows that it escaped, or None.

    Args:
        supervisor: the process that forks the workers, where there is one on this machine.
    """
    targets.restore()
    forker = supervisor if supervisor is not None else targets.bystander.pid

    async def seen(proof: Proof) -> bool:
        return targets.seen(proof) or (proof == "killed" and has_ended(forker))

    async with open_bench(subject, cell_timeout=CELL_SECONDS) as bench:
        await bench.context("the context")
        return await attempt_in(bench.repl, escape, targets.for_code(bench, forker), canary=targets.canary, seen=seen)


async def attempt_in(
    repl: REPL, escape: Escape, told: Mapping[str, Any], *, canary: str, seen: Callable[[Proof], Awaitable[bool]]
) -> str | None:
    """Run one payload in a REPL that is there; returns what shows that it escaped, or None.

    Args:
        told: the targets, as code in the REPL knows them.
        canary: the secret among them.
        seen: whether the targets show that they were contacted, ended, written to.
    """
    code = (
        f"def payload(t):\n{textwrap.indent(escape.code, '    ')}\n"
        f"try:\n    got = payload({dict(told)!r})\nexcept BaseException as error:\n    got = None\n"
        f"answer.update(content=repr(got)[:{RESULT_CHARS}], ready=True)"
    )
    cell = await repl.run_cell(code, 1)
    got = cell.answer if isinstance(cell.answer, str) else ""
    if canary in got or canary in cell.output:
        return "it has the canary"
    if escape.proof in ("contact", "killed"):
        await asyncio.sleep(SETTLE_SECONDS)
    match escape.proof:
        case "true":
            return f"it returned {got[:60]}" if got not in NOTHING else None
        case "canary":
            return None
        case _:
            return WORDS[escape.proof] if await seen(escape.proof) else None


async def attempt_each(
    bench: Bench,
    tried: Iterable[Escape],
    told: Mapping[str, Any],
    *,
    canary: str,
    seen: Callable[[Proof], Awaitable[bool]],
    restore: Callable[[], Awaitable[None]],
) -> dict[str, str]:
    """Run payloads in a place that is there, each in a fresh REPL of it; returns those that escaped, by name, with what shows it.

    Args:
        told, canary, seen: see ``attempt_in``.
        restore: makes everything as it was, before each of them.
    """
    escaped = {}
    for escape in tried:
        await restore()
        repl = bench.another()
        try:
            found = await attempt_in(repl, escape, told, canary=canary, seen=seen)
        finally:
            await finish(repl.close, what="a REPL of a payload")
        if found is not None:
            escaped[escape.name] = found
    return escaped
