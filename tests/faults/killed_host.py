"""A host that kills itself before its N-th act on files, sockets and processes, from the making of its folder until its
supervisor has it to remove; the last survives.

python killed_host.py FOLDER prints ``[[the act, what was left, what the next run left of it], ...]``.
"""

import asyncio
import json
import os
import signal
import sys
import tempfile
import threading
import time

import arlm
from arlm.environments import process  # noqa: F401 - imported here and once: the acts of a run are walked, not those of imports
from arlm.testing.scripted import ScriptedLM

FIRST = "tempfile.mkdtemp"  # what comes before leaves nothing that could stay
ACTS = ("os.mkdir", "os.chmod", "os.listdir", "os.scandir", "os.remove", "os.rmdir", "open", "fcntl.flock", "socket.", "subprocess.")
SETTLE_S = 0.1  # a supervisor that knows of the folder has mostly removed it by then; a late one is taken for none


def run(folder: str) -> None:
    tempfile.tempdir = folder
    model = ScriptedLM(["```repl\nanswer.update(content=context, ready=True)\n```"])
    assert asyncio.run(arlm.run("q", context="c" * 100_000, model=model)).answer[0] == "c"


def killed_before(act: int, folder: str) -> str:
    """Run in a fork, with temporary files in ``folder``, until the act with this number; the act's name, or "" when there was none."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            sys.addaudithook(killer(act, writer))
            run(folder)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, encoding="utf-8") as told:
        name = told.read()
    _, status = os.waitpid(pid, 0)
    assert name or status == 0, "the run failed"
    return name


def killer(act: int, writer: int):
    main_thread = threading.get_ident()  # another looks for what dead hosts left, at the same time and in no order
    left = act
    begun = False

    def hook(name: str, _arguments: tuple) -> None:
        nonlocal left, begun
        begun = begun or name == FIRST
        if begun and name.startswith((FIRST, *ACTS)) and threading.get_ident() == main_thread:
            left -= 1
            if left < 0:
                os.write(writer, name.encode())
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def left_in(folder: str) -> list[str]:
    deadline = time.monotonic() + SETTLE_S
    while (left := os.listdir(folder)) and time.monotonic() < deadline:
        time.sleep(0.002)
    return left


def main(folder: str) -> None:
    walked = []
    while not walked or walked[-1][0]:
        place = tempfile.mkdtemp(dir=folder, prefix="")
        walked.append((killed_before(len(walked), place), left_in(place), place))
    for _, _, place in walked:
        run(place)
    print(json.dumps([(name, left, os.listdir(place)) for name, left, place in walked]))


if __name__ == "__main__":
    main(sys.argv[1])
