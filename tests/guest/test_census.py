"""Counting a worker's processes and threads."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from arlm.guest import census, processes
from arlm.testing.bench import alive_here

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are counted on Linux")

# A process with two more threads, a child with a child, and a child that has ended and was not waited for: six in all.
TREE = """
import os, sys, threading, time
for _ in range(2):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
if os.fork() == 0:
    os.setsid()
    os.fork()
    time.sleep(60)
if os.fork() == 0:
    os._exit(0)
os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
print("ready", flush=True)
time.sleep(60)
"""
TASKS = 6


@pytest.fixture
def tree() -> Iterator[subprocess.Popen[str]]:
    with started(TREE) as process:
        yield process
        below = processes.descendants([process.pid])
        for pid in (process.pid, *below):
            os.kill(pid, 9)
    until(lambda: not any(map(alive_here, below)))


def started(code: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_processes_threads_and_the_dead_are_counted(tree: subprocess.Popen[str]) -> None:
    until(lambda: census.tasks_of(tree.pid, 100) == TASKS)
    assert census.tasks_of(tree.pid, 2) > 2  # it may stop there
    assert census.tasks_of_machine() >= TASKS


def test_who_has_too_many_is_found_and_who_has_not_is_left(tree: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "tasks_of_machine", count(1000, 1000).__next__)
    monkeypatch.setattr(census, "LOOK_SECONDS", 0.0)
    until(lambda: census.tasks_of(tree.pid, 100) == TASKS)
    assert census.Census().look({tree.pid: TASKS}) == {}
    found = census.Census().look({tree.pid: TASKS - 1, os.getpid(): 10_000})
    assert list(found) == [tree.pid]
    assert found[tree.pid] >= TASKS


def test_nobody_is_counted_while_the_machine_has_no_more_processes(tree: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    totals = iter([1000, 1000, 900, 902, 903])
    monkeypatch.setattr(census, "tasks_of_machine", totals.__next__)
    monkeypatch.setattr(census, "LOOK_SECONDS", 0.0)
    until(lambda: census.tasks_of(tree.pid, 100) == TASKS)
    kept = census.Census()
    assert list(kept.look({tree.pid: 4})) == [tree.pid]
    assert kept.look({tree.pid: 4}) == {}  # the same number: no look
    assert kept.look({tree.pid: 4}) == {}  # fewer: what grows from here counts
    assert list(kept.look({tree.pid: 4})) == [tree.pid]
    assert kept.look({tree.pid: 4}) == {}


def test_between_two_looks_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter([1])
    monkeypatch.setattr(census, "tasks_of_machine", asked.__next__)
    kept = census.Census()
    kept.look({os.getpid(): 10_000})
    kept.look({os.getpid(): 10_000})  # a second question would raise StopIteration
    assert 0 < kept.patience <= census.LOOK_SECONDS
