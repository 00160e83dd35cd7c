"""Places where code runs. Each is registered in the entry-point group ``arlm.environments``."""

from __future__ import annotations

from .base import Environment, Place, Worker
from .docker import DockerREPL
from .local import LocalREPL
from .process import ProcessREPL

__all__ = ["DockerREPL", "Environment", "LocalREPL", "Place", "ProcessREPL", "Worker"]
