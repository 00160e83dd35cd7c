"""Which turn of a script is due: counted, or read out of the conversation. Standard library only."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def due(messages: Sequence[Mapping[str, Any]], pattern: str | None = None) -> int:
    """The place of the turn that is due, from 0.

    Args:
        messages: the conversation. Without a pattern, each assistant message in it is a turn that was played.
        pattern: a regular expression whose first group is the turn's number, from 1, for a framework that sends its history as one user
            message. Its last match in the last message counts; without a match the first turn is due.
    """
    if pattern is None:
        return sum(message.get("role") == "assistant" for message in messages)
    found = re.findall(pattern, messages[-1].get("content") or "")
    return max(int(found[-1]) - 1, 0) if found else 0
