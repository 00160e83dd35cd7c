"""Process trees: tie them to their parent, find them, kill them whole.

A worker is a *child subreaper* (Linux): whatever it starts stays below it, double forks and new sessions included, so that a walk over
parents finds the tree. The supervisor is one too: what a dead worker leaves behind becomes the supervisor's child, and is killed there.
Without Linux the walk still finds everything that did not detach itself.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from typing import Callable, Dict, Iterable, List, Optional, Set, Tuple

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CLOSE_RANGE = 436  # the system call; the same on every architecture
MAX_DESCRIPTORS = 65536  # of a supervisor: far more than it has use for, few enough to be closed one by one
ADOPTION_SECONDS = 0.0002  # between two looks at the parent; a process that ends takes about as long
KILL_SECONDS = 1.0  # how long a tree that goes on forking is chased by ``kill_trees``
COUNT_SECONDS = 0.02  # how long ``cpu_seconds`` looks; some 500 processes
ORPHANS_COME = sys.platform == "linux"  # to the process that called ``become_subreaper``

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


def await_adoption(parent: int) -> None:
    """Return once ``parent`` has ended and this process has another one, which takes it in as a subreaper."""
    while os.getppid() == parent:
        time.sleep(ADOPTION_SECONDS)


def let_go(keep: Set[int]) -> None:
    """In a fresh fork: close what belongs to others, all but ``keep``, and point descriptors 0, 1 and 2 at nothing."""
    low = 3
    for number in sorted(number for number in keep if number > 2):
        _close_range(low, number - 1)
        low = number + 1
    _close_range(low, MAX_DESCRIPTORS)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    if null > 2:
        os.close(null)


def _close_range(first: int, last: int) -> None:
    # Python's own closerange is a loop where it was built for an old C library.
    if first <= last and (_libc is None or _libc.syscall(CLOSE_RANGE, first, last, 0) != 0):
        os.closerange(first, last + 1)


def open_files() -> None:
    """Allow this process as many descriptors as it may have: each worker costs its supervisor one, or two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def mapped_bytes() -> int:
    """The address space in use; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


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


def descendants(roots: Iterable[int], *, dead: bool = True, seconds: float = float("inf")) -> Set[int]:
    """The processes below ``roots``, without the roots.

    Args:
        dead: also those that have ended and were not waited for. A fork chain leaves thousands, under which nothing can be.
        seconds: how long to look; what was found by then is the answer.
    """
    deadline = time.monotonic() + seconds
    table = None if _HAS_CHILDREN_FILES else _table()
    found: Set[int] = set()
    todo = list(roots)
    while todo and time.monotonic() < deadline:
        pid = todo.pop()
        for child in children_of(pid) if table is None else table.get(pid, ()):
            if child not in found and time.monotonic() < deadline and (dead or not is_dead(child)):
                found.add(child)
                todo.append(child)
    return found


def is_dead(pid: int) -> bool:
    """Whether a process has ended, waited for or not. One whose first thread has ended and whose others live is not dead."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return os.path.isdir("/proc/self")
    return fields[0] in (b"Z", b"X") and int(fields[17]) <= 1  # state, num_threads


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

    Returns when the signals are sent, after KILL_SECONDS at most; the processes are gone when they have been waited for.
    """
    roots = set(roots)
    stopped: Set[int] = set()
    deadline = time.monotonic() + KILL_SECONDS
    while True:
        found = {pid for pid in roots if not is_dead(pid)} | descendants(roots, dead=False)
        if found <= stopped or time.monotonic() > deadline:
            break
        for pid in found - stopped:
            _signal(pid, signal.SIGSTOP)
        stopped = found  # not those of earlier rounds: the number of one that ended may be somebody else's by now
    for pid in found:
        _signal(pid, signal.SIGKILL)


def kill(pid: int) -> None:
    """Kill a process that the caller has not waited for yet."""
    _signal(pid, signal.SIGKILL)


def kill_own(spare: Callable[[], Iterable[int]], seconds: float) -> bool:
    """One round of killing the caller's children and what is below them, but not those to spare and what is below those.

    The caller is single-threaded, and has just waited for every child that had ended. Whatever loses its parent becomes the caller's child
    (``become_subreaper``), so that rounds end: when no child but the spared is left, nothing can be below one.

    Args:
        spare: says which are spared; asked after the children have been listed, because meanwhile there may be new ones.
        seconds: how long the round may look for what is below; the children themselves are killed in any case.

    Returns:
        whether there was anything to kill, so that another round is due.
    """
    children = set(children_of(os.getpid()))
    children.difference_update(spare())
    for pid in children:
        _signal(pid, signal.SIGKILL)
    for pid in descendants(children, dead=False, seconds=seconds) if children else ():
        _signal(pid, signal.SIGKILL)
    return bool(children)


def cpu_seconds(roots: Iterable[int]) -> float:
    """CPU time used by processes and those below them that are found in COUNT_SECONDS; 0.0 where the system does not say."""
    roots = set(roots)
    ticks = 0
    for pid in roots | descendants(roots, seconds=COUNT_SECONDS):
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
