"""Facts of the kernel that matter for running code of others; nothing is changed by asking."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ..guest.confine import landlock_version
from ..types import JSON


def kernel_facts() -> Iterator[tuple[str, str, JSON]]:
    """Name, words and value of each fact."""
    if sys.platform != "linux":
        yield "Landlock", "a facility of Linux; this is another system", None
        return
    abi = landlock_version() or None
    yield "Landlock", f"ABI {abi}" if abi else "not offered by this kernel", abi
    seccomp = _first_line("/proc/sys/kernel/seccomp/actions_avail")
    yield "seccomp", "offered" if seccomp else "not offered by this kernel", bool(seccomp)
    spaces = _first_line("/proc/sys/user/max_user_namespaces")
    yield "user namespaces", {"": "unknown", "0": "not allowed"}.get(spaces, "allowed as far as the kernel says"), spaces not in ("", "0")
    if os.geteuid() == 0:
        yield "user", "root: code that a model writes runs as root, without its capabilities; another user is better", 0


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text("utf-8").partition("\n")[0].strip()
    except OSError:
        return ""
