"""What a block took, the processes below included; and no traffic but to loopback. Standard library only, for any framework's Python."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds: what /proc counts in


@dataclass
class Spent:
    """Seconds of wall clock, and CPU seconds of this process with all below it."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def figures(self) -> dict[str, float]:
        return {"wall_s": self.wall_s, "cpu_s": self.cpu_s}


@contextlib.contextmanager
def spending() -> Iterator[Spent]:
    """Measure the block, also one that raises."""
    spent = Spent()
    cpu, began = tree_cpu(), time.perf_counter()
    try:
        yield spent
    finally:
        spent.wall_s = time.perf_counter() - began
        spent.cpu_s = max(0.0, tree_cpu() - cpu)


def tree_cpu() -> float:
    """User and system seconds of this process and of every one below it, living or reaped; below, in steps of 10 ms."""
    own = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    children: dict[int, list[tuple[int, float]]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = stat.read_bytes().rpartition(b")")[2].split()
            used = sum(map(int, fields[11:15])) * TICK  # its own, and that of the children it has reaped
            children.setdefault(int(fields[1]), []).append((int(stat.parent.name), used))
    below, todo = 0.0, [os.getpid()]
    while todo:
        for pid, used in children.get(todo.pop(), []):
            below += used
            todo.append(pid)
    return own + below


def loopback_only() -> None:
    """From here on a connection that leaves this machine is refused at once: telemetry, price lists, model cards."""

    def check(event: str, arguments: tuple[object, ...]) -> None:
        if event == "socket.connect":
            address = arguments[1]
            if isinstance(address, tuple) and not str(address[0]).startswith(("127.", "::1")):
                raise ConnectionRefusedError("benchmarks talk to loopback only")
        elif event == "socket.getaddrinfo" and arguments[0] not in (None, "localhost", "127.0.0.1", "::1"):
            raise ConnectionRefusedError("benchmarks talk to loopback only")

    sys.addaudithook(check)
