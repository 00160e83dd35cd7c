"""Coverage of the guest, whose processes start with an empty environment, are forked, leave by `os._exit`, and are killed.

The tests' coverage run starts supervisors with this file in front (`measure`); nothing else does. It runs as `python -I`, where the
start-up hook of coverage has already begun to measure, because the one variable that asks for it is passed on.
"""

import os
import runpy
import sys
from pathlib import Path
from typing import Any

import coverage

VARIABLE = "COVERAGE_PROCESS_CONFIG"


def untraced(function: Any) -> Any:
    """A thread's main function, without the tracer in that thread.

    CPython 3.11 can livelock under a tracer: two traced threads that enter functions at the same moment hand the interpreter lock to and
    fro, and neither takes a step. The threads that run beside a busy one are therefore not measured.
    """

    def run(*args: Any) -> Any:
        sys.settrace(None)
        return function(*args)

    return run


def measure() -> None:
    """In the test process: start supervisors under coverage, if this process is under coverage itself."""
    if VARIABLE in os.environ:
        from arlm.environments import forkserver, process

        plain = forkserver.command
        forkserver.KEPT_VARIABLES += (VARIABLE,)
        forkserver.command = process.command = lambda: [*(command := plain())[:-1], __file__, command[-1]]
        process.WRITE_ALSO.append(str(Path(__file__).parents[1]))  # where confined workers put what they measured


def save() -> None:
    if current := coverage.Coverage.current():
        current.save()


def save_and_leave(status: int, leave: Any = os._exit) -> None:
    save()
    leave(status)


def save_after_each_cell() -> None:
    """In a worker: before a cell is reported, since a kill may come at any time after that."""
    link = sys.modules["arlm_guest.link"]
    link.Link._main = untraced(link.Link._main)
    cells = sys.modules["arlm_guest.cells"]
    plain = cells.Session.run

    def run(*args: Any) -> Any:
        try:
            return plain(*args)
        finally:
            save()

    cells.Session.run = run


if __name__ == "__main__":
    os._exit = save_and_leave
    os.register_at_fork(after_in_child=save_after_each_cell)
    runpy.run_path(sys.argv[1], run_name="__main__")
