"""Confinement: what the kernel lets a process take away from itself for good, and from all it will start. Linux only.

Landlock closes the file system, TCP, signals and abstract sockets; seccomp (``syscalls``) closes the other sockets, the metadata of files
and calls that no cell needs; capabilities and new privileges are given up; limits bound descriptors, processes and file size. Each part is
used where the kernel has it; ``grade`` says which parts those are.

Numbers are the kernel's: include/uapi/linux/landlock.h, seccomp.h, prctl.h.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import resource
import stat
import struct
import sys
from typing import Any, Dict, Iterable, List, Optional, Tuple

from . import syscalls
from .census import tasks_of_machine

PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_DUMPABLE = 4
SECCOMP_MODE_FILTER = 2
LANDLOCK = {"create_ruleset": 444, "add_rule": 445, "restrict_self": 446}  # the same on every architecture

# Rights of LANDLOCK_ACCESS_FS_*, by the interface version that brought them.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
FS_BY_VERSION = {1: (1 << 13) - 1, 2: 1 << 13, 3: TRUNCATE, 5: IOCTL_DEV}
ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # a rule for a file may name no others
NET_BIND_CONNECT_TCP = 0b11  # from version 4
SCOPE_ABSTRACT_UNIX, SCOPE_SIGNAL = 0b01, 0b10  # from version 6

READABLE = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives",
    "/etc/localtime", "/etc/timezone", "/etc/mime.types", "/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/passwd", "/etc/group",
    "/etc/nsswitch.conf", "/etc/hosts", "/etc/os-release", "/etc/fonts",
    "/proc/cpuinfo", "/proc/meminfo", "/proc/loadavg", "/proc/uptime", "/proc/version",
    "/proc/filesystems", "/proc/stat", "/proc/sys/kernel/osrelease", "/proc/sys/vm/overcommit_memory", "/sys/devices/system/cpu",
    "/sys/kernel/mm/transparent_hugepage", "/dev/urandom", "/dev/random", "/dev/zero",
)  # fmt: skip
WRITABLE_DEVICES = ("/dev/null", "/dev/full")

MAX_DESCRIPTORS = 4096
MAX_FILE_BYTES = 16 * 1024**3  # of one file that a cell writes: more than a context, less than most disks
MAX_PROCESSES = 512  # and threads, of a worker with all that it starts: enough for any pool, and no fork bomb
SIBLINGS = 2048  # processes and threads that other runs of the user may come to have: the kernel's limit counts them all

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_supervisor = 0  # the process that forks the others, once it has prepared


class NotConfined(Exception):
    """Confinement was required and a part of it cannot be had here; the text says which."""


def grade() -> Dict[str, bool]:
    """What this kernel offers, by part: ``files``, ``tcp``, ``signals``, ``sockets``, ``privileges``. Changes nothing."""
    version = landlock_version()
    return {
        "files": version >= 1,
        "tcp": version >= 4,
        "signals": version >= 6,
        "sockets": _has_seccomp(),
        "privileges": _libc is not None,
    }


@functools.lru_cache(maxsize=None)
def landlock_version() -> int:
    """The version of the kernel's Landlock interface; 0 where there is none."""
    if _libc is None:
        return 0
    version: int = _libc.syscall(LANDLOCK["create_ruleset"], None, ctypes.c_size_t(0), 1)
    return max(0, version)


def prepare() -> None:
    """Look up what does not change, once, in the process that forks the others."""
    global _supervisor
    _supervisor = os.getpid()
    _readable()
    grade()
    if _has_seccomp():
        _program(False)


def confine(
    *, read: Iterable[str], write: Iterable[str], network: bool, require: bool, processes: int = MAX_PROCESSES, closed: str = ""
) -> Dict[str, bool]:
    """Confine this process, which must have one thread, and everything it will start. There is no way back.

    Args:
        read: files and folders that may be read and executed, besides the system's; ``/`` stands for the root's own file system
            without what is mounted there: the image, in a container.
        write: folders that may also be written.
        network: leave IP sockets and connections open; Unix sockets by path stay closed.
        require: fail when a part is missing.
        processes: how many processes and threads may be added to those of the machine; not for root, whom the kernel exempts.
        closed: a folder in which ``/`` opens nothing: other workers' folders are there.

    Returns:
        the parts that hold, as ``grade`` names them.

    Raises:
        NotConfined: ``require`` is set and a part is missing.
    """
    parts = grade()
    if network:
        parts["tcp"] = parts["sockets"] = False
    missing = [name for name, there in parts.items() if not there and not (network and name in ("tcp", "sockets"))]
    if require and missing:
        raise NotConfined(f"this system cannot confine: {', '.join(missing)}")
    if _libc is None:
        return parts
    _limit(processes)
    _give_up_privileges()
    version = landlock_version()
    if version:
        _landlock(version, read, write, network, closed)
    if _has_seccomp():
        _seccomp(network)
    return parts


def seal() -> None:
    """Close this process to others of its user: to ``ptrace``, its memory, its descriptors. For one that runs no cells.

    Pipes that it was started with get a mode that lets nobody open them: gVisor opens another process's descriptors for all of its user.
    """
    if _libc is not None:
        _libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        for number in (0, 1, 2):
            try:
                if stat.S_ISFIFO(os.fstat(number).st_mode):
                    os.fchmod(number, 0)
            except OSError:
                pass  # closed, or somebody else's


def unseal() -> None:
    """Undo ``seal``, in a process forked from a sealed one: it may look at itself again."""
    if _libc is not None:
        _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


def _limit(processes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for what, most in ((resource.RLIMIT_NOFILE, MAX_DESCRIPTORS), (resource.RLIMIT_FSIZE, MAX_FILE_BYTES)):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    if os.getuid() != 0:
        most = tasks_of_machine() + SIBLINGS + processes
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def _give_up_privileges() -> None:
    assert _libc is not None
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    for capability in range(64):
        if _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # the kernel has no more, or this process none to drop
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    _check(_libc.capset(header, struct.pack("=6I", *[0] * 6)), "capset")


def _landlock(version: int, read: Iterable[str], write: Iterable[str], network: bool, closed: str) -> None:
    handled = sum(rights for since, rights in FS_BY_VERSION.items() if since <= version)
    net = NET_BIND_CONNECT_TCP if version >= 4 and not network else 0
    scoped = SCOPE_SIGNAL | SCOPE_ABSTRACT_UNIX if version >= 6 else 0
    attributes = struct.pack("=QQQ", handled, net, scoped)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = _syscall("create_ruleset", ctypes.c_char_p(attributes), ctypes.c_size_t(len(attributes)), 0)
    reading = (EXECUTE | READ_FILE | READ_DIR) & handled
    try:
        for path, is_folder in _readable():
            _allow(ruleset, path, reading, is_folder)
        for path in ("/proc/self", "/proc/thread-self"):
            _allow(ruleset, path, reading, True)
        for path in read:
            for part in _image(closed) if path == "/" else (path,):
                _allow(ruleset, part, reading)
        for path in WRITABLE_DEVICES:
            _allow(ruleset, path, (READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV) & handled, False)
        for path in write:
            _allow(ruleset, path, handled & ~IOCTL_DEV)
        _syscall("restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int, is_folder: Optional[bool] = None) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not on this system
    try:
        if not (os.path.isdir(path) if is_folder is None else is_folder):
            rights &= ON_FILES
        rule = struct.pack("=Qi", rights, descriptor)
        _syscall("add_rule", ruleset, 1, ctypes.c_char_p(rule), 0)
    finally:
        os.close(descriptor)


@functools.lru_cache(maxsize=None)
def _image(closed: str) -> List[str]:
    """The root's entries, without what is mounted, and without one folder: of those above it the entries take their place."""
    inside = os.path.realpath(closed) + "/" if closed else ""
    found, folders = [], ["/"]
    for folder in folders:
        try:
            paths = [os.path.join(folder, name) for name in os.listdir(folder)]
        except OSError:
            continue  # nor could a cell look into it
        for path in paths:
            real = os.path.realpath(path) + "/"
            if os.path.ismount(path) or (inside and real.startswith(inside)):
                continue
            if not inside.startswith(real):
                found.append(path)
            elif not os.path.islink(path):
                folders.append(path)
    return found


@functools.lru_cache(maxsize=None)
def _readable() -> List[Tuple[str, bool]]:
    """What every worker may read, and whether it is a folder. What lies in another folder of the list is left out: each costs a rule."""
    real = sorted({os.path.realpath(path) for path in (*READABLE, *_python()) if os.path.exists(path)})
    kept: List[Tuple[str, bool]] = []
    for path in real:
        if not any(is_folder and path.startswith(f"{folder}/") for folder, is_folder in kept):
            kept.append((path, os.path.isdir(path)))
    return kept


def _python() -> List[str]:
    """Where this Python and its packages live. A path that would open a home folder or the root as a whole is left out."""
    home = os.path.expanduser("~")
    paths = {sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.path.realpath(sys.executable)), *sys.path}
    paths.add(os.path.dirname(os.path.abspath(__file__)))
    real = {os.path.realpath(path) for path in paths if path and os.path.exists(path)}
    return sorted(path for path in real if path not in ("/", home, os.path.dirname(home)))


@functools.lru_cache(maxsize=None)
def _has_seccomp() -> bool:
    if _libc is None or not syscalls.known():
        return False
    # Where there are filters, one that cannot be read is a bad address. gVisor has them, and no file that says so.
    return bool(_libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, None, 0, 0) < 0 and ctypes.get_errno() == errno.EFAULT)


def _seccomp(network: bool) -> None:
    assert _libc is not None
    _check(_libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(_program(network)[0]), 0, 0), "seccomp")


@functools.lru_cache(maxsize=None)
def _program(network: bool) -> Tuple[bytes, Any]:
    """The filter as the kernel takes it, and the memory that it points to."""
    code = syscalls.build(network, _supervisor)
    buffer = ctypes.create_string_buffer(code, len(code))
    return struct.pack("=H6xQ", len(code) // 8, ctypes.addressof(buffer)), buffer


def _syscall(name: str, *args: Any) -> int:
    assert _libc is not None
    return _check(_libc.syscall(LANDLOCK[name], *args), name)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
