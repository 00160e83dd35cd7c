"""A conformance case: one claim about every environment, as an async function of an open Bench."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .bench import Bench

DEFAULT_CELL_TIMEOUT = 60.0  # seconds; no case but those about stopping comes near


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A claim.

    Attributes:
        name: the function's own.
        run: raises AssertionError where the claim does not hold.
        cell_timeout: of the Bench that it is run with, seconds.
        memory_limit: the same, bytes or None.
        slow: takes seconds rather than milliseconds.
    """

    name: str
    run: Callable[[Bench], Awaitable[None]]
    cell_timeout: float
    memory_limit: int | None
    slow: bool

    def __str__(self) -> str:
        return self.name

    @property
    def claim(self) -> str:
        """The name as a sentence."""
        return self.name.replace("_", " ")


class Cases(list[Case]):
    """The cases of one module, in the order they are written."""

    def case(
        self, *, cell_timeout: float = DEFAULT_CELL_TIMEOUT, memory_limit: int | None = None, slow: bool = False
    ) -> Callable[[Callable[[Bench], Awaitable[None]]], Callable[[Bench], Awaitable[None]]]:
        """Add the decorated function."""

        def add(run: Callable[[Bench], Awaitable[None]]) -> Callable[[Bench], Awaitable[None]]:
            name = getattr(run, "__name__", "")
            self.append(Case(name=name, run=run, cell_timeout=cell_timeout, memory_limit=memory_limit, slow=slow))
            return run

        return add
