"""OpenAI's Responses: the wire of the models that Chat Completions does not serve."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..types import Completion, Message, TokenUsage
from .chat_wire import error_object
from .rows import Row
from .sampling import checked
from .wire import Request, Told, Wire, count, encoded, mapping

# Models that OpenAI's list of models says are for this wire alone. Others are found out by Chat Completions' refusal.
ONLY_HERE = re.compile(r"^(o\d(-mini)?-pro|gpt-[\d.]+-pro|.*codex|.*deep-research|computer-use)", re.IGNORECASE)
# In the refusal of a call to another wire; the last is Azure's, where the name of a deployment does not tell its model.
REDIRECTION = re.compile(r"v1/responses|Responses API|not a chat model|chatCompletion operation does not work", re.IGNORECASE)

_OURS = ("input", "model", "stream", "background", "conversation", "previous_response_id")
_REFUSED = {
    "stop": "the Responses API knows no stop texts",
    "seed": "the Responses API takes no seed",
}
_REASONS = {"max_output_tokens": "length", "content_filter": "content_filter"}
_STATUS = {"rate_limit_exceeded": 429, "invalid_prompt": 400, "server_error": 500}
_POLICY = re.compile("policy")  # in the codes of failed responses


class ResponsesWire(Wire):
    """One provider's Responses. Nothing is kept there: each call sends the whole conversation, with ``store`` off.

    Args:
        row: the provider.
    """

    def __init__(self, row: Row) -> None:
        self._row = row

    def request(self, model: str, messages: Sequence[Message], sampling: Mapping[str, Any] | None) -> Request:
        fields = {"model": model, "input": messages, "store": False, **self._row.extra_body, **self.options(model, sampling)}
        return Request(route="/responses", body=encoded(fields))

    def options(self, model: str, sampling: Mapping[str, Any] | None) -> dict[str, Any]:
        fields = checked(self._row.name, sampling, refused=_REFUSED, reserved=_OURS)
        extra = fields.pop("extra_body", {})
        if "max_tokens" in fields:
            fields["max_output_tokens"] = fields.pop("max_tokens")
        if "reasoning_effort" in fields:
            fields["reasoning"] = {"effort": fields.pop("reasoning_effort")}
        return {**fields, **extra}

    def error_of(self, parsed: Any, *, failed: bool) -> Told | None:
        if failed or mapping(parsed).get("object") != "response":
            return error_object(parsed, failed=failed, fine="output")
        error = mapping(parsed.get("error"))
        code = str(error.get("code") or "")
        if parsed.get("status") != "failed" or _POLICY.search(code):
            return None
        return Told(code=code, message=str(error.get("message") or ""), status=_STATUS.get(code), usage=self.usage_of(parsed))

    def refusal_of(self, parsed: Any) -> str | None:
        for part in _parts(parsed):
            if part.get("type") == "refusal":
                return str(part.get("refusal") or "no reason given")
        if parsed.get("status") == "failed":
            return str(mapping(parsed.get("error")).get("message") or "a policy stopped the call")
        if _reason(parsed) == "content_filter" and not _text(parsed):
            return "the provider's content filter left nothing of the reply"
        return None

    def completion_of(self, parsed: Any, name: str) -> Completion:
        return Completion(
            text=_text(parsed), usage=self.usage_of(parsed), model=name, finish_reason=_reason(parsed), response_id=parsed.get("id")
        )

    def usage_of(self, parsed: Any) -> TokenUsage:
        usage = mapping(mapping(parsed).get("usage"))
        read, written = mapping(usage.get("input_tokens_details")), mapping(usage.get("output_tokens_details"))
        return TokenUsage(
            input_tokens=count(usage.get("input_tokens")),
            output_tokens=count(usage.get("output_tokens")),
            cached_tokens=count(read.get("cached_tokens")),
            cache_write_tokens=count(read.get("cache_write_tokens")),
            reasoning_tokens=count(written.get("reasoning_tokens")),
        )


def _parts(parsed: Any) -> list[Mapping[str, Any]]:
    return [part for item in parsed["output"] if item.get("type") == "message" for part in item["content"]]


def _text(parsed: Any) -> str:
    return "".join(str(part.get("text") or "") for part in _parts(parsed) if part.get("type") == "output_text")


def _reason(parsed: Any) -> str | None:
    if parsed.get("status") == "completed":
        return "stop"
    reason = mapping(parsed.get("incomplete_details")).get("reason")
    return _REASONS.get(str(reason), None if reason is None else str(reason))
