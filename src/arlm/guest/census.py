"""The number of processes and threads of each worker, looked at now and then by the supervisor. Linux only.

This bounds fork bombs where no group does (``cgroups``): root is exempt from the kernel's own limit per user, and for others that counts
the workers of all runs together. A worker that has too many is killed whole, within a second, instead of being refused one more. While
nothing grows, a look costs one short read.
"""

from __future__ import annotations

import collections
import os
import signal
import time
from typing import Deque, Dict, Set

from . import processes

LOOK_SECONDS = 0.2  # between two looks: a bomb can start some hundred processes in it
STEP_SECONDS = 0.005  # of one step of a look
HALT_SECONDS = 0.3  # to stop a tree: some thousands of processes
MANY = 64  # processes and threads below which a tree is killed without ado


class Census:
    """What was counted so far."""

    def __init__(self) -> None:
        self._at_rest = 0  # tasks of the whole machine at the last look that went through the workers, or fewer
        self._todo: Deque[int] = collections.deque()
        self._next = 0.0

    @property
    def patience(self) -> float:
        """Seconds until ``look`` is worth a call."""
        return 0.0 if self._todo else max(0.0, self._next - time.monotonic())

    def look(self, limits: Dict[int, int]) -> Dict[int, int]:
        """One step of looking.

        Args:
            limits: how many processes and threads a worker may have, by its process number.

        Returns:
            those that have more: as many as were seen.
        """
        now = time.monotonic()
        if not self._todo:
            if now < self._next or not limits:
                return {}
            self._next = now + LOOK_SECONDS
            total = tasks_of_machine()
            self._at_rest = min(self._at_rest, total)
            if total - self._at_rest < min(limits.values()) // 2:
                return {}
            self._at_rest = total
            self._todo.extend(limits)
        over: Dict[int, int] = {}
        while self._todo and time.monotonic() < now + STEP_SECONDS:
            pid = self._todo.popleft()
            if pid in limits and (found := tasks_of(pid, limits[pid])) > limits[pid]:
                over[pid] = found
        return over


def tasks_of_machine() -> int:
    """Processes and threads of all users; 0 where the system does not say."""
    try:
        with open("/proc/loadavg", "rb") as file:
            return int(file.read().split()[3].partition(b"/")[2])
    except (OSError, ValueError, IndexError):
        return 0


def tasks_of(root: int, enough: int) -> int:
    """Processes and threads of a process and all below it, those that have ended and were not waited for included.

    Args:
        enough: counting ends above this number.
    """
    todo = [root]
    seen = {root}
    count = 0
    while todo and count <= enough:
        pid = todo.pop()
        count += _threads(pid)
        new = [child for child in processes.children_of(pid) if child not in seen]
        seen.update(new)
        todo += new
    return count + len(todo)


def halt(root: int) -> None:
    """Stop a process and all below it, then kill them; after HALT_SECONDS of CPU time it is left as it is.

    Each is stopped as soon as it is found: what is stopped takes no turns from the caller, starts nothing, and leaves no place to others
    under the kernel's limit. Killing alone would be a race between the many that fork and the one that looks. A child that one of them was
    making meanwhile may be left; it comes to the supervisor as an orphan, and is hunted there.
    """
    deadline = time.process_time() + HALT_SECONDS
    stopped: Set[int] = set()
    seen: Set[int] = set()
    news = True
    while news and time.process_time() < deadline:
        news = False
        seen = {root}
        todo = [root]
        while todo and time.process_time() < deadline:
            pid = todo.pop()
            if pid not in stopped:
                news = True
                stopped.add(pid)
                _send(pid, signal.SIGSTOP)
            new = [child for child in processes.children_of(pid) if child not in seen]
            seen.update(new)
            todo += new
    for pid in seen:
        _send(pid, signal.SIGKILL)


def _threads(pid: int) -> int:
    try:
        return max(1, len(os.listdir(f"/proc/{pid}/task")))
    except OSError:
        return 0


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        pass
