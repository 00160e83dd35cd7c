"""Facts of the kernel that matter for running code of others; nothing is changed by asking."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ..types import JSON

LANDLOCK_CREATE_RULESET = 444  # the system call's number, the same on every architecture
LANDLOCK_VERSION = 1  # flag: tell the ABI version, make nothing


def kernel_facts() -> Iterator[tuple[str, str, JSON]]:
    """Name, words and value of each fact."""
    if sys.platform != "linux":
        yield "Landlock", "a facility of Linux; this is another system", None
        return
    abi = landlock_abi()
    yield "Landlock", f"ABI {abi}" if abi else "not offered by this kernel", abi
    seccomp = _first_line("/proc/sys/kernel/seccomp/actions_avail")
    yield "seccomp", "offered" if seccomp else "not offered by this kernel", bool(seccomp)
    spaces = _first_line("/proc/sys/user/max_user_namespaces")
    yield "user namespaces", {"": "unknown", "0": "not allowed"}.get(spaces, "allowed as far as the kernel says"), spaces not in ("", "0")
    if os.geteuid() == 0:
        yield "user", "root: code that a model writes runs as root; use another user", 0


def landlock_abi() -> int | None:
    """The version of Landlock's interface, or None where there is none."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        version = int(libc.syscall(ctypes.c_long(LANDLOCK_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(LANDLOCK_VERSION)))
    except (AttributeError, OSError):
        return None
    return version if version > 0 else None


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text("utf-8").partition("\n")[0].strip()
    except OSError:
        return ""
