"""The host's side of the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .handler import LMHandler

if TYPE_CHECKING:
    from .poller import Poller

__all__ = ["LMHandler", "Poller"]


def __getattr__(name: str) -> Any:
    if name == "Poller":  # brings aiohttp along
        from .poller import Poller

        return Poller
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
