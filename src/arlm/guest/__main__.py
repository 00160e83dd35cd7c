"""``python -I <this folder>``: the supervisor, with the folder loaded as a package of its own, so that no path is added to ``sys.path``."""

from __future__ import annotations

import importlib.util
import os
import sys

OLDEST = (3, 9)


def _start() -> None:
    if sys.version_info < OLDEST:
        sys.exit("arlm needs Python 3.9 or later where code runs, and this is %d.%d" % sys.version_info[:2])
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
    spec = importlib.util.spec_from_file_location("arlm_guest", os.path.join(here, "__init__.py"), submodule_search_locations=[here])
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["arlm_guest"] = package
    spec.loader.exec_module(package)
    for name in PRELOAD:
        importlib.import_module(name)
    importlib.import_module("arlm_guest.supervisor").Supervisor(0, 1).run()


# What most cells import: a forked worker has it for nothing. What is missing costs a cell milliseconds; what stands here costs each fork.
PRELOAD = ("asyncio", "collections", "datetime", "functools", "json", "math", "random", "re", "textwrap")

if __name__ == "__main__":
    _start()
