"""Chat Completions as JSON: the body of a request, and what a reply says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..types import Completion, Message, TokenUsage

if TYPE_CHECKING:
    from .openai_rows import Row

SAMPLING = ("extra_body", "max_tokens", "reasoning_effort", "seed", "stop", "temperature", "top_p")
_OURS = ("messages", "model", "stream", "n")  # an extra_body that changed these would change what a reply means


def request_body(row: Row, model: str, messages: Sequence[Message], sampling: Mapping[str, Any] | None) -> bytes:
    """The body of one call, in UTF-8. A lone surrogate, which no UTF-8 and no strict JSON parser knows, is sent as U+FFFD.

    Raises:
        ConfigError: a sampling option that does not exist, or one that JSON cannot carry.
    """
    fields = {"model": model, "messages": messages, **row.extra_body, **_sampling_fields(row, sampling)}
    try:
        body = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a message or sampling option cannot be sent as JSON: {error}") from error
    try:
        return body.encode()
    except UnicodeEncodeError:
        return body.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _sampling_fields(row: Row, sampling: Mapping[str, Any] | None) -> dict[str, Any]:
    if not sampling:
        return {}
    if unknown := sampling.keys() - set(SAMPLING):
        raise ConfigError(f"unknown sampling options {sorted(unknown)} for {row.name!r}; there is: {', '.join(SAMPLING)}")
    fields = {name: value for name, value in sampling.items() if value is not None}
    extra = fields.pop("extra_body", {})
    if not isinstance(extra, Mapping) or extra.keys() & set(_OURS):
        raise ConfigError(f"sampling's extra_body is a dict of further fields of the request, other than {', '.join(_OURS)}")
    if "max_tokens" in fields:
        fields[row.max_tokens] = fields.pop("max_tokens")
    return {**fields, **extra}


def completion_of(reply: Mapping[str, Any], name: str) -> Completion:
    """The Completion in a parsed reply.

    Raises:
        KeyError, TypeError, IndexError, AttributeError: the reply is not a chat completion.
    """
    choice = reply["choices"][0]
    return Completion(
        text=_text_of(choice["message"].get("content")),
        usage=usage_of(reply.get("usage")),
        model=name,
        finish_reason=choice.get("finish_reason"),
        response_id=reply.get("id"),
    )


def refusal_of(reply: Mapping[str, Any]) -> str | None:
    """Why the provider declined, where it did: its refusal, or a content filter that left nothing."""
    choice = reply["choices"][0]
    if refusal := choice["message"].get("refusal"):
        return str(refusal)
    if choice.get("finish_reason") == "content_filter" and not choice["message"].get("content"):
        return "the provider's content filter left nothing of the reply"
    return None


def usage_of(usage: Any) -> TokenUsage:
    """What ``usage`` says; a field it does not have, or that is no count, stays None."""
    if not isinstance(usage, Mapping):
        return TokenUsage()
    read = _mapping(usage.get("prompt_tokens_details"))
    written = _mapping(usage.get("completion_tokens_details"))
    cost = usage.get("cost")
    return TokenUsage(
        input_tokens=_count(usage.get("prompt_tokens")),
        output_tokens=_count(usage.get("completion_tokens")),
        cached_tokens=_count(read.get("cached_tokens")),
        cache_write_tokens=_count(read.get("cache_write_tokens")),
        reasoning_tokens=_count(written.get("reasoning_tokens")),
        cost_usd=float(cost) if isinstance(cost, (int, float)) and not isinstance(cost, bool) and cost >= 0 else None,
    )


def _text_of(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, list):  # some compatible servers answer in parts
        return "".join(str(part.get("text") or "") for part in content)
    return content if isinstance(content, str) else json.dumps(content)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
