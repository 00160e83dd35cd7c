"""Hosts whose disk is full, in one way or another. ``python full_host.py SCENARIO ROAD FOLDER`` prints what became of the runs.

ROAD: ``tmpfs``: FOLDER is a small file system of this process alone (a mount in a namespace of its own), really full. ``limit``: no file
may grow beyond a size (RLIMIT_FSIZE), which anybody can have.
"""

import asyncio
import ctypes
import json
import logging
import os
import resource
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import arlm
from arlm import scratch
from arlm.log import read_log
from arlm.rlm import run as arlm_run
from arlm.testing.scripted import ScriptedLM

SIZE = 4 * 1024 * 1024  # bytes of the disk, and of a file at most
LARGE = "x" * (2 * SIZE)  # does not fit
CLONE_NEWNS, MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE = 0x20000, 1, 32, 0x4000, 1 << 18

FINAL = "```repl\nanswer.update(content=context[:1], ready=True)\n```"
folder = Path(sys.argv[3])


def mount(flags: int, source: str = "tmpfs", options: str = f"size={SIZE},mode=0700") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), str(folder).encode(), b"tmpfs", flags, options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def own_disk() -> None:
    """Mount FOLDER for this process and its children. Raises OSError where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    mount(0)


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """So many bytes can be written, to the disk or to each file, and no more."""
    if sys.argv[2] == "limit":
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    os.truncate(filler, max(0, filler.stat().st_size - size))
    try:
        yield
    finally:
        filler.unlink()


async def end_of(work: Awaitable[object]) -> object:
    try:
        return await work
    except Exception as error:
        return f"{type(error).__name__ if isinstance(error, arlm.ArlmError) else 'NOT OURS'}: {error}"


async def ask(context: object = "c" * 100_000, *, cells: tuple[str, ...] = (), **options: object) -> object:
    lm = ScriptedLM([*[f"```repl\n{cell}\n```" for cell in cells], FINAL])
    result = await arlm_run("q", context=context, model=lm, **options)  # type: ignore[arg-type]
    return result.trajectory()["turns"][0]["cells"][0]["output"] if cells else result.answer


def left() -> list[str]:
    return sorted(name for name in os.listdir(folder) if name != "filler")


async def context() -> dict[str, object]:
    """A context that does not fit, of each kind; then one that does."""
    ends = {}
    (folder / "half").write_text(LARGE[: SIZE // 4])
    values = {"text": LARGE, "bytes": LARGE.encode(), "json": [LARGE], "files": [folder / "half"] * 1 + [Path(__file__)]}
    for name, value in values.items():
        with room_for(SIZE // 8):
            ends[name] = await end_of(ask(value))
    (folder / "half").unlink()
    return {"ends": ends, "left": left(), "then": await end_of(ask())}


async def own_file() -> dict[str, object]:
    """A file of the user's on another disk, of which confined workers need a copy that does not fit."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as elsewhere:
        (Path(elsewhere) / "file").write_text(LARGE)
        with room_for(SIZE // 8):
            first = await end_of(ask(Path(elsewhere) / "file"))
    return {"ends": [first], "left": left(), "then": await end_of(ask())}


async def session() -> dict[str, object]:
    """A session whose second question does not fit: its disk is free again at once, and the third is answered."""
    lm = ScriptedLM([FINAL] * 3)
    async with arlm.RLM(model=lm).session() as living:
        first = (await living.run("one", context="a" * 100_000)).answer
        with room_for(SIZE // 8):
            second = await end_of(living.run("two", context=LARGE))
        sizes = [path.stat().st_size for path in folder.rglob("contexts/*")]
        third = (await living.run("three", context="b" * 100_000)).answer
    return {"ends": [first, second, third], "most": max(sizes), "left": left()}


async def log() -> dict[str, object]:
    """A log that cannot be written on: the run goes on, and says so once."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("arlm.log").addHandler(handler)
    logs = folder / "logs"
    with room_for(SIZE // 8):
        first = await end_of(
            ask(cells=("print('y' * 20_000)", *("import random; print(random.randbytes(9_000).hex())",) * 40), log_dir=logs)
        )
    (path,) = logs.iterdir()
    events = [event["type"] for event in read_log(path)]
    path.unlink()
    then = await end_of(ask(log_dir=logs))
    (path,) = logs.iterdir()
    ended = [event["type"] for event in read_log(path)][-1]
    path.unlink()
    logs.rmdir()
    return {"first": str(first)[:10], "said": said, "events": events[:2], "last": events[-1], "then": then, "ended": ended, "left": left()}


CELL = """
try:
    with open('file', 'wb') as file:
        file.write(b'z' * 8_000_000)
except OSError as error:
    print('it said', type(error).__name__, error.errno)
import os, subprocess
print('kept' if os.path.exists('file') else 'gone')
os.remove('file')
print(subprocess.run(['head', '-c', '9000000', '/dev/zero'], stdout=open('other', 'wb'), stderr=subprocess.DEVNULL).returncode != 0)
os.remove('other')
"""


async def cell() -> dict[str, object]:
    """A cell that fills the disk: it sees the error, and so does the model; nothing of the host's is hurt."""
    # A worker has limits of its own on files; below them a cell may go.
    limit = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({SIZE}, {SIZE}))\n" if sys.argv[2] == "limit" else ""
    with room_for(SIZE // 8):
        first = await end_of(ask(cells=(limit + CELL,)))
        raised = await end_of(ask(cells=(limit + "open('file', 'wb').write(b'z' * 8_000_000)",)))
    return {"ends": [first, raised], "left": left(), "then": await end_of(ask())}


async def nothing_fits() -> dict[str, object]:
    """No folder can be made: no inode is left, or none may be made at all."""
    own_disk_again = sys.argv[2] == "tmpfs"
    if own_disk_again:
        mount(MS_REMOUNT, options="nr_inodes=1")
    else:
        tempfile.tempdir = str(folder / "missing")
    first = await end_of(ask())
    if own_disk_again:
        mount(MS_REMOUNT, options="nr_inodes=1000")
    else:
        tempfile.tempdir = str(folder)
    return {"ends": [first], "left": left(), "then": await end_of(ask())}


async def closed() -> dict[str, object]:
    """The temporary folder may not be written to, has become a file, and is gone; each time it comes back."""
    ends = {}
    if sys.argv[2] == "tmpfs":
        mount(MS_REMOUNT | MS_RDONLY)
        ends["read-only"] = await end_of(ask())
        mount(MS_REMOUNT)
    inner = folder / "tmp"
    tempfile.tempdir = str(inner)
    inner.mkdir()
    ends["there"] = await end_of(ask())
    inner.chmod(0o500)
    if os.geteuid() == 0:
        os.seteuid(65534)
    ends["forbidden"] = await end_of(ask())
    if os.getuid() == 0:
        os.seteuid(0)
    inner.rmdir()
    ends["gone"] = await end_of(ask())
    inner.write_text("a file")
    ends["a file"] = await end_of(ask())
    inner.unlink()
    inner.mkdir()
    then = await end_of(ask())
    return {"ends": ends, "left": os.listdir(inner), "then": then}


async def swept_away() -> dict[str, object]:
    """Somebody empties the temporary folder while a session lives: what comes next is typed, and leaving it leaves nothing."""
    lm = ScriptedLM([FINAL] * 3)
    async with arlm.RLM(model=lm).session() as living:
        first = (await living.run("one", context="a" * 100_000)).answer
        for path in folder.iterdir():
            scratch.remove_tree(str(path))
        second = await end_of(living.run("two", context="b" * 100_000))
    return {"ends": [first, second], "left": left(), "then": await end_of(ask())}


SCENARIOS: dict[str, Callable[[], Awaitable[dict[str, object]]]] = {
    it.__name__: it for it in (context, own_file, session, log, cell, nothing_fits, closed, swept_away)
}


def main() -> None:
    if sys.argv[2] == "tmpfs":
        own_disk()
    if sys.argv[1] == "probe":
        return
    tempfile.tempdir = str(folder)
    print(json.dumps(asyncio.run(SCENARIOS[sys.argv[1]]())))


if __name__ == "__main__":
    main()
