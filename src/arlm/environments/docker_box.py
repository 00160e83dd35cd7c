"""What a container and the host have in common: a folder that both see, or files that are copied into the container.

Inside, everything stands below ``INSIDE``: the guest's programs, the contexts, and the socket. Outside, the box is a private folder. Its
parts are mounted for reading only, so that nothing a cell does fills the host's disk or takes the socket's place.
"""

from __future__ import annotations

import io
import os
import posixpath
import shutil
import stat
import tarfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import anyio.to_thread

from .. import guest
from ..errors import SandboxError
from ..shortages import told
from .process import link_or_copy

INSIDE = "/arlm"
GUEST = f"{INSIDE}/guest"
CONTEXTS = f"{INSIDE}/contexts"
SOCKETS = f"{INSIDE}/socket"
HERE = Path(guest.__file__).parent
PIECE = 1024 * 1024
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """What one container shares with the host.

    Attributes:
        folder: private to the host.
        user: user and group of the container's processes, who may read what is shared.
        shared: whether the container mounts it; else files are copied.
    """

    folder: Path
    user: tuple[int, int]
    shared: bool

    @property
    def socket(self) -> Path:
        """Where the host listens."""
        return self.folder / "s" / "h"

    def prepare(self) -> None:
        """Make the folders. Raises SandboxError."""
        try:
            self.folder.mkdir(0o700)
            for name in ("s", "c"):
                (self.folder / name).mkdir(0o700)
                self.give(self.folder / name, 0o700)
            if not _all_may_read(HERE):
                shutil.copytree(HERE, self.folder / "g")
                for path in (self.folder / "g", *(self.folder / "g").rglob("*")):
                    self.give(path, 0o700)
        except OSError as error:
            raise SandboxError(f"no folder could be made for the container in {self.folder}: {told(error)}") from error

    def give(self, path: Path, mode: int) -> None:
        """Let the container's user reach a file or folder, and nobody else. Raises OSError."""
        os.chmod(path, mode)
        if os.geteuid() == 0:
            os.chown(path, *self.user)

    def mounts(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """As the engine's API takes them. ``labels``: of the volume, where nothing is shared."""
        if not self.shared:
            return [{"Type": "volume", "Target": INSIDE, "VolumeOptions": {"NoCopy": True, "Labels": dict(labels)}}]
        own = self.folder / "g"
        found = {GUEST: own if own.exists() else HERE, CONTEXTS: self.folder / "c", SOCKETS: self.folder / "s"}
        return [{"Type": "bind", "Source": str(path), "Target": target, "ReadOnly": True} for target, path in found.items()]

    def add(self, path: Path, name: str) -> None:
        """Make a file readable as a context: by a second name where its rights allow it, else as a copy. Blocks. Raises OSError."""
        inside = self.folder / "c" / name
        status = path.stat()
        if _may_read(status, self.user):
            link_or_copy(path, inside)
            return
        shutil.copyfile(path, inside)
        self.give(inside, 0o400)

    def remove(self, name: str) -> None:
        """Take a context away."""
        (self.folder / "c" / name).unlink(missing_ok=True)


def normal(path: str) -> str:
    """An absolute path of a container's in the one form that tells it from others."""
    return posixpath.normpath("/" + path.lstrip("/"))


def is_own(path: str) -> bool:
    """Whether a path in this form is where arlm puts what is its own."""
    return PurePosixPath(path).is_relative_to(INSIDE)


def _may_read(status: os.stat_result, user: tuple[int, int]) -> bool:
    uid, gid = user
    if status.st_uid == uid:
        return bool(status.st_mode & stat.S_IRUSR)
    return bool(status.st_mode & (stat.S_IRGRP if status.st_gid == gid else stat.S_IROTH))


def _all_may_read(folder: Path) -> bool:
    """Whether any user may read what is in a folder. What stands above it does not count for a mount."""
    wanted = {True: stat.S_IROTH | stat.S_IXOTH, False: stat.S_IROTH}
    return all(path.stat().st_mode & wanted[path.is_dir()] == wanted[path.is_dir()] for path in (folder, *folder.rglob("*")))


def guest_archive() -> bytes:
    """The guest's programs as a tar archive, to be unpacked in INSIDE."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("contexts", "socket"):
            archive.addfile(_entry(name, folder=True))
        archive.addfile(_entry("guest", folder=True))
        for path in sorted(HERE.glob("*.py")):
            data = path.read_bytes()
            archive.addfile(_entry(f"guest/{path.name}", size=len(data)), io.BytesIO(data))
    return buffer.getvalue()


async def file_archive(file: BinaryIO, name: str) -> AsyncIterator[bytes]:
    """An open file as a tar archive, in pieces. Whoever opened it closes it: a client may leave what it sends unfinished, and unclosed."""
    size = os.fstat(file.fileno()).st_size
    yield _entry(name, size=size).tobuf(tarfile.GNU_FORMAT)
    sent = 0
    while sent < size and (piece := await anyio.to_thread.run_sync(file.read, min(PIECE, size - sent))):
        sent += len(piece)
        yield piece
    if sent < size:
        raise SandboxError(f"{file.name} became shorter while it was copied to the container")
    yield bytes(-size % BLOCK + 2 * BLOCK)


def _entry(name: str, *, size: int = 0, folder: bool = False) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = tarfile.DIRTYPE if folder else tarfile.REGTYPE
    entry.mode = 0o755 if folder else 0o644
    entry.size = size
    return entry
