"""Labels that name a process: who is dead is told for certain, and who may live is never called dead."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlm.environments import owner as module
from arlm.environments.owner import LONGEST, is_dead, owner

LIVING = "import sys; from arlm.environments.owner import owner; print(owner(), flush=True); sys.stdin.read()"
UNSHARE = "/usr/bin/unshare"


@contextmanager
def process(program: str = LIVING, *before: str) -> Iterator[subprocess.Popen[str]]:
    """A process that lives until its standard input ends."""
    with subprocess.Popen([*before, sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        yield started


def line(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


def dead(label: object) -> tuple[bool, bool]:
    """What is said where it was found on this machine, and where it was found anywhere."""
    return is_dead(label, same_machine=True), is_dead(label, same_machine=False)


def changed(label: str, **parts: object) -> str:
    """The label with other parts."""
    names = ("form", "machine", "boot", "spaces", "pid", "start")
    return ".".join(str({**dict(zip(names, label.split("."), strict=True)), **parts}[name]) for name in names)


def part(label: str, number: int) -> int:
    return int(label.split(".")[number])


def unused_pid() -> int:
    with subprocess.Popen(["true"]) as started:
        pass
    return started.pid


def can(*before: str) -> bool:
    """Whether this system lets the tests start something in namespaces of its own."""
    try:
        return subprocess.run([*before, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


# -- the label ---------------------------------------------------------------------------------------------------------


def test_a_label_fits_wherever_labels_are_kept() -> None:
    assert re.fullmatch(r"[a-z0-9][a-z0-9.]*[a-z0-9]", owner())
    assert len(owner()) <= LONGEST
    widest = changed(owner(), pid=4_194_304, start=99_999_999_999)
    assert len(widest) <= LONGEST
    assert module.FORM.fullmatch(widest)


def test_a_label_stays_the_same_and_is_not_dead() -> None:
    assert owner() == owner()
    assert dead(owner()) == (False, False)


def test_a_label_shows_neither_the_machines_name_nor_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "id").write_text("0123456789abcdef0123456789abcdef\n")
    monkeypatch.setattr(module, "MACHINE_ID", str(tmp_path / "id"))
    label = owner()
    assert "0123456789abcdef"[:8] not in label
    assert os.uname().nodename.lower() not in label.split(".")
    (tmp_path / "id").write_text("1123456789abcdef0123456789abcdef\n")
    assert label.split(".")[1] != owner().split(".")[1]


FORKED = """
import os, sys
from arlm.environments.owner import owner
print(owner(), flush=True)
pid = os.fork()
if pid == 0:
    print(owner(), flush=True)
    sys.stdin.read()
    os._exit(0)
os.waitpid(pid, 0)
"""


def test_a_fork_has_a_label_of_its_own() -> None:
    with process(FORKED) as parent:
        labels = [line(parent), line(parent)]
        assert labels[0] != labels[1]
        assert [dead(label) for label in labels] == [(False, False)] * 2


# -- the living and the dead -------------------------------------------------------------------------------------------


def test_a_process_is_dead_when_it_has_ended_and_not_before() -> None:
    with process() as other:
        label = line(other)
        assert dead(label) == (False, False)
        other.kill()
    assert dead(label) == (True, True)


def test_one_that_nobody_has_waited_for_is_dead() -> None:
    with process() as other:
        label = line(other)
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert dead(label) == (True, True)


def test_one_that_is_stopped_lives() -> None:
    with process() as other:
        label = line(other)
        other.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, other.pid, os.WSTOPPED | os.WNOWAIT)
        assert dead(label) == (False, False)
        other.kill()


# The first thread ends by the system call of that name, as C programs may; the other goes on.
HEADLESS = """
import ctypes, platform, sys, threading
from arlm.environments.owner import owner

label = owner()

def go_on():
    while open("/proc/self/stat").read().rpartition(")")[2].split()[0] != "Z":
        pass
    print(label, flush=True)
    sys.stdin.buffer.raw.read()

threading.Thread(target=go_on).start()
ctypes.CDLL(None).syscall({"x86_64": 60}.get(platform.machine(), 93), 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_one_whose_first_thread_has_ended_lives_in_the_others() -> None:
    with process(HEADLESS) as other:
        label = line(other)
        assert dead(label) == (False, False)
        other.kill()
    assert dead(label) == (True, True)


def test_a_number_that_is_used_again_does_not_keep_the_dead_alive() -> None:
    label = changed(owner(), start=part(owner(), 5) - 1)
    assert dead(label) == (True, True)


@pytest.mark.parametrize("code", [PermissionError, OSError])
def test_one_that_may_not_be_asked_lives_where_proc_hides_it(code: type[OSError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int, _number: int) -> None:
        raise code

    label = changed(owner(), pid=unused_pid())
    assert dead(label) == (True, True)
    monkeypatch.setattr(os, "kill", refuse)
    assert dead(label) == (False, False)


def test_a_time_to_come_is_nobodys() -> None:
    label = changed(owner(), pid=unused_pid(), start=10_000_000_000)
    assert dead(label) == (False, False)


# -- elsewhere ---------------------------------------------------------------------------------------------------------


def test_after_another_boot_only_what_is_on_this_machine_is_known_to_be_dead() -> None:
    assert dead(changed(owner(), boot="0123456789abcdef")) == (True, False)
    assert dead(changed(owner(), boot="0123456789abcdef", spaces="0123456789", pid=1, start=0)) == (True, False)


def test_where_a_boot_is_not_known_it_is_no_other_one() -> None:
    assert dead(changed(owner(), boot="0", pid=unused_pid())) == (False, False)


@pytest.mark.parametrize("elsewhere", [{"machine": "0123456789ab"}, {"spaces": "0123456789"}, {"spaces": "0"}])
def test_of_another_machine_or_namespace_nothing_is_known(elsewhere: dict[str, str]) -> None:
    gone = changed(owner(), pid=unused_pid())
    assert dead(gone) == (True, True)
    assert dead(changed(gone, **elsewhere)) == (False, False)


NESTED = """
import subprocess, sys
from arlm.environments.owner import is_dead, owner
print(owner(), flush=True)
child = subprocess.Popen([sys.executable, "-c", sys.argv[-1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
label = child.stdout.readline().strip()
living = [is_dead(of, same_machine=True) for of in (owner(), label)]
child.kill()
child.communicate()
print(*living, is_dead(label, same_machine=True), flush=True)
sys.stdin.read()
"""
PIDS = (UNSHARE, "--pid", "--fork", "--kill-child")


@pytest.mark.skipif(not can(*PIDS), reason="pid namespaces cannot be made here")
@pytest.mark.parametrize("more", [("--mount-proc",), ()], ids=["a /proc of its own", "the /proc of those above"])
def test_in_a_pid_namespace_one_knows_ones_own_and_is_not_known(more: tuple[str, ...]) -> None:
    program = NESTED.replace("sys.argv[-1]", repr(LIVING))
    with process(program, *PIDS, *more) as nested:
        label = line(nested)
        assert part(label, 4) == 1
        assert line(nested) == "False False True"
        assert dead(label) == (False, False)
    assert dead(label) == (False, False)


@pytest.mark.skipif(not can(*PIDS), reason="pid namespaces cannot be made here")
def test_under_the_proc_of_those_above_nobodys_times_are_compared() -> None:
    """There /proc/1 is another process than number 1, and began at another time."""
    with process(LIVING, *PIDS) as first:
        assert part(line(first), 4) == 1
        assert first.stdin is not None
    told = "import os; from arlm.environments.owner import is_dead, owner; print(os.getpid(), is_dead(owner(), same_machine=True))"
    with process(told, *PIDS) as alone:
        assert line(alone) == "1 False"


CLOCKS = (UNSHARE, "--time", "--boottime", "100000", "--fork", "--kill-child")


@pytest.mark.skipif(not can(*CLOCKS), reason="time namespaces cannot be made here")
def test_those_with_other_clocks_do_not_take_each_other_for_dead() -> None:
    told = (
        f"from arlm.environments.owner import is_dead, owner; print(owner(), is_dead({owner()!r}, same_machine=True), flush=True); input()"
    )
    with process(told, *CLOCKS) as shifted:
        label, _, of_ours = line(shifted).partition(" ")
        assert abs(part(label, 5) - part(owner(), 5)) > 100_000
        assert of_ours == "False"
        assert dead(label) == (False, False)
        shifted.kill()


# -- without /proc -----------------------------------------------------------------------------------------------------


@pytest.fixture
def without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(module, "PROC", str(tmp_path / "proc"))
    monkeypatch.setattr(module, "MACHINE_ID", str(tmp_path / "machine-id"))
    return module


@pytest.mark.usefixtures("without_proc")
def test_where_linux_hides_proc_nobody_is_dead() -> None:
    assert owner().split(".")[2:4] == ["0", "0"]
    assert dead(changed(owner(), pid=unused_pid())) == (False, False)


@pytest.mark.parametrize(("card", "anywhere"), [(0x001122334455, True), (0x011122334455, False)], ids=["a card", "a number by chance"])
def test_another_system_asks_for_the_number_alone(
    card: int, anywhere: bool, without_proc: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(without_proc, "LINUX", False)
    monkeypatch.setattr("uuid.getnode", lambda: card)
    assert part(owner(), 5) == 0
    assert dead(owner()) == (False, False)
    assert dead(changed(owner(), pid=os.getppid())) == (False, False)
    assert dead(changed(owner(), pid=unused_pid())) == (True, anywhere)


def test_two_machines_with_one_name_differ_by_their_cards(without_proc: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(without_proc, "LINUX", False)
    monkeypatch.setattr("uuid.getnode", lambda: 0x001122334455)
    label = changed(owner(), pid=unused_pid())
    assert dead(label) == (True, True)
    monkeypatch.setattr("uuid.getnode", lambda: 0x001122334456)
    assert dead(label) == (False, False)


# -- nonsense ----------------------------------------------------------------------------------------------------------

ODD = st.one_of(st.none(), st.integers(), st.binary(), st.text(), st.text("a1.0-9 \n\0\udcff", max_size=80), st.lists(st.text()))


@given(ODD)
def test_nonsense_raises_nothing_and_is_not_dead(label: object) -> None:
    assert dead(label) == (False, False)


@given(st.from_regex(module.FORM, fullmatch=True))
def test_what_merely_looks_like_a_label_is_not_dead(label: str) -> None:
    assert dead(label) == (False, False)


@given(st.integers(0, 60), st.text(min_size=1).filter(lambda text: not set(text) <= set("abcdef0123456789.")))
def test_a_true_label_with_anything_put_in_is_not_dead(at: int, text: str) -> None:
    label = changed(owner(), pid=9_999_999)
    assert dead(label) == (True, True)
    assert dead(label[:at] + text + label[at:]) == (False, False)


@given(st.integers(-(10**30), 10**30), st.integers(-(10**30), 10**30))
def test_no_number_is_too_wild(pid: int, start: int) -> None:
    label = changed(owner(), pid=pid, start=start)
    assert is_dead(label, same_machine=True) in (True, False)


@pytest.mark.parametrize("pid", ["0", "-1", "00", "+1", "1e3", "१२", "2147483648", "4294967295", "1 ", "1\n"])
def test_no_number_that_means_more_than_one_process_is_asked_for(pid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(os, "kill", lambda number, _signal: asked.append(number))
    assert dead(changed(owner(), pid=pid)) == (False, False)
    assert asked == []
