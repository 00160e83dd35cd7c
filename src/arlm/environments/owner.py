"""Whose a container or a sandbox is: a label that names this very process, and whether the process that wrote one is gone.

What outlives a killed host carries the host's label, and another process may then ask whether that host is dead. A number alone does not
tell: it is used again, other number spaces have the same ones, other machines too. So the label also has when the process began, its
namespaces, the boot and the machine. All of these are in numbers or hashed: a label is seen by engines and clouds, and the machine's id is
meant to be seen by nobody (machine-id(5)).
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time

LINUX = sys.platform == "linux"
PROC = "/proc"
MACHINE_ID = "/etc/machine-id"
UNKNOWN = "0"
LONGEST = 63  # characters: what the strictest keepers of labels (Kubernetes) take, of the letters they take
FORM = re.compile(r"a1\.([0-9a-f]{12})\.([0-9a-f]{16}|0)\.([0-9a-f]{10}|0)\.([1-9][0-9]{0,6})\.(0|[1-9][0-9]{0,10})")
MULTICAST = 1 << 40  # the bit of a network card's number that tells one made up by chance
STATE, THREADS, START = 0, 17, 19  # of /proc/PID/stat (proc_pid_stat(5)), counted from the state, the first after the name


def owner() -> str:
    """The label of this process: at most 63 characters, of ``a-z``, ``0-9`` and ``.``.

    Made anew at each call, in less than a millisecond, so that a fork has its own. Raises nothing: what the system does not tell is ``0``.
    """
    return ".".join(("a1", _machine(), _boot(), _spaces(), str(os.getpid()), str(_start_of(_stat("self")))))


def is_owner(label: object) -> bool:
    """Whether something is a label in the form that ``owner`` gives one. Raises nothing."""
    return _found(label) is not None


def is_dead(owner: object, *, same_machine: bool) -> bool:
    """Whether the process that wrote a label is gone for certain. Raises nothing, whatever is given: anybody may write a label.

    Args:
        owner: the label.
        same_machine: what carries it was found on an engine of this very machine, such as one behind a Unix socket. Then a label of
            another boot is a dead process's. Else it is not, as copies of a virtual machine have one name and one id.

    Returns:
        True of a process of this boot and of this process's namespaces that has ended, waited for or not, its number used again or not.
        False where that cannot be told: another machine or namespace, no label of ours, a process that hides.

    Copies of a virtual machine that were made while it ran are one boot of one machine, and taken for one.
    """
    found = _found(owner)
    if found is None or found[1] != _machine():
        return False
    boot, spaces = _boot(), _spaces()
    if found[2] != boot:
        return same_machine and UNKNOWN not in (found[2], boot)
    return found[3] == spaces and _is_one_space(boot, spaces, same_machine) and _is_gone(int(found[4]), int(found[5]))


def _found(label: object) -> re.Match[str] | None:
    return FORM.fullmatch(label) if isinstance(label, str) and len(label) <= LONGEST else None


def _is_one_space(boot: str, spaces: str, same_machine: bool) -> bool:
    """Whether a label with this boot and these namespaces, which are ours, has its number from where we have ours."""
    if LINUX:
        return UNKNOWN not in (boot, spaces)
    return same_machine or bool(_card())


def _is_gone(pid: int, start: int) -> bool:
    """Whether the process with this number that began then has ended. /proc may hide one that lives (hidepid); a signal finds it."""
    if start > _now():
        return False  # not of this machine's life so far: of a copy of it, or invented
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # somebody else's: it is there
    fields = _stat(pid) if _is_own_proc() else []
    if not fields:
        return False
    ended = fields[STATE] in ("Z", "X") and int(fields[THREADS]) <= 1  # a process may outlive its first thread
    return ended or (start > 0 and _start_of(fields) != start)


def _is_own_proc() -> bool:
    """Whether /proc counts processes as this one does: it may be mounted for the namespace above."""
    numbers = re.search(r"^NSpid:\s*(.*)$", _read(f"{PROC}/self/status"), re.MULTILINE)
    return numbers is not None and numbers[1] == str(os.getpid())


def _stat(pid: int | str) -> list[str]:
    """The fields after the name, which may have anything in it; empty where there are none."""
    fields = _read(f"{PROC}/{pid}/stat").rpartition(")")[2].split()
    return fields if len(fields) > START else []


def _start_of(fields: list[str]) -> int:
    """When it began, in the kernel's ticks since the boot; 0: unknown."""
    return int(fields[START]) if fields else 0


def _now() -> int:
    """The same of this moment; 0 where the system does not say, and no label has a time."""
    if sys.platform != "linux":
        return 0
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def _machine() -> str:
    return _hashed("machine", os.uname().nodename, _read(MACHINE_ID).strip(), _card())[:12]


def _boot() -> str:
    number = _read(f"{PROC}/sys/kernel/random/boot_id").strip()
    return _hashed("boot", number)[:16] if number else UNKNOWN


def _spaces() -> str:
    """Of numbers, and of clocks: a process sees the times that others began shifted by its own."""
    numbers = [_space("pid"), _space("time")]
    return _hashed("spaces", *numbers)[:10] if numbers[0] else UNKNOWN


def _space(kind: str) -> str:
    try:
        return str(os.stat(f"{PROC}/self/ns/{kind}").st_ino)
    except OSError:
        return ""


def _card() -> str:
    """The number of a network card, where there is no machine-id; empty where there is none, or on Linux."""
    if LINUX:
        return ""
    import uuid

    number = uuid.getnode()
    return "" if number & MULTICAST else f"{number:x}"


def _hashed(*words: str) -> str:
    return hashlib.sha256("\0".join(("arlm owner", *words)).encode("utf-8", "surrogateescape")).hexdigest()


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
