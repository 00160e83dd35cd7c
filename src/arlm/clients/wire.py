"""What a wire is: how one kind of provider is asked, and what its replies say. A client has one, or several to choose from."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from ..types import Completion, Message, TokenUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call, ready to be sent.

    Attributes:
        route: what tells the URLs of this provider apart; the SDK makes the URL and the headers from it.
        body: JSON in UTF-8.
    """

    route: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: status, headers (lower-case names), body. Only the status is shown: a provider may repeat what it was sent."""

    status: int
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What an error object says.

    Attributes:
        code: the provider's own word for it.
        message: its sentence.
        status: an HTTP status, where it names one other than the reply's.
        retry_after: seconds, where the body says so.
        usage: what it billed.
    """

    code: str = ""
    message: str = ""
    status: int | None = None
    retry_after: float | None = None
    usage: TokenUsage | None = None


class Wire(ABC):
    """One provider's way of saying things. Knows no connection; all of it is computation on what was sent and what came."""

    @abstractmethod
    def request(self, model: str, messages: Sequence[Message], sampling: Mapping[str, Any] | None) -> Request:
        """The request of one call. Raises ConfigError for an option that the provider does not have."""

    @abstractmethod
    def options(self, model: str, sampling: Mapping[str, Any] | None) -> dict[str, Any]:
        """The sampling options as fields of the body. Raises ConfigError."""

    def parsed(self, body: bytes, kind: str) -> Any:
        """The reply as JSON; ``kind`` is its content type. Raises ValueError."""
        return json.loads(body)

    @abstractmethod
    def error_of(self, parsed: Any, *, failed: bool) -> Told | None:
        """What an error object says; None of a reply that is none. ``failed``: its status says that it is one."""

    @abstractmethod
    def refusal_of(self, parsed: Any) -> str | None:
        """Why the provider or the model declined, where it did."""

    @abstractmethod
    def completion_of(self, parsed: Any, name: str) -> Completion:
        """The completion in a reply. Raises KeyError, TypeError, IndexError or AttributeError where it is none."""

    @abstractmethod
    def usage_of(self, parsed: Any) -> TokenUsage:
        """What a whole reply says it used."""

    def usage_of_piece(self, body: bytes) -> TokenUsage | None:
        """What is known to be billed of a reply that was cut off after ``body``."""
        return None


def encoded(fields: Mapping[str, Any]) -> bytes:
    """JSON in UTF-8. A lone surrogate, which no UTF-8 and no strict JSON parser knows, is sent as U+FFFD.

    Raises:
        ConfigError: something in it is no JSON.
    """
    try:
        body = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a message or sampling option cannot be sent as JSON: {error}") from error
    try:
        return body.encode()
    except UnicodeEncodeError:
        return body.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def count(value: Any) -> int | None:
    """The value if it is a count of tokens."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def plus(*counts: int | None) -> int | None:
    """The sum of what is known; None when nothing is."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
