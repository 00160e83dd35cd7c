"""What all nodes of a run tree share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import anyio

from .calls import Caller, Models
from .events import Emit
from .home import SubSite
from .options import RunOptions
from .slots import ReplSlots
from .tools import Tools


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """One run with its children, their children, and so on.

    Attributes:
        deadline: loop time at which ``timeout`` ends it, or None.
        slots: REPLs that may run at once.
        sub_tools: the children's tools; None: their parent's.
        sub_site: where children run; None: beside their parent.
        tool_threads: how many synchronous tools run at once.
    """

    run_id: str
    options: RunOptions
    models: Models
    caller: Caller
    emit: Emit
    deadline: float | None
    slots: ReplSlots
    sub_tools: Tools | None
    sub_site: SubSite | None
    tool_threads: anyio.CapacityLimiter

    def left(self) -> dict[str, float]:
        """What is left of each limit, by option name."""
        left = self.caller.ledger.left()
        if self.deadline is not None:
            left["timeout"] = max(0.0, self.deadline - asyncio.get_running_loop().time())
        return left

    def may_have_children(self, depth: int) -> bool:
        """Whether a node at ``depth`` (0: the root) may have child runs."""
        return depth + 1 < self.options["max_depth"]
