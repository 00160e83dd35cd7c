"""Process trees: tie them to their parent, find them, kill them whole.

A worker is a *child subreaper* (Linux): whatever it starts stays below it, double forks and new sessions included, so that a walk over
parents finds the tree. The supervisor is one too: what a dead worker leaves behind becomes the supervisor's child, and is killed there.
Without Linux the walk still finds everything that did not detach itself.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Dict, Iterable, List, Optional, Set, Tuple

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
KILL_ROUNDS = 100  # a fork bomb is stopped level by level; each round stops every process found so far

# A walk over all processes costs 15 us each; with these files (CONFIG_PROC_CHILDREN) a tree costs what it holds.
_HAS_CHILDREN_FILES = os.path.exists(f"/proc/self/task/{os.getpid()}/children")

_libc: Optional[ctypes.CDLL] = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def become_subreaper() -> None:
    """Orphans below this process become its children. Linux only; elsewhere nothing happens."""
    if _libc is not None:
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends. Linux only.

    The caller's parent must be single-threaded: the kernel watches the thread that forked.
    """
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def children_of(pid: int) -> List[int]:
    """The processes that ``pid`` started and that are still there, those that have ended but were not waited for included."""
    if not _HAS_CHILDREN_FILES:
        return _table().get(pid, [])
    found: List[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    except OSError:
        pass  # it, or a thread of it, has ended meanwhile
    return found


def descendants(roots: Iterable[int]) -> Set[int]:
    """The processes below ``roots``, without the roots."""
    table = None if _HAS_CHILDREN_FILES else _table()
    found: Set[int] = set()
    todo = list(roots)
    while todo:
        pid = todo.pop()
        for child in children_of(pid) if table is None else table.get(pid, ()):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


def _table() -> Dict[int, List[int]]:
    """Every process's children: one walk over all processes, for systems that cannot tell of one."""
    table: Dict[int, List[int]] = {}
    for pid, parent in _parents():
        table.setdefault(parent, []).append(pid)
    return table


def _parents() -> Iterable[Tuple[int, int]]:
    if os.path.isdir("/proc/self"):
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/stat", "rb") as file:
                        fields = file.read().rpartition(b")")[2].split()
                except OSError:
                    continue  # ended meanwhile
                yield int(name), int(fields[1])
        return
    import subprocess  # only here: a system without /proc

    listing = subprocess.run(["/bin/ps", "-axo", "pid=,ppid="], capture_output=True, check=False).stdout
    for line in listing.splitlines():
        pid, parent = line.split()
        yield int(pid), int(parent)


def kill_trees(roots: Iterable[int]) -> None:
    """Kill processes and all below them: stop each level so that nothing new is started, then kill everything found.

    Returns when the signals are sent; the processes are gone when they have been waited for.
    """
    roots = set(roots)
    stopped: Set[int] = set()
    found = set(roots)
    for _ in range(KILL_ROUNDS):
        for pid in found - stopped:
            _signal(pid, signal.SIGSTOP)
        stopped |= found
        found = roots | descendants(roots)
        if found <= stopped:
            break
    for pid in stopped | found:
        _signal(pid, signal.SIGKILL)


def cpu_seconds(roots: Iterable[int]) -> float:
    """CPU time used by processes and all alive below them; 0.0 where the system does not say."""
    roots = set(roots)
    ticks = 0
    for pid in roots | descendants(roots):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        ticks += sum(int(field) for field in fields[11:15])  # utime, stime, and those of waited-for children
    return ticks / os.sysconf("SC_CLK_TCK")


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass
