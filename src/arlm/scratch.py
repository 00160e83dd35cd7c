"""The private folders of runs and sessions: made, held by a lock, removed. What dead hosts left is removed by the next one.

A host that is killed leaves its folder to its supervisor, which may not have heard of it yet, or may have been killed too. So a folder
is locked for as long as its host lives, by a lock that the kernel lets go with the process (``flock`` on the folder itself), and a
process's first run looks for folders that nobody holds. Whoever makes one may lose it to such a look before it has locked it, and then
makes another. Only a folder of this user, of this machine (the name says so: a disk may be shared), in a place where no other user can
exchange it, is ever removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import platform
import stat
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import SandboxError
from .guest.files import remove_tree
from .lifetimes import finish
from .shortages import told

PREFIX = f"arlm-{hashlib.sha256(platform.node().encode()).hexdigest()[:4]}-"
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF})  # what disks without locks say
TRIES = 100  # a folder is lost to another host's look in a window of microseconds; so often means something else
LONGEST = 60  # characters of the folder's own folder: a Unix socket's path below it must stay short

_looked_at: set[str] = set()  # folders that this process has looked through


@asynccontextmanager
async def open_scratch(*folders: str) -> AsyncIterator[Path]:
    """A private folder (mode 0700) with ``folders`` in it, below the usual temporary folder; leaving removes it, whatever is in it.

    The first of a process has what dead hosts left removed too, in a thread, by the end of the event loop at the latest.

    Raises:
        SandboxError: it could not be made; nothing is left of the attempt.

    Cancelled while leaving, it is removed first.
    """
    scratch = make_scratch(*folders)
    try:
        yield scratch.path
    finally:
        await finish(scratch.remove, what=str(scratch.path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scratch:
    """A private folder for whoever cannot hold a context manager open; as ``open_scratch`` makes it.

    Attributes:
        path: the folder.
    """

    path: Path
    _lock: int

    async def remove(self) -> None:
        """Remove it with what is in it. Once."""
        await _leave(self.path, self._lock)


def make_scratch(*folders: str) -> Scratch:
    """Make one; whoever asks removes it. Needs a running loop. Raises SandboxError."""
    parent = parent_folder()
    path, lock = _make(parent, folders)
    _look_once(parent)
    return Scratch(path=path, _lock=lock)


def sweep(parent: str) -> list[str]:
    """Remove the folders in ``parent`` whose hosts are dead; returns their paths. Blocks; raises nothing."""
    if not _is_safe(parent):
        return []
    try:
        names = [name for name in os.listdir(parent) if name.startswith(PREFIX)]
    except OSError:
        return []
    swept = []
    for name in names:
        path = os.path.join(parent, name)
        try:
            lock = _lock(path)
        except OSError:
            continue  # it is held, somebody else's, gone, or on a disk that knows no locks
        try:
            remove_tree(path)
            swept.append(path)
        finally:
            os.close(lock)
    return swept


def _look_once(parent: str) -> None:
    if parent in _looked_at:
        return
    _looked_at.add(parent)
    with contextlib.suppress(RuntimeError, OSError):  # no thread to be had: the next process will do it
        asyncio.get_running_loop().run_in_executor(None, sweep, parent)


def _make(parent: str, folders: Sequence[str]) -> tuple[Path, int]:
    """A folder and the descriptor that holds it. Raises SandboxError."""
    try:
        for _ in range(TRIES):
            path = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
            lock = None
            try:
                lock = _hold(path)
                if lock is None:
                    continue
                for name in folders:
                    os.mkdir(os.path.join(path, name))
            except BaseException:
                remove_tree(path)
                if lock is not None:
                    os.close(lock)
                raise
            return Path(path), lock
        raise OSError(errno.EBUSY, f"{TRIES} folders were taken away as soon as they were made")
    except OSError as error:
        raise SandboxError(f"no temporary folder could be made in {parent}: {told(error)}") from error


def _hold(path: str) -> int | None:
    """Lock a folder just made; None when a look took it away. Where the disk knows no locks it is held without one: no look takes it."""
    try:
        return _lock(path)
    except (BlockingIOError, FileNotFoundError):
        return None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def _lock(path: str) -> int:
    """A descriptor that holds the lock of a folder of ours. Raises OSError; BlockingIOError: another holds it."""
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held, named = os.fstat(number), os.stat(path, follow_symlinks=False)
        if (held.st_dev, held.st_ino) != (named.st_dev, named.st_ino):
            raise FileNotFoundError(errno.ENOENT, "another folder has this name now", path)
        if held.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "another user's", path)
    except BaseException:
        os.close(number)
        raise
    return number


def _is_safe(parent: str) -> bool:
    """Whether no other user can exchange what stands in a folder: nobody else writes to it, or its sticky bit is set."""
    try:
        status = os.stat(parent)
    except OSError:
        return False
    return status.st_uid in (0, os.geteuid()) and (not status.st_mode & 0o022 or bool(status.st_mode & stat.S_ISVTX))


async def _leave(path: Path, lock: int) -> None:
    try:
        await asyncio.to_thread(_remove, path, lock)
    except (RuntimeError, OSError):  # no thread to be had
        _remove(path, lock)


def _remove(path: Path, lock: int) -> None:
    try:
        remove_tree(str(path))
    finally:
        os.close(lock)


def parent_folder() -> str:
    """Where folders of runs are made: the usual temporary folder, or /tmp when that is too deep for a Unix socket. Raises SandboxError."""
    try:
        usual = tempfile.gettempdir()
    except OSError as error:
        raise SandboxError(f"there is no temporary folder: {error.strerror or error}; set TMPDIR to one that can be written to") from error
    return usual if len(usual) <= LONGEST or not Path("/tmp").is_dir() else "/tmp"  # noqa: S108 - mkdtemp makes a private folder in it
