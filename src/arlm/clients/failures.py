"""The one place where a failed call becomes one of arlm's errors."""

from __future__ import annotations

import email.utils
import re
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import AuthError, BadRequest, ConnectionFailed, ContextTooLong, Overloaded, ProviderError, RateLimited, Refused

if TYPE_CHECKING:
    from ..types import TokenUsage
    from .endpoint import Endpoint
    from .wire import Reply, Told

BAD_GATEWAY = 502  # what an error in a reply with status 200 counts as, where it names no status of its own
BODY_CHARS = 80  # of a reply that is not understood
BODY_BYTES = 65_536  # of it that are looked at
TOLD_CHARS = 500  # of the provider's own words in a message
PIECE_CHARS = 12  # of a key that may not be seen together; providers themselves show less
KEPT_SECRETS = 16  # tokens of one endpoint are remembered; the older ones are long expired
SECRET_SETTINGS = frozenset({"virtual_key", "config"})  # what else authenticates, beside the key
SHORTEST_SECRET = 6  # characters; shorter "keys" are placeholders such as "none", and blotting them out would garble every message


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of failure: which error it is, and what to do about it."""

    kind: type[ProviderError]
    advice: str


LONGER = Rule(ContextTooLong, "the prompt does not fit the model's window: send less, or let code cut it into pieces")
TOO_LARGE_EVER = Rule(ContextTooLong, "this call alone is larger than what the account may use in a minute: send less")
NO_CREDIT = Rule(AuthError, "the account behind {key} has no credit left")

# What the provider says is more precise than its status, so codes and words are looked up first.
BY_CODE: Mapping[str, Rule] = {
    "context_length_exceeded": LONGER,
    "string_above_max_length": LONGER,
    "insufficient_quota": NO_CREDIT,
    "billing_not_active": NO_CREDIT,
    "invalid_prompt": Rule(Refused, "the provider takes the prompt for one against its policy"),
    "content_filter": Rule(Refused, "the provider's safety filter stopped the call"),
    "content_policy_violation": Rule(Refused, "the provider's safety filter stopped the call"),
    "model_not_found": Rule(BadRequest, "check the model's name, and whether {key} may use it"),
    "DeploymentNotFound": Rule(BadRequest, "check the deployment's name and {url}"),
    "billing_error": NO_CREDIT,
    "API_KEY_INVALID": Rule(AuthError, "the key was not accepted: check {key}"),
}
TOO_LONG = re.compile(
    r"context (length|window|size|limit)|prompt is too long|too many (input )?tokens|maximum.{0,20}tokens|maximum model length"
    r"|input token count|request_too_large",
    re.IGNORECASE,
)
BY_WORDS = (  # what has the status of something else
    (400, re.compile("credit balance is too low"), NO_CREDIT),  # Anthropic
    (429, re.compile("Request too large"), TOO_LARGE_EVER),  # OpenAI; asked again, it would be refused again
)
BY_STATUS: Mapping[int, Rule] = {
    400: Rule(BadRequest, "the provider did not accept the request"),
    401: Rule(AuthError, "the key was not accepted: check {key}"),
    402: NO_CREDIT,
    403: Rule(AuthError, "the key in {key} may not do this"),
    404: Rule(BadRequest, "not found: check the model's name and the base URL {url}"),
    405: Rule(BadRequest, "no calls are taken there: check the base URL {url}"),
    408: Rule(ConnectionFailed, "the provider gave up waiting"),
    409: Rule(Overloaded, "the provider could not serve the call now"),
    413: Rule(ContextTooLong, "the request is larger than the provider takes: send less"),
    422: Rule(BadRequest, "the provider did not accept the request"),
    425: Rule(Overloaded, "the provider could not serve the call now"),
    429: Rule(RateLimited, "too many requests"),
    446: Rule(Refused, "a guardrail of the gateway stopped the call"),  # Portkey's own status
    529: Rule(Overloaded, "the provider is overloaded"),
}
REDIRECT = Rule(BadRequest, "the base URL {url} redirects elsewhere: set it to where it leads")
SERVER = Rule(Overloaded, "the provider failed")
OTHER = Rule(BadRequest, "the provider did not accept the request")


class Teller:
    """Says what went wrong at one endpoint, and never a secret of it.

    Args:
        endpoint: whose calls failed.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        own = [endpoint.api_key, *(value for name, value in endpoint.settings if name in SECRET_SETTINGS)]
        self._secrets: deque[str] = deque((secret for secret in own if secret), maxlen=KEPT_SECRETS)

    def hide(self, secret: str) -> None:
        """One more text that no message may show: a token that was made for a call."""
        if secret not in self._secrets:
            self._secrets.append(secret)

    def status_error(self, reply: Reply, told: Told) -> ProviderError:
        """The error of a reply whose status is not 2xx, or whose body is an error object."""
        status = told.status or (reply.status if not 200 <= reply.status < 300 else BAD_GATEWAY)
        message = told.message
        rule = _rule(status, told.code, message)
        if not message and status not in (401, 403, 429) and status < 500:
            start = self.without_secrets(reply.body[:BODY_BYTES].decode("utf-8", "replace"))[
                :BODY_CHARS
            ]  # in this order: half a key is one
            message = f"the reply was {start.strip()!r}" if reply.body else "the reply was empty"
        wait = retry_after(reply.headers)
        return rule.kind(
            self._sentence(f"{status}", rule, message),
            provider=self._endpoint.row.name,
            status=status,
            retry_after=told.retry_after if wait is None else wait,
            usage=told.usage,
        )

    def body_error(self, reply: Reply, *, is_json: bool) -> ProviderError:
        """The error of a 2xx reply that is no completion: a web page means a wrong URL, broken JSON a cut connection."""
        if "html" in reply.headers.get("content-type", "").lower() or reply.body.lstrip()[:1] == b"<":
            rule = Rule(BadRequest, "a web page came back where a reply was expected: is the base URL {url} right?")
        elif is_json:
            rule = Rule(BadRequest, "the reply is JSON but no completion: is the base URL {url} right?")
        else:
            rule = Rule(ConnectionFailed, f"the reply is not valid JSON ({len(reply.body):,} bytes); it was probably cut off")
        return rule.kind(self._sentence(f"{reply.status}", rule, ""), provider=self._endpoint.row.name, status=reply.status)

    def refused(self, reason: str, usage: TokenUsage) -> ProviderError:
        """The error of a reply in which the model or a filter declined."""
        return Refused(self._sentence("", Rule(Refused, "declined to answer"), reason), provider=self._endpoint.row.name, usage=usage)

    def connection_error(self, advice: str, error: BaseException, *, kind: type[ProviderError] = ConnectionFailed) -> ProviderError:
        """The error of a call that got no whole reply."""
        return kind(self._sentence("", Rule(kind, advice), str(error)), provider=self._endpoint.row.name)

    def without_secrets(self, text: str) -> str:
        """A text in which each secret is blotted out, and each longer piece of it: others cut their messages where they like."""
        for secret in self._secrets:
            text = _without(text, secret)
        return text

    def _sentence(self, status: str, rule: Rule, told: str) -> str:
        endpoint = self._endpoint
        advice = rule.advice.replace("{key}", endpoint.key_variable).replace("{url}", endpoint.shown_url)
        words = " ".join(self.without_secrets(told).split())
        said = f" ({words[:TOLD_CHARS]}{'…' if len(words) > TOLD_CHARS else ''})" if words else ""
        return f"{endpoint.row.name}{f' {status}' if status else ''}: {advice}{said}"


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
    for words_status, words, rule in BY_WORDS:
        if status == words_status and words.search(message):
            return rule
    if status in (400, 413, 422) and TOO_LONG.search(message):
        return LONGER
    if (rule := BY_STATUS.get(status)) is not None:
        return rule
    return SERVER if status >= 500 else REDIRECT if 300 <= status < 400 else OTHER


def _without(text: str, secret: str) -> str:
    if len(secret) < SHORTEST_SECRET:
        return text
    text = text.replace(secret, "***")
    for start in range(len(secret) - PIECE_CHARS + 1):
        while (at := text.find(secret[start : start + PIECE_CHARS])) >= 0:
            size = PIECE_CHARS
            while text[at + size : at + size + 1] == secret[start + size : start + size + 1] != "":
                size += 1
            text = f"{text[:at]}***{text[at + size :]}"
    return text
