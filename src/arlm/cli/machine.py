"""What this system has to keep a cell's code in: each part, what it closes, and what to do where it is missing."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..guest import cgroups
from ..guest.confine import MAX_PROCESSES, grade, landlock_version
from ..guest.syscalls import AUDIT_ARCH
from ..types import JSON

Grade = Literal["full", "walls", "partial", "none"]
GRADES: Mapping[Grade, str] = {
    "full": "closed to cells, as docs/security.md says, and bounded as a whole",
    "walls": "closed to cells, as docs/security.md says; not all is bounded for a worker as a whole, see above",
    "partial": "this system leaves open: {}; use inputs and models that you trust (docs/security.md)",
    "none": "nothing is closed: cells may do what you may; use inputs and models that you trust, or a container (docs/security.md)",
}
LANDLOCK = {
    1: ("files", "5.13"),
    4: ("TCP", "6.7"),
    6: ("signals and abstract sockets", "6.12"),
}
TRIED = {"memory": 1 << 30, "pids": MAX_PROCESSES}
TRY_SECONDS = 5.0  # for a process to enter a group, and again for the group to be removed; each takes some 20 ms
ENTER = "import sys; open(sys.argv[1] + '/cgroup.procs', 'w').write('0')"
NO_GROUP = "no control group can be made here"
GROUP_ADVICE = "start arlm by `systemd-run --user --scope`, or in a container that has a limit itself"
ELSEWHERE = "arlm confines on Linux; on this system use a container for what you do not trust"


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """How the system is asked; tests ask another one.

    Attributes:
        system, machine: as ``sys.platform`` and ``platform.machine()`` name them.
        landlock: the version of its interface; 0 for none.
        parts: see ``confine.grade``.
        groups: for ``memory`` and ``pids``, where a group was made for a try; what is missing could not be made.
        uid: whose processes cells are.
        line: the first line of a file; empty where there is none.
    """

    system: str = sys.platform
    machine: str = field(default_factory=platform.machine)
    landlock: Callable[[], int] = landlock_version
    parts: Callable[[], Mapping[str, bool]] = grade
    groups: Callable[[], Mapping[str, cgroups.Root]] = field(default_factory=lambda: try_groups)
    uid: Callable[[], int] = os.geteuid
    line: Callable[[str], str] = field(default_factory=lambda: _first_line)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One means of keeping code in.

    Attributes:
        name: what it is called.
        status: ``"missing"`` where something would be better.
        text: what it does here, or what to do.
        value: the same for programs.
    """

    name: str
    status: Literal["ok", "missing", "info"]
    text: str
    value: JSON


def parts_of(system: System) -> Iterator[Part]:
    """Every part, present or not."""
    if system.system != "linux":
        for name in ("Landlock", "seccomp", "no_new_privs", "memory group", "process group"):
            yield Part(name=name, status="missing", text=f"a facility of Linux; {ELSEWHERE}", value=None)
        return
    parts, groups, uid = system.parts(), system.groups(), system.uid()
    yield _landlock(system.landlock())
    yield _seccomp(system, there=parts["sockets"])
    yield Part(name="no_new_privs", status="ok", text="no cell gains rights by set-user-id programs; it has no capabilities", value=True)
    yield _memory(groups.get("memory"))
    yield _processes(groups.get("pids"), is_root=uid == 0)
    spaces = system.line("/proc/sys/user/max_user_namespaces")
    words = {"": "unknown", "0": "not allowed"}.get(spaces, "allowed as far as the kernel says; closed to cells by seccomp")
    yield Part(name="user namespaces", status="info", text=words, value=spaces not in ("", "0"))
    if uid == 0:
        text = "root: code that a model writes runs as root, without its capabilities; run arlm as another user"
        yield Part(name="user", status="missing", text=text, value=0)
    else:
        yield Part(name="user", status="ok", text=f"uid {uid}, not root", value=uid)


def _landlock(version: int) -> Part:
    if version == 0:
        text = "not offered: cells read and write what you may. Linux 5.13 or later has it; the boot parameter `lsm=` must name landlock"
        return Part(name="Landlock", status="missing", text=text, value=None)
    closed = [what for since, (what, _) in LANDLOCK.items() if since <= version]
    newer = [f"{what} (Linux {kernel})" for since, (what, kernel) in LANDLOCK.items() if since > version]
    text = f"ABI {version}, closes {', '.join(closed)}"
    if newer:
        text += f"; a newer kernel also closes {', '.join(newer)}"
    return Part(name="Landlock", status="missing" if newer else "ok", text=text, value=version)


def _seccomp(system: System, *, there: bool) -> Part:
    if there:
        return Part(name="seccomp", status="ok", text="closes sockets, metadata of files, calls that reach other processes", value=True)
    if system.machine not in AUDIT_ARCH:
        text = f"arlm has a filter for {' and '.join(AUDIT_ARCH)}, not for {system.machine}"
    else:
        text = "not offered by this kernel (CONFIG_SECCOMP_FILTER)"
    return Part(name="seccomp", status="missing", text=f"{text}: cells may use UDP, raw and Unix sockets", value=False)


def _memory(root: cgroups.Root | None) -> Part:
    if root is None:
        text = f"{NO_GROUP}: memory_limit holds for each process of a worker, not for all of them together; {GROUP_ADVICE}"
        return Part(name="memory group", status="missing", text=text, value=None)
    text = f"version {root.version}, below {root.folder}: memory_limit holds for a worker with all that it starts"
    return Part(name="memory group", status="ok", text=text, value=root.version)


def _processes(root: cgroups.Root | None, *, is_root: bool) -> Part:
    if root is not None:
        text = f"version {root.version}, below {root.folder}: at most {MAX_PROCESSES} processes and threads a worker (option `processes`)"
        return Part(name="process group", status="ok", text=text, value=root.version)
    text = f"{NO_GROUP}: a worker with more than {MAX_PROCESSES} processes and threads is found by counting, and killed"
    text += "; a fork bomb of root's may outrun that: run arlm as another user, or in a container with a limit" if is_root else ""
    return Part(name="process group", status="missing", text=text, value=None)


def grade_of(system: System) -> tuple[Grade, str]:
    """All parts in one word, and what it means."""
    closed = system.parts()
    left = [name for name, there in closed.items() if not there]
    if left:
        verdict: Grade = "none" if not any(there for name, there in closed.items() if name != "privileges") else "partial"
        return verdict, GRADES[verdict].format(", ".join(left))
    verdict = "full" if set(cgroups.PARTS) <= set(system.groups()) else "walls"
    return verdict, GRADES[verdict]


def try_groups() -> dict[str, cgroups.Root]:
    """Where groups can be made: each is made, given a limit, entered by a process that ends, and removed."""
    worked = {}
    for part, root in cgroups.roots().items():
        name = cgroups.name(0)
        if made := cgroups.prepare(name, {part: TRIED[part]}, {part: root}):
            if _can_be_entered(made[part]):
                worked[part] = root
            deadline = time.monotonic() + TRY_SECONDS
            while not cgroups.remove(name, {part: root}) and time.monotonic() < deadline:
                time.sleep(cgroups.PAUSE_SECONDS)  # the process is being taken out
    return worked


def _can_be_entered(folder: str) -> bool:
    try:
        entering = [sys.executable, "-I", "-S", "-c", ENTER, folder]
        return subprocess.run(entering, stderr=subprocess.DEVNULL, check=False, timeout=TRY_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text("utf-8").partition("\n")[0].strip()
    except OSError:
        return ""
