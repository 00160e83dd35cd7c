"""Chat Completions as JSON: the wire of OpenAI, and the one that most others speak too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ..types import Completion, Message, TokenUsage
from .rows import Row
from .sampling import checked
from .wire import Request, Told, Wire, count, encoded, mapping

_OURS = ("messages", "model", "stream", "n")


class ChatWire(Wire):
    """One provider's Chat Completions.

    Args:
        row: the provider.
    """

    def __init__(self, row: Row) -> None:
        self._row = row

    def request(self, model: str, messages: Sequence[Message], sampling: Mapping[str, Any] | None) -> Request:
        fields = {"model": model, "messages": messages, **self._row.extra_body, **self.options(model, sampling)}
        deployment = f"/deployments/{quote(model, safe='')}" if self._row.dialect == "azure" else ""
        return Request(route=f"{deployment}/chat/completions", body=encoded(fields))

    def options(self, model: str, sampling: Mapping[str, Any] | None) -> dict[str, Any]:
        fields = checked(self._row.name, sampling, reserved=_OURS)
        extra = fields.pop("extra_body", {})
        if "max_tokens" in fields:
            fields[self._row.max_tokens] = fields.pop("max_tokens")
        return {**fields, **extra}

    def error_of(self, parsed: Any, *, failed: bool) -> Told | None:
        if not failed and (broken := _broken_off(parsed)):
            parsed = {"error": broken, "usage": parsed.get("usage")}
        return error_object(parsed, failed=failed, fine="choices")

    def refusal_of(self, parsed: Any) -> str | None:
        choice = parsed["choices"][0]
        if refusal := choice["message"].get("refusal"):
            return str(refusal)
        if choice.get("finish_reason") == "content_filter" and not choice["message"].get("content"):
            return "the provider's content filter left nothing of the reply"
        return None

    def completion_of(self, parsed: Any, name: str) -> Completion:
        choice = parsed["choices"][0]
        return Completion(
            text=_text_of(choice["message"].get("content")),
            usage=self.usage_of(parsed),
            model=name,
            finish_reason=choice.get("finish_reason"),
            response_id=parsed.get("id"),
        )

    def usage_of(self, parsed: Any) -> TokenUsage:
        return chat_usage(mapping(parsed).get("usage"))


def error_object(parsed: Any, *, failed: bool, fine: str) -> Told | None:
    """What an error in OpenAI's shape says. A reply with status 200 is one too, unless ``fine`` is in it.

    OpenRouter answers 200 and puts the upstream's status into the error object, and the upstream's words, or what it was flagged for,
    beside; Portkey's own errors have no ``error`` at all.
    """
    body = mapping(parsed)
    error = body.get("error")
    if not failed and (not error or body.get(fine)):
        return None
    told = mapping(body if error is None else error)
    code, more = told.get("code"), mapping(told.get("metadata"))
    words = [told.get("message") or (error if isinstance(error, str) else ""), more.get("raw")]
    return Told(
        code="content_filter" if "flagged_input" in more else str(code or told.get("type") or ""),
        message=": ".join(str(word) for word in words if word),
        status=code if isinstance(code, int) and not failed and 400 <= code < 600 else None,
        usage=chat_usage(body["usage"]) if body.get("usage") else None,
    )


def _broken_off(parsed: Any) -> Mapping[str, Any]:
    """The error that OpenRouter puts into a choice when the upstream fails in the middle of it."""
    choices = mapping(parsed).get("choices")
    return mapping(mapping(choices[0]).get("error")) if isinstance(choices, list) and choices else {}


def chat_usage(usage: Any) -> TokenUsage:
    """What ``usage`` says; a field it does not have, or that is no count, stays None."""
    usage = mapping(usage)
    read = mapping(usage.get("prompt_tokens_details"))
    written = mapping(usage.get("completion_tokens_details"))
    cost = usage.get("cost")
    return TokenUsage(
        input_tokens=count(usage.get("prompt_tokens")),
        output_tokens=count(usage.get("completion_tokens")),
        cached_tokens=count(read.get("cached_tokens")),
        cache_write_tokens=count(read.get("cache_write_tokens")),
        reasoning_tokens=count(written.get("reasoning_tokens")),
        cost_usd=float(cost) if isinstance(cost, (int, float)) and not isinstance(cost, bool) and cost >= 0 else None,
    )


def _text_of(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, list):  # some compatible servers answer in parts
        return "".join(str(part.get("text") or "") for part in content)
    return content if isinstance(content, str) else json.dumps(content)
