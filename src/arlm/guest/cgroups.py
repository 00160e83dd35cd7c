"""Control groups: bounds on the memory and the processes of a worker together with all that it starts. Linux, where groups may be made.

A worker makes a group of its own and enters it before code of a cell runs; what it starts is born in it. Landlock closes ``/sys`` to it,
so that it cannot leave. The supervisor removes the group when the worker is dead; what a killed supervisor left is swept up by the next
one. To let a process enter, the kernel waits until every CPU has passed a quiet point: 0.1 ms where another one entered just before, up to
20 ms else. So that is done last, while the worker is connected already.

Files are the kernel's: Documentation/admin-guide/cgroup-v1/memory.rst and pids.rst, cgroup-v2.rst. Of version 2, groups are made where the
controllers are passed on to them: a group that holds processes itself cannot do that, so it is often the one above one's own.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import signal
import sys
import threading
import time
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

PARTS = ("memory", "pids")
PREFIX = "arlm-"
SWEEP_SECONDS = 1.0  # for processes in a group that a dead supervisor left to end
PAUSE_SECONDS = 0.005

# What is written for a limit: (file, value; None for the limit itself, whether the limit fails without it). Without swap, what is over the
# limit is not moved to disk instead. Without oom.group the kernel would end one process and leave the others waiting for it.
Setting = Tuple[str, Optional[str], bool]
SETTINGS: Dict[Tuple[str, int], Tuple[Setting, ...]] = {
    ("memory", 1): (("memory.limit_in_bytes", None, True), ("memory.memsw.limit_in_bytes", None, False)),
    ("memory", 2): (("memory.max", None, True), ("memory.swap.max", "0", False), ("memory.oom.group", "1", False)),
    ("pids", 1): (("pids.max", None, True),),
    ("pids", 2): (("pids.max", None, True),),
}
EVENTS = {
    ("memory", 1): ("memory.oom_control", "oom_kill"),
    ("memory", 2): ("memory.events", "oom_kill"),
    ("pids", 1): ("pids.events", "max"),
    ("pids", 2): ("pids.events", "max"),
}
BOUNDS = {"memory.max": "max", "memory.high": "max", "cpu.max": "max"}  # a group of version 2 with one of these set is not left for another


class Root(NamedTuple):
    """A folder in which groups with a controller can be made, and the version of its interface."""

    folder: str
    version: int


def roots() -> Dict[str, Root]:
    """Where groups can be made that bound ``memory`` and ``pids``; a part that is missing cannot be bounded. Changes nothing."""
    if sys.platform != "linux":
        return {}
    try:
        return find(_read("/proc/self/cgroup"), _read("/proc/self/mountinfo"))
    except OSError:
        return {}


@functools.lru_cache(maxsize=None)
def known_roots() -> Dict[str, Root]:
    """``roots``, as they were when this was first asked for: by the supervisor, for all its workers."""
    return roots()


def find(groups: str, mounts: str) -> Dict[str, Root]:
    """``roots`` from the text of ``/proc/self/cgroup`` and ``/proc/self/mountinfo``."""
    mounted = {name: place for place in _mounts(mounts) for name in place[0]}
    found: Dict[str, Root] = {}
    for line in groups.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            folder = _folder(mounted.get(name), path)
            if folder is None:
                continue
            if name in PARTS and os.access(folder, os.W_OK | os.X_OK):
                found[name] = Root(folder, 1)
            elif not name:
                found.update(_unified(folder, mounted[""][2], [part for part in PARTS if part not in found]))
    return found


def _mounts(text: str) -> Iterator[Tuple[List[str], str, str]]:
    """Names of controllers ("" for version 2), the group that is mounted, and where."""
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, place = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), part) for part in before.split(" ")[3:5])
        if kind == "cgroup":
            yield options.split(","), root, place
        elif kind == "cgroup2":
            yield [""], root, place


def _folder(mount: Optional[Tuple[List[str], str, str]], path: str) -> Optional[str]:
    if mount is None or "/../" in f"{path}/":
        return None  # not mounted, or outside of what is
    _, root, place = mount
    root = root.rstrip("/")
    if f"{path}/".startswith(f"{root}/"):
        return (place + path[len(root) :]).rstrip("/")
    return None


def _unified(own: str, top: str, parts: List[str]) -> Dict[str, Root]:
    """The nearest folder that can bound most of these; all have to be in one, because a process is in one group of version 2 only."""
    for wanted in (parts, *([part] for part in parts)):
        folder = own
        while wanted:
            if _passes_on(folder, wanted):
                return {part: Root(folder, 2) for part in wanted}
            if folder == top or _is_bounded(folder):
                break
            folder = os.path.dirname(folder)
    return {}


def _passes_on(folder: str, parts: Iterable[str]) -> bool:
    try:
        if not all(os.access(os.path.join(folder, name), os.W_OK) for name in ("", "cgroup.procs")):
            return False
        if set(parts) <= set(_read(f"{folder}/cgroup.subtree_control").split()):
            return True
        ours = set(parts) <= set(_read(f"{folder}/cgroup.controllers").split()) and os.access(f"{folder}/cgroup.subtree_control", os.W_OK)
        return ours and not _read(f"{folder}/cgroup.procs")
    except OSError:
        return False


def _is_bounded(folder: str) -> bool:
    """Whether this group has limits that a process put beside it would escape."""
    for name, unbounded in BOUNDS.items():
        try:
            if _read(f"{folder}/{name}").split()[:1] != [unbounded]:
                return True
        except OSError:
            continue
    return False


def name(number: int) -> str:
    """A group's name, for the caller's worker of this number."""
    return f"{_prefix()}{os.getpid()}-{_started(os.getpid())}-{number}"


def _prefix() -> str:
    """Two containers may share groups and not process numbers; their number spaces differ."""
    try:
        return f"{PREFIX}{os.stat('/proc/self/ns/pid').st_ino}-"
    except OSError:
        return f"{PREFIX}0-"


def prepare(name: str, bounds: Dict[str, int], places: Dict[str, Root]) -> Dict[str, str]:
    """Make a group, which the caller will enter (``Group``).

    Args:
        name: the group's.
        bounds: the limits by part: ``memory`` in bytes, ``pids`` in processes and threads.
        places: see ``roots``.

    Returns:
        the folders of the parts that the group bounds. What this system refuses is not among them.
    """
    folders: Dict[str, List[str]] = {}
    for part in bounds:
        if part in places:
            folders.setdefault(os.path.join(places[part].folder, name), []).append(part)
    made: Dict[str, str] = {}
    for folder, parts in folders.items():
        try:
            make(folder, {part: (bounds[part], places[part].version) for part in parts})
        except OSError:
            _remove(folder)
        else:
            made.update(dict.fromkeys(parts, folder))
    return made


def make(folder: str, limits: Dict[str, Tuple[int, int]]) -> None:
    """Make one group. ``limits``: by part, the limit and the interface's version. Raises OSError."""
    os.makedirs(folder, exist_ok=True)
    missing = [part for part, (_, version) in limits.items() if version == 2 and not os.path.exists(f"{folder}/{part}.max")]
    if missing:
        _write(os.path.join(os.path.dirname(folder), "cgroup.subtree_control"), " ".join(f"+{part}" for part in missing))
    for part, (limit, version) in limits.items():
        for file, value, needed in SETTINGS[part, version]:
            try:
                _write(f"{folder}/{file}", str(limit) if value is None else value)
            except OSError:
                if needed:
                    raise


def hits(folder: str, part: str, version: int) -> int:
    """How often a limit was hit: processes killed for memory, forks refused. 0 where the group cannot tell."""
    file, key = EVENTS[part, version]
    try:
        return _value(_read(f"{folder}/{file}"), key)
    except OSError:
        return 0


def _value(text: str, key: str) -> int:
    for line in text.splitlines():
        word, _, number = line.partition(" ")
        if word == key:
            return int(number)
    return 0


class Group:
    """A worker's own group, after Landlock has closed the files of it: what is needed of them is opened before.

    Args:
        made: see ``prepare``.
        bounds: the limits as the user named them.
        places: see ``roots``.
    """

    def __init__(self, made: Dict[str, str], bounds: Dict[str, int], places: Dict[str, Root]) -> None:
        self._bounds = bounds
        self._seen = dict.fromkeys(made, 0)
        self._entering: Optional[threading.Thread] = None
        self._bounds_memory = "memory" in made
        self._doors = list(_open((f"{folder}/cgroup.procs" for folder in sorted(set(made.values()))), os.O_WRONLY))
        self._events: List[Tuple[str, str, int]] = []
        for part, folder in made.items():
            file, key = EVENTS[part, places[part].version]
            self._events += [(part, key, number) for number in _open([f"{folder}/{file}"], os.O_RDONLY)]

    def begin_to_enter(self) -> None:
        """Enter, with all threads of the process: now, if what is loaded counts, else on a thread, as it may take a while."""
        if self._bounds_memory:
            self._enter()
            return
        self._entering = threading.Thread(target=self._enter, daemon=True)
        self._entering.start()

    def _enter(self) -> None:
        for number in self._doors:
            try:
                os.write(number, b"0")
            except OSError:
                pass  # its limits do not hold then; those per process do
            os.close(number)

    def wait(self) -> None:
        """Return when it has been entered: before code of a cell, which could else leave processes outside."""
        if self._entering is not None:
            self._entering.join()
            self._entering = None

    def remarks(self) -> List[str]:
        """Which limits were hit since the last time, in words."""
        said: List[str] = []
        for part, key, number in self._events:
            try:
                hits = _value(os.pread(number, 4096, 0).decode(), key)
            except (OSError, ValueError):
                continue  # a cell may close what it finds open
            if hits > self._seen[part]:
                self._seen[part] = hits
                said.append(f"{exceeded(part, self._bounds[part])}; {HAPPENED[part]}")
        return said


HAPPENED = {"memory": "the system ended a process that this REPL had started", "pids": "the system started no more"}


def exceeded(part: str, limit: int) -> str:
    """The words for a limit that was hit."""
    if part == "memory":
        return f"memory_limit of {limit:,} bytes was exceeded"
    return f"the limit of {limit:,} processes and threads was reached"


def was_killed_for_memory(name: str, places: Dict[str, Root]) -> bool:
    """Whether the kernel ended a process of this group because of its memory."""
    place = places.get("memory")
    return place is not None and hits(os.path.join(place.folder, name), "memory", place.version) > 0


def kill(name: str, places: Dict[str, Root]) -> None:
    """Kill all that is in a group, which starts nothing more. What escapes this is found by the supervisor's own hunt."""
    for place in set(places.values()):
        folder = os.path.join(place.folder, name)
        for file, value in (("cgroup.kill", "1"), ("pids.max", "0")):
            try:
                _write(f"{folder}/{file}", value)
            except OSError:
                continue  # version 1 has no cgroup.kill; the memory group no number of processes
        _kill_members(folder)


def is_empty(name: str, places: Dict[str, Root]) -> bool:
    """Whether nothing in a group lives, or there is no group."""
    for place in set(places.values()):
        try:
            if _read(f"{place.folder}/{name}/cgroup.procs"):
                return False
        except OSError:
            continue
    return True


def remove(name: str, places: Dict[str, Root]) -> bool:
    """Remove a group, whose processes are dead; False when one is still ending."""
    left = [place for place in set(places.values()) if not _remove(os.path.join(place.folder, name))]
    return not left


def _remove(folder: str) -> bool:
    try:
        for below, _, _ in os.walk(folder, topdown=False):
            os.rmdir(below)
    except OSError as error:
        return error.errno not in (errno.EBUSY, errno.ENOTEMPTY)
    return True


def sweep(places: Dict[str, Root]) -> None:
    """Kill and remove what supervisors that were killed have left; returns after SWEEP_SECONDS at most."""
    deadline = time.monotonic() + SWEEP_SECONDS
    left = {entry for place in set(places.values()) for entry in abandoned(place.folder)}
    while left:
        for folder in left:
            _kill_members(folder)
        left = {folder for folder in left if not _remove(folder)}
        if time.monotonic() > deadline:
            return
        if left:
            time.sleep(PAUSE_SECONDS)


def abandoned(folder: str) -> Iterator[str]:
    """The groups in a folder that processes made which are no more."""
    prefix = _prefix()
    try:
        entries = os.listdir(folder)
    except OSError:
        return
    for entry in entries:
        pid, _, rest = entry[len(prefix) :].partition("-")
        if entry.startswith(prefix) and pid.isdigit() and _started(int(pid)) != rest.partition("-")[0]:
            yield os.path.join(folder, entry)


def _kill_members(folder: str) -> None:
    for below, _, _ in os.walk(folder):
        try:
            members = _read(f"{below}/cgroup.procs").split()
        except OSError:
            continue
        for pid in members:
            try:
                if pid != "0":  # of another number space
                    os.kill(int(pid), signal.SIGKILL)
            except OSError:
                continue


def _started(pid: int) -> str:
    """When a process that is alive began, in the kernel's ticks; with its number that names it for good."""
    try:
        fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


def _open(paths: Iterable[str], how: int) -> Iterator[int]:
    """Descriptors of those that can be opened."""
    for path in paths:
        try:
            yield os.open(path, how | os.O_CLOEXEC)
        except OSError:
            continue


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _write(path: str, value: str) -> None:
    number = os.open(path, os.O_WRONLY)
    try:
        os.write(number, value.encode())
    finally:
        os.close(number)
