"""Process trees: found and killed whole, sessions of their own or not."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from arlm.guest import processes
from arlm.testing.conformance import alive_here

# A root that prints the ids of three processes below it: a child, its child in a session of its own, and one forked twice.
TREE = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from arlm.guest import processes
processes.become_subreaper()
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, b"%d " % os.getpid())
    if os.fork() == 0:
        os.setsid()
        os.write(writer, b"%d " % os.getpid())
        time.sleep(600)
    time.sleep(600)
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        os.write(writer, b"%d " % os.getpid())
        time.sleep(600)
    os._exit(0)
found = b""
while found.count(b" ") < 3:
    found += os.read(reader, 100)
print(found.decode(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def tree() -> Iterator[tuple[subprocess.Popen, set[int]]]:
    source = os.path.dirname(os.path.dirname(os.path.dirname(processes.__file__)))
    root = subprocess.Popen([sys.executable, "-c", TREE, source], stdout=subprocess.PIPE)
    with root:
        below = set(map(int, root.stdout.readline().split()))
        try:
            yield root, below
        finally:
            for pid in filter(alive_here, {root.pid, *below}):
                os.kill(pid, 9)


def until_gone(pids: set[int]) -> None:
    while any(map(alive_here, pids)):
        os.sched_yield()


@pytest.mark.skipif(sys.platform != "linux", reason="subreapers are Linux's: elsewhere what forked twice is not found")
def test_everything_below_a_process_is_found(tree: tuple[subprocess.Popen, set[int]]) -> None:
    root, below = tree
    assert len(below) == 3
    assert processes.descendants([root.pid]) >= below


@pytest.mark.skipif(sys.platform != "linux", reason="subreapers are Linux's: elsewhere what forked twice is not found")
def test_a_tree_is_killed_whole(tree: tuple[subprocess.Popen, set[int]]) -> None:
    root, below = tree
    processes.kill_trees([root.pid])
    assert root.wait() == -9
    until_gone(below)


def test_killing_what_is_gone_is_harmless() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    processes.kill_trees([process.pid])
    assert processes.cpu_seconds([process.pid]) == 0.0


def test_cpu_time_of_a_tree_is_counted() -> None:
    code = "import os, time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ntime.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with process:
        process.stdout.readline()
        used = processes.cpu_seconds([process.pid])
        process.kill()
    assert used >= 0.15 or not os.path.isdir("/proc/self")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_a_process_is_dead_when_its_last_thread_has_ended() -> None:
    code = "import ctypes, threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\nctypes.CDLL(None).pthread_exit(None)"
    process = subprocess.Popen([sys.executable, "-c", code])
    with process:
        while alive_here(process.pid):  # its first thread
            os.sched_yield()
        assert not processes.is_dead(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert processes.is_dead(process.pid)
    assert processes.is_dead(process.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_dead_are_left_out_where_they_are_not_asked_for() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert process.pid in processes.descendants([os.getpid()])
    assert process.pid not in processes.descendants([os.getpid()], dead=False)
    process.wait()
