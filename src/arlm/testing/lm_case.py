"""A case of the client suite: one claim about every client, as an async function of an open Bench."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from .lm_bench import Bench

Need = Literal["server", "models", "sampling", "usage", "cost", "cache_write", "finish", "thinking", "partly_filtered", "stream", "key"]
NEEDS: frozenset[str] = frozenset(get_args(Need))

Claim = Callable[["Bench"], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A claim.

    Attributes:
        name: the function's own.
        run: raises AssertionError where the claim does not hold.
        needs: what a client must have for it to say anything: ``server``, an HTTP server behind it; ``models``, other models under
            ``model=``; ``sampling``, sampling options; ``usage``, ``cost``, ``cache_write``, ``finish``, replies that tell tokens, a cost,
            tokens written to a cache, why they ended; ``thinking``, a place for thoughts beside the text; ``partly_filtered``, replies of
            which a filter left a part; ``stream``, replies that may be streamed; ``key``, a key that it sends.
    """

    name: str
    run: Claim
    needs: frozenset[Need]

    def __str__(self) -> str:
        return self.name


class Cases(list[Case]):
    """The cases of one module, in the order they are written."""

    def case(self, *needs: Need) -> Callable[[Claim], Claim]:
        """Add the decorated function."""

        def add(run: Claim) -> Claim:
            self.append(Case(name=getattr(run, "__name__", ""), run=run, needs=frozenset(needs)))
            return run

        return add
