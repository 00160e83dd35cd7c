"""The supervisor: what one worker leaves behind holds nobody up, and nothing is lost when a fork fails."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from pathlib import Path

import pytest

from arlm.environments.process import ProcessREPL
from arlm.guest.supervisor import Supervisor
from arlm.testing.bench import Subject, alive_here, open_bench

FORKS_SECONDS = 6  # a chain ends by itself after this time, with a mark: a test that sees the mark was held up, or the chain was not killed
LENGTH = 2000 if os.getuid() == 0 else 400  # of the dead that nobody waits for; others than root may not have many more
SUBJECT = Subject(name="process", environment=lambda: ProcessREPL(processes=2 * LENGTH))

# Each process of the chain forks one and ends: whoever looks finds another one.
CHAIN = f"""
import os, subprocess, sys, time
open("chain.py", "w").write('''
import os, time
length, end = 0, time.monotonic() + {FORKS_SECONDS}
while time.monotonic() < end:
    try:
        if os.fork():
            os._exit(0)
    except OSError:
        time.sleep(0.001)
        continue
    length += 1
    if length == {LENGTH}:
        open("long", "w").close()
open("ran_out", "w").close()
''')
subprocess.run([sys.executable, "-I", "-S", "chain.py"])
while not os.path.exists("long"):
    time.sleep(0.01)
print(os.getcwd())
"""


def living_in(folder: Path) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.readlink(f"/proc/{name}/cwd").startswith(str(folder)) and alive_here(int(name)):
                found.append(int(name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are found on Linux")
async def test_a_fork_chain_dies_with_its_worker_and_holds_nobody_up() -> None:
    async with open_bench(SUBJECT) as bench:
        folder = Path((await bench.out(CHAIN)).strip())
        assert not (folder / "ran_out").exists()
        other = bench.another()
        other.serve(bench.tasks, bench.script.answer)
        closing = asyncio.ensure_future(bench.repl.close())
        assert (await other.run_cell("print(1)", 1)).output == "1\n"
        await closing
        assert living_in(folder) == []
        assert not (folder / "ran_out").exists()
        await other.close()


@pytest.mark.parametrize("address", [{"relay": True}, {"unix": "nowhere"}], ids=["relayed", "connecting"])
def test_a_failed_fork_costs_no_descriptor(monkeypatch: pytest.MonkeyPatch, address: dict[str, object]) -> None:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, "no more processes")

    reader, writer = os.pipe()
    supervisor = Supervisor(reader, writer)
    monkeypatch.setattr(os, "fork", fork)
    before = os.listdir("/dev/fd")
    with pytest.raises(BlockingIOError):
        supervisor._spawn(1, {"worker": "w", "address": address})
    assert os.listdir("/dev/fd") == before
    supervisor._selector.close()
    os.close(reader)
    os.close(writer)
