"""For whom a place is being opened, and who hears how far that has come: told around a run, read by environments that take long."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

logger = logging.getLogger("arlm.environments")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Who opens places now.

    Attributes:
        name: the run's id, or the session's: what the place is labelled with where that is possible.
        tell: hears of progress.
    """

    name: str
    tell: Callable[[str], object]


_current: ContextVar[Opening | None] = ContextVar("opening", default=None)


@contextmanager
def opening_for(name: str, tell: Callable[[str], object]) -> Iterator[None]:
    """Places that are opened in the block, and by tasks that it starts, are opened for ``name``."""
    token = _current.set(Opening(name=name, tell=tell))
    try:
        yield
    finally:
        _current.reset(token)


def opened_for() -> str:
    """The id of the run or session that opens places now; empty outside of one."""
    current = _current.get()
    return "" if current is None else current.name


def progress(text: str) -> None:
    """Say how far a long opening has come: to the log, and to the run's listeners."""
    logger.info("%s", text)
    current = _current.get()
    if current is not None:
        current.tell(text)
