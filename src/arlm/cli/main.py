"""The ``arlm`` command."""

from __future__ import annotations

import gc
import sys

from .._version import __version__

COLLECT_AT = (50_000, 20, 20)  # a fan-out keeps thousands of objects alive for seconds: a fifth of its CPU went into looking for garbage


def main() -> int:
    """Run the command line of this process; returns its exit code. `arlm --version` imports nothing for it."""
    words = sys.argv[1:]
    if words == ["--version"]:
        print(f"arlm {__version__}")
        return 0
    from .exits import Interrupted, fail
    from .signals import signals

    signals.install()
    gc.set_threshold(*COLLECT_AT)
    try:
        from .app import invoke

        return invoke(words)
    except Interrupted as error:  # while it was being imported, or on the way out
        return fail(error, as_json="--json" in words)
