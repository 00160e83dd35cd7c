"""What a wire of the scripted provider is: it reads a request of one vendor, and says replies and troubles in that vendor's words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from ..provider_script import Script

CHARS_A_TOKEN = 4  # the provider's rule for counting tokens
STREAMED_PIECES = 8  # a text is streamed in that many pieces at most, so that a long one stays cheap
SHORTEST_PIECE = 16  # characters

Message = Mapping[str, Any]
Body = dict[str, Any]
Event = tuple[str, Body]

What = Literal["key", "body", "url", "model", "wire", "context", "output", "prompt", "rate", "fault"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What a call used, in arlm's terms: ``prompt`` includes the cached and the written ones, ``completion`` the reasoning."""

    prompt: int
    completion: int
    cached: int
    cache_write: int | None
    reasoning: int
    cost: float | None

    @property
    def fresh(self) -> int:
        """Input tokens that were neither read from the cache nor written to it."""
        return self.prompt - self.cached - (self.cache_write or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One reply, ready to be said on any wire. A refusal has no text."""

    text: str | None
    tokens: Tokens
    is_root: bool
    fault: str | None
    delay: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request, in no vendor's words: ``messages`` are dicts of role and text content, the system message first."""

    model: str
    messages: Sequence[Message]
    stream: bool = False
    max_tokens: int | None = None
    stops: Sequence[str] = ()

    @property
    def chars(self) -> int:
        """The length of the whole conversation."""
        return sum(len(message.get("content") or "") for message in self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why a call gets no reply, in no vendor's words.

    Attributes:
        what: the kind; ``fault`` is a scripted failure, known by its status alone.
        status: the HTTP status, which a wire may replace by its own for that kind.
        told: further words.
        model: the model asked for.
        key: the key that was not let in.
        tokens: how many were asked for.
        most: how many there may be.
        wait: seconds to wait before the next try, where the script names them.
    """

    what: What
    status: int
    told: str = ""
    model: str = ""
    key: str = ""
    tokens: int = 0
    most: int = 0
    wait: float | None = None

    def say(self, template: str) -> str:
        """The template with this trouble's facts in it."""
        return template.format(told=self.told, model=self.model, key=self.key, tokens=self.tokens, most=self.most, status=self.status)


class Wire(Protocol):
    """One vendor's protocol. Stateless; ``number`` makes the ids of one reply differ from another's.

    Attributes:
        name: as the board's requests tell it.
        id_header: the header that carries a request's id.
        says_wait_in_headers: whether Retry-After is a header; else it stands in the error's body.
        streams: whether a reply can be streamed.
    """

    name: str
    id_header: str
    says_wait_in_headers: bool
    streams: bool

    def recognises(self, path: str) -> bool:
        """Whether a POST to this path is a call on this wire."""
        ...

    def is_spoken(self, path: str, headers: Mapping[str, str]) -> bool:
        """Whether a request that is no call comes from a client of this wire."""
        ...

    def key(self, headers: Mapping[str, str]) -> str:
        """The key sent along; empty without one."""
        ...

    def asked(self, path: str, headers: Mapping[str, str], body: Any) -> Asked:
        """Read a request. Raises ValueError, in the vendor's words, LookupError or TypeError for one that is none."""
        ...

    def trouble(self, asked: Asked, script: Script) -> Trouble | None:
        """What this vendor alone has against a request; None: nothing."""
        ...

    def reply(self, asked: Asked, answer: Answer, script: Script, number: int) -> Body:
        """The body of a reply."""
        ...

    def events(self, asked: Asked, answer: Answer, script: Script, number: int) -> list[Event]:
        """The same reply as server-sent events, name and data."""
        ...

    def error(self, trouble: Trouble, number: int) -> tuple[int, Body]:
        """Status and body of an error."""
        ...

    def models(self, script: Script, path: str) -> Body:
        """The list of models."""
        ...

    def model(self, name: str, script: Script) -> Body:
        """One model."""
        ...


def bearer(headers: Mapping[str, str]) -> str:
    """The key in the Authorization header."""
    return headers.get("authorization", "").removeprefix("Bearer ")


def tokens_in(chars: int) -> int:
    """How many tokens a text of that many characters has."""
    return math.ceil(chars / CHARS_A_TOKEN)


def joined(content: Any, *, kinds: tuple[str, ...] = ("text",)) -> str:
    """The text of a message's content: a string, or a list of parts of which those of these types count."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part["text"] for part in content if part.get("type", "text") in kinds)


def pieces(text: str) -> list[str]:
    """A text in the pieces in which it is streamed."""
    size = max(SHORTEST_PIECE, math.ceil(len(text) / STREAMED_PIECES))
    return [text[start : start + size] for start in range(0, len(text), size)]
