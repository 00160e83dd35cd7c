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

from ._version import __version__
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
