"""How many REPLs of a run tree may run at once, without a parent ever waiting for a slot that it holds itself."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Holder:
    """A node's slot. While children of it are asked for or run, it is lent."""

    children: int = 0


class ReplSlots:
    """``max_repls`` of one run tree; the root's REPL holds the first.

    A child waits for a slot, first in, first out over the whole tree. Its parent, which waits for it, lends its own meanwhile; the parent's
    last child hands its slot back to it. A parent never waits to go on, so the tree cannot lock itself up, at any depth and with one slot.

    Args:
        most: slots in all.

    Attributes:
        used: REPLs that run now. It may pass ``most`` by those parents whose children ended without having had a slot.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 1
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """Children that wait for a slot."""
        return sum(not place.done() for place in self._waiting)

    @asynccontextmanager
    async def child_of(self, parent: Holder) -> AsyncIterator[Holder]:
        """A slot for a child, and the parent's own lent for as long as it has a child. Cancelled, it gives both back."""
        self._lend(parent)
        try:
            await self._take()
        except BaseException:
            self._take_back(parent)
            raise
        try:
            yield Holder()
        finally:
            self._take_back(parent)  # first: the last child's slot goes to its parent, and not to a child that waits
            self._give()

    def _lend(self, parent: Holder) -> None:
        parent.children += 1
        if parent.children == 1:
            self._give()

    def _take_back(self, parent: Holder) -> None:
        parent.children -= 1
        if parent.children == 0:
            self.used += 1

    async def _take(self) -> None:
        if self.used < self.most and not self._waiting:
            self.used += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                self._wake()
            else:
                self._give()
            raise

    def _give(self) -> None:
        self.used -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting and (self.used < self.most or self._waiting[0].done()):
            place = self._waiting.popleft()
            if not place.done():
                self.used += 1
                place.set_result(None)
