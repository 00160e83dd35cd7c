"""Places where code runs. Each is registered in the entry-point group ``arlm.environments``."""

from __future__ import annotations

from .base import Environment, Place, Worker
from .process import ProcessREPL

__all__ = ["Environment", "Place", "ProcessREPL", "Worker"]
