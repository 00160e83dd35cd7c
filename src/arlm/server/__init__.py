"""The host's side of the wire."""

from __future__ import annotations

from .handler import LMHandler

__all__ = ["LMHandler"]
