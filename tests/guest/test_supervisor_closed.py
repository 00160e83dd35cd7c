"""How the supervisor closes itself to the workers it forks, where the kernel has no Landlock that would."""

import os
import signal
import stat
import subprocess
import sys
import textwrap

import pytest

from arlm.environments import forkserver
from arlm.environments.process import ProcessREPL
from arlm.guest import confine, syscalls
from arlm.testing.bench import Subject, open_bench

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's means for it are Linux's")


def child(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, with pipes as its standard streams."""
    command = [sys.executable, "-c", textwrap.dedent(code), *words]
    return subprocess.run(command, capture_output=True, text=True, input="", check=False)


def test_a_sealed_process_leaves_no_pipe_that_another_can_open_by_its_name() -> None:
    code = """
        import os
        from arlm.guest import confine
        confine.seal()
        print([oct(os.fstat(number).st_mode & 0o777) for number in (0, 1, 2)])
    """
    assert child(code).stdout == "['0o0', '0o0', '0o0']\n"


def test_sealing_leaves_a_stream_that_is_no_pipe_as_it_is(tmp_path) -> None:
    target = tmp_path / "out"
    target.touch(0o640)
    os.chmod(target, 0o640)
    with target.open("w") as file:
        subprocess.run(
            [sys.executable, "-c", "from arlm.guest import confine\nconfine.seal()"], stdin=file, stdout=file, stderr=file, check=True
        )
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.skipif(not confine.grade()["sockets"], reason="this kernel has no filter of system calls")
def test_the_filter_alone_keeps_signals_from_the_supervisor_and_from_nobody_else() -> None:
    code = """
        import ctypes, os, signal, subprocess, sys
        from arlm.guest import confine
        def sends(pid):
            try:
                os.kill(pid, 0)
                return True
            except PermissionError:
                return False
        supervisor = int(sys.argv[1])
        other = subprocess.Popen(["sleep", "60"])
        confine._supervisor = supervisor
        ctypes.CDLL(None).prctl(confine.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        before = sends(supervisor)
        confine._seccomp(False)
        print(before, sends(supervisor), sends(other.pid), sends(os.getpid()))
        other.kill()
        other.wait()
    """
    assert child(code, str(os.getpid())).stdout == "True False True True\n"


@pytest.mark.skipif(not syscalls.known(), reason="there is no filter for this machine")
def test_a_filter_names_the_supervisor_only_where_there_is_one() -> None:
    assert len(syscalls.build(False, 4321)) - len(syscalls.build(False)) == 8 * 5 * len(syscalls.NOT_THE_SUPERVISOR)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGTRAP])
async def test_a_worker_that_has_itself_traced_by_the_supervisor_is_ended_and_the_supervisor_lives(number: signal.Signals) -> None:
    async with open_bench(Subject(name="open", environment=lambda: ProcessREPL(confine="off"))) as bench:
        supervisor = (await forkserver.current()).process.pid
        cell = await bench.cell(f"import ctypes, os\nctypes.CDLL(None).ptrace(0, 0, 0, 0)\nos.kill(os.getpid(), {int(number)})")
        assert cell.stopped == "exited"
        assert await bench.out("print(1)") == "1\n"
        assert (await forkserver.current()).process.pid == supervisor
