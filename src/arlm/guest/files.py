"""Folders that hostile code has had: how to remove them whatever is in them."""

from __future__ import annotations

import itertools
import os
from typing import Iterator, Set

FORGET_AT = 64  # folders kept in mind before those that are gone are looked for

_numbers = itertools.count()


class Folders:
    """Folders to be removed in the end, by whoever is left to do it. Those that are gone are forgotten now and then."""

    def __init__(self) -> None:
        self._known: Set[str] = set()
        self._forget_at = FORGET_AT

    def add(self, folder: str) -> None:
        """Keep one more in mind."""
        self._known.add(folder)
        if len(self._known) > self._forget_at:
            self._known = {known for known in self._known if os.path.isdir(known)}
            self._forget_at = 2 * len(self._known) + FORGET_AT

    def remove(self) -> None:
        """Remove all of them, whatever is in them."""
        for folder in self._known:
            remove_tree(folder)


def remove_tree(root: str) -> None:
    """Remove a folder with all that is in it; what cannot be removed is left, and nothing is raised.

    Folders are moved up one by one instead of being descended into: neither a tree deeper than Python's stack or the system's longest path
    nor one without permissions stays. Links are removed, never followed.
    """
    _open_up(root)
    left = -1
    while True:
        entries = list(_entries(root))
        if not entries or len(entries) == left:
            break
        left = len(entries)
        for entry in entries:
            if _is_folder(entry):
                left = -1 if _lift(root, entry.path) else left
            else:
                _unlink(entry.path)
    try:
        os.rmdir(root)
    except OSError:
        pass


def _lift(root: str, folder: str) -> bool:
    """Move the folders in ``folder`` up into ``root``, remove all else in it, and it. True when something moved."""
    _open_up(folder)
    moved = False
    for entry in _entries(folder):
        if not _is_folder(entry):
            _unlink(entry.path)
            continue
        _open_up(entry.path)
        try:
            os.rename(entry.path, os.path.join(root, f".removed-{os.getpid()}-{next(_numbers)}"))
            moved = True
        except OSError:
            pass
    try:
        os.rmdir(folder)
    except OSError:
        pass
    return moved


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            yield from list(found)
    except OSError:
        return


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _open_up(folder: str) -> None:
    try:
        os.chmod(folder, 0o700)
    except OSError:
        pass


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
