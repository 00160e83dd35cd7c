"""arlm: Recursive Language Models on one event loop.

A map of the package, from the bottom up; imports point only downwards in this list, from cli to guest.

    guest/         programs that run where model-written code runs (standard library only)
    types errors   values and exceptions; they know nobody
    server/        LMHandler: frames, tokens, calls in both directions
    clients/       language models: one file a provider
    environments/  places where code runs: one file a kind
    options events prompts parsing functions ledger calls   parts of a run: one noun a file
    node loop running session rlm   the run tree, the root loop, one run, sessions, the public functions
    testing/       what tests of arlm and of its plug-ins are made of
    cli/           the command line
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .clients.base import BaseLM
    from .errors import (
        ArlmError,
        AuthError,
        BadRequest,
        CallLimit,
        ConfigError,
        ConnectionFailed,
        ContextTooLong,
        CostLimit,
        ErrorLimit,
        LimitError,
        Overloaded,
        ProtocolError,
        ProviderError,
        RateLimited,
        Refused,
        RunTimeout,
        SandboxError,
        TokenLimit,
    )
    from .rlm import RLM, run, run_sync, stream
    from .session import Session
    from .streaming import RunStream
    from .tools import Tool
    from .types import CellResult, Completion, Message, ModelUsage, Result, TokenUsage, UsageSummary

__all__ = [
    "RLM",
    "ArlmError",
    "AuthError",
    "BadRequest",
    "BaseLM",
    "CallLimit",
    "CellResult",
    "Completion",
    "ConfigError",
    "ConnectionFailed",
    "ContextTooLong",
    "CostLimit",
    "ErrorLimit",
    "LimitError",
    "Message",
    "ModelUsage",
    "Overloaded",
    "ProtocolError",
    "ProviderError",
    "RateLimited",
    "Refused",
    "Result",
    "RunStream",
    "RunTimeout",
    "SandboxError",
    "Session",
    "TokenLimit",
    "TokenUsage",
    "Tool",
    "UsageSummary",
    "__version__",
    "run",
    "run_sync",
    "stream",
]

_ERRORS = """ArlmError AuthError BadRequest CallLimit ConfigError ConnectionFailed ContextTooLong CostLimit ErrorLimit LimitError Overloaded
    ProtocolError ProviderError RateLimited Refused RunTimeout SandboxError TokenLimit"""
_HOMES = {
    "rlm": "RLM run run_sync stream",
    "session": "Session",
    "streaming": "RunStream",
    "tools": "Tool",
    "types": "CellResult Completion Message ModelUsage Result TokenUsage UsageSummary",
    "clients.base": "BaseLM",
    "errors": _ERRORS,
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    """Import a public name, or a module of the package, when it is first used: `import arlm` alone costs next to nothing."""
    if name in _HOME_OF:
        value: object = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    else:
        try:
            value = import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
