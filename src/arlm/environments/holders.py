"""Processes that hold the large contexts of a place, so that its workers share their memory."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SandboxError
from ..server.peer import CallError, PeerLost
from .control import Control, ForkedWorker

SAMPLE_BYTES = 1024 * 1024  # of a JSON file, to tell whether its strings are long
LONG_BYTES = 8 * 1024  # of a string: using it changes one page of several
HOLD_BYTES = 8 * 1024 * 1024  # of files: a smaller context is loaded sooner than a process is forked twice, and its copies are affordable
LOAD_SECONDS = 120.0  # a context of a gigabyte takes two seconds as text and ten as JSON

Files = tuple[tuple[str, str], ...]


class Holders:
    """The holders of one place: one for each set of large contexts, shared by its workers.

    Python counts references inside an object, so that using one gives the worker a copy of its page. A text or a list of long ones is held
    from the first worker on; where the values are small, a worker that is alone loads them by itself, since it would end up with both
    copies. A holder without workers stays until the next one is made or falls idle: a worker that is killed is most often replaced.

    Args:
        on_host: the path on the host of what workers see under a path.
    """

    def __init__(self, on_host: Callable[[str], str] = str) -> None:
        self._on_host = on_host
        self._known: dict[tuple[Files, int | None], Holder] = {}
        self._alone: collections.Counter[Files] = collections.Counter()

    async def find(self, control: Control, files: Iterable[tuple[str, str]], memory_limit: int | None) -> Holder | None:
        """The holder of these files, claimed, made if there is none and they are large; None: workers load them by themselves.

        Raises:
            SandboxError: loading took too long.

        Cancelled, it leaves the holder to the next who asks, and to ``order_kill``.
        """
        wanted = tuple(dict.fromkeys(files))
        if not wanted or sum(_size(self._on_host(path)) for path, _ in wanted) < HOLD_BYTES:
            return None
        key = (wanted, memory_limit)
        holder = self._known.get(key)
        if holder is None and not self._alone[wanted] and not all(_is_coarse(self._on_host(path), kind) for path, kind in wanted):
            return None
        if holder is None or not holder.lives:
            self._drop_idle(keep=0)
            try:
                holder = self._known[key] = Holder(*control.hold(wanted, memory_limit))
            except PeerLost:
                return None
        holder.claims += 1
        try:
            if await holder.has_loaded():
                return holder
        except BaseException:
            self.release(holder)
            raise
        self.release(holder)
        return None

    def loads_alone(self, worker: ForkedWorker, files: Iterable[tuple[str, str]]) -> None:
        """A worker was started that has copies of its own."""
        wanted = tuple(dict.fromkeys(files))
        if wanted:
            self._alone[wanted] += 1
            worker.exited.add_done_callback(lambda _: self._alone.subtract([wanted]))

    def release(self, holder: Holder) -> None:
        """Give a claim back that ``find`` has taken: the worker has ended, or was not started."""
        holder.claims -= 1
        self._drop_idle(keep=1)

    def _drop_idle(self, keep: int) -> None:
        self._known = {key: holder for key, holder in self._known.items() if holder.lives}
        idle = [key for key, holder in self._known.items() if holder.claims == 0 and holder.loading.done()]
        for key in idle[: max(0, len(idle) - keep)]:
            self._known.pop(key).worker.order_kill()

    def order_kill(self) -> list[asyncio.Future[Any]]:
        """Order the death of all; each future is done when one is dead."""
        holders, self._known = list(self._known.values()), {}
        return [order for holder in holders if (order := holder.worker.order_kill()) is not None]


@dataclass(slots=True)
class Holder:
    """One process with values in it.

    Attributes:
        worker: the process; its name is what ``spawn`` takes.
        loading: done once it has loaded, or will not.
        claims: workers that were forked from it and live, or are about to be.
    """

    worker: ForkedWorker
    loading: asyncio.Future[Any]
    claims: int = 0

    @property
    def lives(self) -> bool:
        """Whether the process is there."""
        return not self.worker.exited.done()

    async def has_loaded(self) -> bool:
        """Wait until it has loaded; False when it cannot. Raises SandboxError when it takes too long."""
        await asyncio.wait({self.loading}, timeout=LOAD_SECONDS)
        if not self.loading.done():
            self.worker.order_kill()
            raise SandboxError(f"the contexts were not loaded within {LOAD_SECONDS:g} s")
        with contextlib.suppress(CallError, PeerLost):  # workers load by themselves and meet the error, which is told there
            self.loading.result()
            return self.lives
        return False


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def _is_coarse(path: str, kind: str) -> bool:
    """Whether a value consists of large objects, as far as the beginning of the file tells."""
    if kind != "json":
        return True
    with contextlib.suppress(OSError), Path(path).open("rb") as file:
        sample = file.read(SAMPLE_BYTES)
        quotes = sample.count(b'"') - sample.count(b'\\"')
        return quotes > 0 and len(sample) * 2 > quotes * LONG_BYTES
    return False
