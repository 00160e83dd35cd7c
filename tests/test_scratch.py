"""Temporary folders of runs: private, removed whatever happens; those of dead hosts swept, and nobody else's."""

import asyncio
import errno
import fcntl
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from arlm import scratch
from arlm.errors import SandboxError
from arlm.scratch import PREFIX, open_scratch, sweep


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder; short, so that it is taken."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(scratch, "LONGEST", 1_000)
    monkeypatch.setattr(scratch, "_looked_at", set())
    return tmp_path


@pytest.fixture
def orphan(parent: Path) -> Path:
    """What a dead host has left."""
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    (path / "contexts").mkdir()
    (path / "contexts" / "context.0").write_text("c")
    return path


def held(path: Path) -> int:
    number = os.open(path, os.O_RDONLY)
    fcntl.flock(number, fcntl.LOCK_EX)
    return number


async def test_it_is_private_has_its_folders_and_goes_whatever_is_in_it(parent: Path) -> None:
    async with open_scratch("a", "b") as path:
        assert path.parent == parent
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert sorted(os.listdir(path)) == ["a", "b"]
        (path / "a" / "deep").mkdir()
        (path / "a" / "deep").chmod(0)
    assert os.listdir(parent) == []


async def test_it_goes_where_no_thread_can_be_had(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(*_arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", no_thread)
    async with open_scratch():
        assert len(os.listdir(parent)) == 1
    assert os.listdir(parent) == []


def test_the_first_run_of_a_process_removes_what_a_dead_host_left(orphan: Path) -> None:
    async def run() -> None:
        async with open_scratch():
            pass

    asyncio.run(run())
    assert not orphan.exists()


def test_a_folder_is_looked_through_once(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    monkeypatch.setattr(scratch, "sweep", looked.append)

    async def run() -> None:
        async with open_scratch(), open_scratch():
            pass

    for _ in range(3):
        asyncio.run(run())
    assert looked == [str(parent)]


HOLDER = """
import asyncio, sys
from arlm.scratch import open_scratch

async def main():
    async with open_scratch() as path:
        print(path, flush=True)
        sys.stdin.read()

asyncio.run(main())
"""


@pytest.fixture
def living(parent: Path) -> Iterator[subprocess.Popen]:
    """Another host that has a folder there."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        env={**os.environ, "TMPDIR": "."},
        cwd=parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


def test_a_living_hosts_folder_stays_until_the_host_is_killed(parent: Path, living: subprocess.Popen) -> None:
    path = parent / Path(living.stdout.readline().strip()).name
    assert path.is_dir()
    assert sweep(str(parent)) == []
    living.kill()
    living.wait()
    assert sweep(str(parent)) == [str(path)]
    assert not path.exists()


def test_what_is_not_ours_to_remove_stays(orphan: Path, parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("x")
    (parent / f"{PREFIX}link").symlink_to(elsewhere)
    (parent / f"{PREFIX}file").write_text("x")
    (parent / "arlm-other").mkdir()  # another machine's, or another program's
    mine = held(orphan)
    try:
        assert sweep(str(parent)) == []
    finally:
        os.close(mine)
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    parent.chmod(0o1777)
    monkeypatch.setattr(scratch, "_is_safe", lambda _parent: True)
    assert sweep(str(parent)) == []  # another user's
    assert {path.name for path in parent.iterdir()} == {"elsewhere", orphan.name, f"{PREFIX}link", f"{PREFIX}file", "arlm-other"}
    assert (elsewhere / "file").exists()


def test_nothing_is_removed_where_others_could_exchange_it(orphan: Path, parent: Path) -> None:
    parent.chmod(0o777)
    assert sweep(str(parent)) == []
    parent.chmod(0o1777)
    assert sweep(str(parent)) == [str(orphan)]
    assert sweep(str(parent / "missing")) == []


async def test_a_folder_lost_before_it_was_held_is_made_again(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, held_by_a_look = [], []
    make = tempfile.mkdtemp

    def slow(**options: str) -> str:
        path = make(**options)
        made.append(path)
        if len(made) == 1:
            assert sweep(str(parent)) == [path]
        elif len(made) == 2:
            held_by_a_look.append(held(Path(path)))
        return path

    monkeypatch.setattr(tempfile, "mkdtemp", slow)
    async with open_scratch("a") as path:
        assert str(path) == made[2]
        assert sweep(str(parent)) == []
        assert os.listdir(path) == ["a"]
    os.close(*held_by_a_look)
    assert sweep(str(parent)) == [made[1]]


def test_looks_from_all_sides_take_no_folder_that_is_held(parent: Path) -> None:
    over = threading.Event()
    swept: list[str] = []

    def look() -> None:
        while not over.is_set():
            swept.extend(sweep(str(parent)))

    async def hold() -> None:
        for _ in range(100):
            async with open_scratch("a") as path:
                (path / "a" / "file").write_text("x")
                await asyncio.sleep(0)
                assert (path / "a" / "file").exists()

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for looker in lookers:
        looker.start()
    try:
        asyncio.run(hold())
    finally:
        over.set()
        for looker in lookers:
            looker.join()
    sweep(str(parent))
    assert os.listdir(parent) == []


async def test_where_the_disk_knows_no_locks_it_is_held_without_and_never_swept(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    async with open_scratch("a") as path:
        assert sweep(str(parent)) == []
        assert os.listdir(path) == ["a"]
    assert os.listdir(parent) == []


async def test_a_folder_that_is_always_taken_away_is_a_clear_error(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "_lock", lambda path: os.open(os.path.join(path, "gone"), os.O_RDONLY))
    monkeypatch.setattr(scratch, "TRIES", 2)
    with pytest.raises(SandboxError, match="taken away as soon as they were made"):
        async with open_scratch():
            pass


async def test_half_a_folder_is_removed_and_the_error_says_what_to_do(parent: Path) -> None:
    with pytest.raises(SandboxError, match=r"no temporary folder could be made in .*: No such file or directory; set TMPDIR"):
        async with open_scratch("a", "missing/b"):
            pass
    assert os.listdir(parent) == []


async def test_without_a_descriptor_to_hold_it_there_is_no_folder(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_path: str) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(scratch, "_lock", none_left)
    with pytest.raises(SandboxError, match="ulimit -n"):
        async with open_scratch("a"):
            pass
    assert os.listdir(parent) == []


async def test_no_temporary_folder_at_all_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/nowhere']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(SandboxError, match=r"No usable temporary directory.*set TMPDIR"):
        async with open_scratch():
            pass
