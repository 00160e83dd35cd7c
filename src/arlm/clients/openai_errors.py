"""The one place where a failed OpenAI-compatible call becomes one of arlm's errors."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import AuthError, BadRequest, ConnectionFailed, ContextTooLong, Overloaded, ProviderError, RateLimited, Refused
from .openai_wire import usage_of

if TYPE_CHECKING:
    from .openai_rows import Endpoint

BODY_CHARS = 80  # of a reply that is not understood
BODY_BYTES = 65_536  # of it that are looked at
TOLD_CHARS = 500  # of the provider's own words in a message
PIECE_CHARS = 12  # of a key that may not be seen together; providers themselves show less
SHORTEST_SECRET = 6  # characters; shorter "keys" are placeholders such as "none", and blotting them out would garble every message


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of failure: which error it is, and what to do about it."""

    kind: type[ProviderError]
    advice: str


# What the provider says is more precise than its status, so codes and words are looked up first.
BY_CODE: Mapping[str, Rule] = {
    "context_length_exceeded": Rule(
        ContextTooLong, "the prompt does not fit the model's window: send less, or let code cut it into pieces"
    ),
    "insufficient_quota": Rule(AuthError, "the account behind {key} has no credit left"),
    "content_filter": Rule(Refused, "the provider's safety filter stopped the call"),
    "content_policy_violation": Rule(Refused, "the provider's safety filter stopped the call"),
    "model_not_found": Rule(BadRequest, "check the model's name, and whether {key} may use it"),
    "DeploymentNotFound": Rule(BadRequest, "check the deployment's name and {url}"),
}
TOO_LONG = re.compile(r"context (length|window|size)|prompt is too long|too many (input )?tokens|maximum.{0,20}tokens", re.IGNORECASE)
BY_STATUS: Mapping[int, Rule] = {
    400: Rule(BadRequest, "the provider did not accept the request"),
    401: Rule(AuthError, "the key was not accepted: check {key}"),
    402: Rule(AuthError, "the account behind {key} has no credit left"),
    403: Rule(AuthError, "the key in {key} may not do this"),
    404: Rule(BadRequest, "not found: check the model's name and the base URL {url}"),
    405: Rule(BadRequest, "this is no Chat Completions endpoint: check the base URL {url}"),
    408: Rule(ConnectionFailed, "the provider gave up waiting"),
    409: Rule(Overloaded, "the provider could not serve the call now"),
    413: Rule(ContextTooLong, "the request is larger than the provider takes: send less"),
    422: Rule(BadRequest, "the provider did not accept the request"),
    425: Rule(Overloaded, "the provider could not serve the call now"),
    429: Rule(RateLimited, "too many requests"),
    529: Rule(Overloaded, "the provider is overloaded"),
}
REDIRECT = Rule(BadRequest, "the base URL {url} redirects elsewhere: set it to where it leads")
SERVER = Rule(Overloaded, "the provider failed")
OTHER = Rule(BadRequest, "the provider did not accept the request")


def status_error(endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """The error of a reply whose status is not 2xx, or whose body is an error object."""
    parsed = _parsed(body)
    told = _mapping(parsed.get("error", parsed) if isinstance(parsed, Mapping) else None)
    message = str(told.get("message") or (parsed.get("error") if isinstance(parsed, Mapping) else "") or "")
    rule = _rule(status, str(told.get("code") or told.get("type") or ""), message)
    if not message and status not in (401, 403, 429) and status < 500:
        start = without_key(endpoint, body[:BODY_BYTES].decode("utf-8", "replace"))[:BODY_CHARS]  # in this order: half a key is one too
        message = f"the reply was {start.strip()!r}" if body else "the reply was empty"
    return rule.kind(
        _sentence(endpoint, f"{status}", rule, message),
        provider=endpoint.row.name,
        status=status,
        retry_after=retry_after(headers),
        usage=usage_of(parsed.get("usage")) if isinstance(parsed, Mapping) and parsed.get("usage") else None,
    )


def body_error(endpoint: Endpoint, status: int, kind: str, body: bytes) -> ProviderError:
    """The error of a 2xx reply that is no chat completion: a web page means a wrong URL, broken JSON a cut connection."""
    if "html" in kind.lower() or body.lstrip()[:1] == b"<":
        rule = Rule(BadRequest, "a web page came back where a reply was expected: is the base URL {url} right?")
    elif _parsed(body) is not None:
        rule = Rule(BadRequest, "the reply is JSON but no chat completion: is the base URL {url} right?")
    else:
        rule = Rule(ConnectionFailed, f"the reply is not valid JSON ({len(body):,} bytes); it was probably cut off")
    return rule.kind(_sentence(endpoint, f"{status}", rule, ""), provider=endpoint.row.name, status=status)


def refused(endpoint: Endpoint, reason: str, usage: Any) -> ProviderError:
    """The error of a reply in which the model or a filter declined."""
    return Refused(_sentence(endpoint, "", Rule(Refused, "declined to answer"), reason), provider=endpoint.row.name, usage=usage_of(usage))


def connection_error(
    endpoint: Endpoint, advice: str, error: BaseException, *, kind: type[ProviderError] = ConnectionFailed
) -> ProviderError:
    """The error of a call that got no whole reply."""
    return kind(_sentence(endpoint, "", Rule(kind, advice), str(error)), provider=endpoint.row.name)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the provider asks us to wait: ``retry-after-ms``, or ``Retry-After`` in seconds or as an HTTP date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        return max(0.0, seconds) if seconds == seconds else None  # nan is not equal to itself
    until = _moment(headers.get("retry-after"))
    # The reply's own date, because this machine's clock may be wrong by any amount, and may jump.
    now = _moment(headers.get("date")) or time.time()
    return None if until is None else max(0.0, until - now)


def _moment(date: str | None) -> float | None:
    """Seconds since 1970 of an HTTP date."""
    try:
        return None if date is None else email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None


def _rule(status: int, code: str, message: str) -> Rule:
    if (rule := BY_CODE.get(code)) is not None:
        return rule
    if status in (400, 413, 422) and TOO_LONG.search(message):
        return BY_CODE["context_length_exceeded"]
    if (rule := BY_STATUS.get(status)) is not None:
        return rule
    return SERVER if status >= 500 else REDIRECT if 300 <= status < 400 else OTHER


def _sentence(endpoint: Endpoint, status: str, rule: Rule, told: str) -> str:
    key = endpoint.row.key_variable or "the key"
    advice = rule.advice.replace("{key}", key).replace("{url}", endpoint.shown_url)
    words = " ".join(without_key(endpoint, told).split())
    said = f" ({words[:TOLD_CHARS]}{'…' if len(words) > TOLD_CHARS else ''})" if words else ""
    return f"{endpoint.row.name}{f' {status}' if status else ''}: {advice}{said}"


def without_key(endpoint: Endpoint, text: str) -> str:
    """A text in which the key is blotted out, and each longer piece of it: others cut their messages where they like."""
    key = endpoint.api_key
    if not key or len(key) < SHORTEST_SECRET:
        return text
    text = text.replace(key, "***")
    for start in range(len(key) - PIECE_CHARS + 1):
        while (at := text.find(key[start : start + PIECE_CHARS])) >= 0:
            size = PIECE_CHARS
            while text[at + size : at + size + 1] == key[start + size : start + size + 1] != "":
                size += 1
            text = f"{text[:at]}***{text[at + size :]}"
    return text


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
