"""What one model object's calls used: sums by model, and each task's last call."""

from __future__ import annotations

import asyncio
import threading
import weakref
from asyncio import CancelledError
from contextvars import ContextVar
from typing import TYPE_CHECKING

from ..errors import ConfigError, ProviderError
from ..types import Completion, ModelUsage, TokenUsage, UsageSummary

if TYPE_CHECKING:
    from types import TracebackType

_TOKEN_FIELDS = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")


class Tally:
    """Sums over calls. Safe for calls on several loops in several threads.

    Args:
        parent: gets every call too: the sums of a child are part of its parent's.
    """

    def __init__(self, parent: Tally | None = None) -> None:
        self._parent = parent
        self._lock = threading.Lock()
        self._sums: dict[str, _Sum] = {}

    def call(self, name: str) -> Call:
        """A context manager around one call; ``name`` is its usage key until the reply says otherwise."""
        return Call(self, name)

    def summary(self) -> UsageSummary:
        """The sums so far."""
        with self._lock:
            return UsageSummary(models={name: total.usage() for name, total in self._sums.items()})

    def add(self, name: str, usage: TokenUsage, *, failed: bool = False, cancelled: bool = False) -> None:
        """Count one call."""
        with self._lock:
            total = self._sums.get(name)
            if total is None:
                total = self._sums[name] = _Sum()
            total.add(usage, failed=failed, cancelled=cancelled)
        if self._parent is not None:
            self._parent.add(name, usage, failed=failed, cancelled=cancelled)

    def remember(self, usage: TokenUsage) -> None:
        """Make ``usage`` the running task's last call."""
        last = _last.get()
        if last is None or not last.is_mine():
            last = _LastCalls()
            _last.set(last)
        last.by_tally[self] = usage

    def last(self) -> TokenUsage:
        """What the running task's last call used."""
        last = _last.get()
        found = last.by_tally.get(self) if last is not None and last.is_mine() else None
        return TokenUsage() if found is None else found


class Call:
    """One call being made: counts it, however it ends. A ConfigError means that nothing was sent."""

    __slots__ = ("_completion", "_name", "_tally")

    def __init__(self, tally: Tally, name: str) -> None:
        self._tally = tally
        self._name = name
        self._completion: Completion | None = None

    def answered(self, completion: Completion) -> None:
        """The call's reply."""
        self._completion = completion

    def __enter__(self) -> Call:
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None) -> None:
        if error is None and self._completion is not None:
            self._tally.add(self._completion.model, self._completion.usage)
            self._tally.remember(self._completion.usage)
        elif not isinstance(error, ConfigError):
            billed = error.usage if isinstance(error, ProviderError) else None
            cancelled = isinstance(error, CancelledError)
            self._tally.add(self._name, billed or TokenUsage(), failed=not cancelled, cancelled=cancelled)


class _Sum:
    """A ModelUsage that is being added up."""

    __slots__ = ("calls", "cancelled", "cost", "failed", "tokens", "unpriced")

    def __init__(self) -> None:
        self.calls = self.failed = self.cancelled = 0
        self.tokens: dict[str, int] = {}
        self.cost: float | None = None
        self.unpriced = False

    def add(self, usage: TokenUsage, *, failed: bool, cancelled: bool) -> None:
        self.calls += 1
        self.failed += failed
        self.cancelled += cancelled
        for name in _TOKEN_FIELDS:
            if (tokens := getattr(usage, name)) is not None:
                self.tokens[name] = self.tokens.get(name, 0) + tokens
        if usage.cost_usd is not None:
            self.cost = (self.cost or 0.0) + usage.cost_usd
        elif not failed and not cancelled:
            self.unpriced = True

    def usage(self) -> ModelUsage:
        return ModelUsage(
            calls=self.calls,
            failed=self.failed,
            cancelled=self.cancelled,
            cost_usd=None if self.unpriced else self.cost,
            **self.tokens,
        )


class _LastCalls:
    """One task's last calls. A child task inherits the context variable, so the owner is written down."""

    def __init__(self) -> None:
        self.by_tally: weakref.WeakKeyDictionary[Tally, TokenUsage] = weakref.WeakKeyDictionary()
        self._owner = _current_task()

    def is_mine(self) -> bool:
        mine = _current_task()
        return self._owner is mine if mine is None or self._owner is None else self._owner() is mine()


_last: ContextVar[_LastCalls | None] = ContextVar("arlm_last_calls", default=None)


def _current_task() -> weakref.ref[asyncio.Task[object]] | None:
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return None
    return None if task is None else weakref.ref(task)
