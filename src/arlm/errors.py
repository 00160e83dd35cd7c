"""The errors of arlm, one tree.

    ArlmError
    ├── ConfigError                      an option, name, key or input is wrong; nothing was started
    ├── LimitError                       a limit of the run ended it (limit, used, allowed, partial)
    │   ├── CallLimit                    max_calls
    │   ├── TokenLimit                   max_total_tokens
    │   ├── CostLimit                    max_cost_usd
    │   ├── ErrorLimit                   max_errors
    │   └── RunTimeout (TimeoutError)    timeout
    ├── ProviderError                    a model call failed (provider, status, retry_after)
    │   ├── AuthError                    the key is missing, wrong or not allowed
    │   ├── RateLimited                  429: retried
    │   ├── Overloaded                   5xx, 529 or an "overloaded" body: retried
    │   ├── ContextTooLong               the prompt does not fit the model
    │   ├── Refused                      the provider declined to answer (safety, policy)
    │   ├── BadRequest                   the provider did not accept the request
    │   └── ConnectionFailed             no answer: not reachable, cut off, timed out: retried
    ├── SandboxError                     the place where code runs could not start or was lost
    └── ProtocolError                    the other side broke the rules of the wire

An error in the model's own code is data for the model and never appears here. Cancellation is never renamed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from .types import Result, TokenUsage


def describe(error: BaseException) -> str:
    """``"TypeError: what it says"``, also of an exception whose own text cannot be made."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__} (its text could not be made)"


class ArlmError(Exception):
    """The root of every error that arlm raises on purpose."""


class ConfigError(ArlmError):
    """Something the caller gave cannot work; nothing was started and nothing was spent."""


class LimitError(ArlmError):
    """A limit ended the run.

    Attributes:
        limit: the option that set it, such as ``"max_calls"``.
        used: what was used when it ended the run, in the limit's own unit.
        allowed: the limit.
        partial: the result so far (usage, trajectory, the best answer there is), or None when it ended before one existed.
    """

    def __init__(self, limit: str, used: float, allowed: float, partial: Result | None = None) -> None:
        self.limit = limit
        self.used = used
        self.allowed = allowed
        self.partial = partial
        super().__init__(f"{limit} reached: {used:,.10g} of {allowed:,.10g} used")


class CallLimit(LimitError):
    """``max_calls``: no further LM call fits."""


class TokenLimit(LimitError):
    """``max_total_tokens``: no further LM call fits."""


class CostLimit(LimitError):
    """``max_cost_usd``: no further LM call fits."""


class ErrorLimit(LimitError):
    """``max_errors``: that many iterations in a row failed."""


class RunTimeout(LimitError, TimeoutError):
    """``timeout``: the run's wall-clock time, in seconds, is over."""


class ProviderError(ArlmError):
    """A call to a model failed.

    Attributes:
        provider: the provider's name, such as ``"openai"``.
        status: the HTTP status, where there was one.
        retry_after: seconds the provider asked us to wait, where it did.
        usage: what the provider billed for the failed call, where it said so.
    """

    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        status: int | None = None,
        retry_after: float | None = None,
        usage: TokenUsage | None = None,
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.status = status
        self.retry_after = retry_after
        self.usage = usage


class AuthError(ProviderError):
    """The key is missing, wrong, or not allowed to use the model."""


class RateLimited(ProviderError):
    """The provider's rate limit; obey ``retry_after``."""

    retryable = True


class Overloaded(ProviderError):
    """The provider could not serve the call now (5xx, 529)."""

    retryable = True


class ContextTooLong(ProviderError):
    """The prompt does not fit the model's window."""


class Refused(ProviderError):
    """The provider declined to answer (safety filter, policy)."""


class BadRequest(ProviderError):
    """The provider did not accept the request: unknown model, bad option, wrong URL."""


class ConnectionFailed(ProviderError):
    """No answer came: not reachable, cut off in the middle, or timed out."""

    retryable = True


class SandboxError(ArlmError):
    """The place where model-written code runs could not be started, or was lost for good."""


class ProtocolError(ArlmError):
    """The other side of a connection broke the rules of the wire; only that connection is lost."""
