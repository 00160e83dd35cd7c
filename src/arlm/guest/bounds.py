"""Limits on a worker with all that it starts: who sets them, who watches them, what is said when one was exceeded.

A worker gets a group where groups can be made (``cgroups``). What no group bounds, the kernel's limits per process and user do as far as
they go (``confine``), and the supervisor counts processes (``census``).
"""

from __future__ import annotations

import itertools
import os
import time
from typing import Any, Dict, Iterable, List, Optional

from . import census, cgroups, processes
from .confine import MAX_PROCESSES

KILLED = -9
REMOVE_SECONDS = 2.0  # for processes of a group to be gone when the supervisor ends
RETRY_SECONDS = 0.05
THREAD_BYTES = 72 * 1024 * 1024  # the connection's thread: its stack, and what the C library reserves for the memory of a further thread
TABLES = 256  # one byte of so many is the kernel's: page tables take one of 512


class Bound:
    """The limits of one worker, as the supervisor knows them.

    Attributes:
        group: the name of its group, or None.
        memory: bytes, or None.
        processes: how many processes and threads it may have, or None.
        exceeded: the limit for which the supervisor killed it, in words.
    """

    def __init__(self, group: Optional[str], memory: Optional[int], processes: Optional[int]) -> None:
        self.group = group
        self.memory = memory
        self.processes = processes
        self.exceeded = ""

    def why(self, status: int) -> str:
        """Which limit ended the worker, in words; empty when none did."""
        if self.exceeded or status != KILLED or self.group is None or self.memory is None:
            return self.exceeded
        killed = cgroups.was_killed_for_memory(self.group, cgroups.known_roots())
        return cgroups.exceeded("memory", self.memory) if killed else ""

    def kill(self, pid: int) -> None:
        """Kill a worker and what it has started as far as that can be done at once: its group, or its tree where that is large."""
        if not self.kill_rest() and census.tasks_of(pid, census.MANY) > census.MANY:
            census.halt(pid)

    def kill_rest(self) -> bool:
        """Kill what is in the worker's group; False when nothing is, or there is none."""
        if self.group is None or cgroups.is_empty(self.group, cgroups.known_roots()):
            return False
        cgroups.kill(self.group, cgroups.known_roots())
        return True


class Bounds:
    """The limits of all workers of a supervisor."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._census = census.Census()
        self._over: List[str] = []  # groups whose processes are dead, or soon will be

    def expect(self, args: Dict[str, Any]) -> Bound:
        """The limits that a worker asks for in ``spawn``; its group's name and the default are added to them."""
        memory, most = args.get("memory_limit"), args.get("processes")
        wanted = memory or most or os.getuid() == 0  # the kernel's limit per user does not bind root
        if args.get("confine") is not None:
            most = args["processes"] = most or MAX_PROCESSES
        args["group"] = None
        if wanted and ((memory and "memory" in cgroups.known_roots()) or (most and "pids" in cgroups.known_roots())):
            number = next(self._numbers)
            if number == 1:
                cgroups.sweep(cgroups.known_roots())
            args["group"] = cgroups.name(number)
        return Bound(args["group"], memory, most)

    def patience(self, known: Iterable[Optional[Bound]]) -> Optional[float]:
        """Seconds until ``look`` or ``tidy`` is due; None: not by itself."""
        due = [RETRY_SECONDS] if self._over else []
        if any(bound is not None and bound.processes for bound in known):
            due.append(self._census.patience)
        return min(due, default=None)

    def look(self, known: Dict[int, Optional[Bound]]) -> List[int]:
        """One step of counting. Returns the process numbers of workers that have too many, with the reason in their bounds."""
        limits = {pid: bound.processes for pid, bound in known.items() if bound is not None and bound.processes}
        over = self._census.look(limits)
        for pid in over:
            bound = known[pid]
            assert bound is not None
            bound.exceeded = f"{cgroups.exceeded('pids', limits[pid])} and passed"
        return list(over)

    def end(self, bound: Optional[Bound]) -> None:
        """A worker is dead."""
        if bound is not None and bound.group is not None:
            self._over.append(bound.group)
            self.tidy()

    def tidy(self) -> None:
        """Remove groups of the dead, as far as they are empty."""
        self._over = [group for group in self._over if not cgroups.remove(group, cgroups.known_roots())]

    def close(self, known: Iterable[Optional[Bound]]) -> None:
        """All workers are dead: remove what is left of their groups."""
        self._over += [bound.group for bound in known if bound is not None and bound.group is not None]
        deadline = time.monotonic() + REMOVE_SECONDS
        while self._over and time.monotonic() < deadline:
            self.tidy()
            if self._over:
                time.sleep(cgroups.PAUSE_SECONDS)


def prepare(spec: Dict[str, Any]) -> Optional[cgroups.Group]:
    """In a worker that is not confined yet: make the group that the supervisor named, if it named one.

    The group's memory is what one process may map, as the worker limits it afterwards, and something for the kernel's tables: so one
    process alone gets a MemoryError before the group is full.
    """
    group = spec.get("group")
    if group is None:
        return None
    said = {"pids": spec["processes"]} if spec.get("processes") else {}
    bounds = dict(said)
    if spec.get("memory_limit"):
        said["memory"] = spec["memory_limit"]
        bounds["memory"] = said["memory"] + processes.mapped_bytes() + THREAD_BYTES + said["memory"] // TABLES
    places = cgroups.known_roots()
    return cgroups.Group(cgroups.prepare(group, bounds, places), said, places)
