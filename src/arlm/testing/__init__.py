"""Doubles for tests, shipped to users: a scripted model, a scripted provider on a real socket, the conformance suites."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .provider import ProviderProcess, ScriptedProvider, start_provider
    from .provider_script import Script
    from .scripted import ScriptedCall, ScriptedLM

__all__ = ["ProviderProcess", "Script", "ScriptedCall", "ScriptedLM", "ScriptedProvider", "start_provider"]

_HOME = {
    "ProviderProcess": "provider",
    "Script": "provider_script",
    "ScriptedCall": "scripted",
    "ScriptedLM": "scripted",
    "ScriptedProvider": "provider",
    "start_provider": "provider",
}


def __getattr__(name: str) -> Any:  # lazily, so that `python -m arlm.testing.provider` starts with the standard library alone
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
