"""Gemini's generateContent, of the Gemini API and of Vertex AI."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..types import Completion, Message, TokenUsage
from .sampling import checked, stops_of
from .wire import Request, Told, Wire, count, encoded, mapping, plus

_OURS = ("contents", "systemInstruction", "candidateCount")
_REASONS = {"STOP": "stop", "MAX_TOKENS": "length"}
_FILTERED = frozenset(
    {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "MODEL_ARMOR"}
)
_BUDGETED = re.compile(r"gemini-(2\.5|flash-latest|pro-latest)")  # models whose thinking is bounded in tokens; later ones have levels
# As Google's own OpenAI-compatible endpoint translates the efforts.
_BUDGETS = {"none": 0, "minimal": 1_024, "low": 1_024, "medium": 8_192, "high": 24_576}
_LEVELS = {"minimal": "MINIMAL", "low": "LOW", "medium": "MEDIUM", "high": "HIGH", "xhigh": "XHIGH"}
_NAMES = {"temperature": "temperature", "top_p": "topP", "max_tokens": "maxOutputTokens", "seed": "seed"}
_SECONDS = re.compile(r"([\d.]+)s")  # google.protobuf.Duration as JSON


class GenerateWire(Wire):
    """generateContent."""

    def request(self, model: str, messages: Sequence[Message], sampling: Mapping[str, Any] | None) -> Request:
        system = [{"text": message["content"]} for message in messages if message["role"] == "system"]
        contents = [
            {"role": "model" if message["role"] == "assistant" else "user", "parts": [{"text": message["content"]}]}
            for message in messages
            if message["role"] == "user" or (message["role"] == "assistant" and message["content"])
        ]
        fields: dict[str, Any] = {"contents": contents, **self.options(model, sampling)}
        if system:
            fields["systemInstruction"] = {"parts": system}
        return Request(route=model, body=encoded(fields))

    def options(self, model: str, sampling: Mapping[str, Any] | None) -> dict[str, Any]:
        given = checked("gemini", sampling, reserved=_OURS)
        extra = dict(given.get("extra_body", {}))
        config = {ours: given[name] for name, ours in _NAMES.items() if name in given}
        if stops := stops_of(given):
            config["stopSequences"] = stops
        if "reasoning_effort" in given:
            config["thinkingConfig"] = _thinking(model, given["reasoning_effort"])
        config.update(extra.pop("generationConfig", {}))
        return {**({"generationConfig": config} if config else {}), **extra}

    def error_of(self, parsed: Any, *, failed: bool) -> Told | None:
        error = mapping(mapping(parsed).get("error"))
        if not failed and not error:
            return None
        details = [mapping(detail) for detail in error.get("details") or ()]
        reasons = [str(detail["reason"]) for detail in details if "reason" in detail]
        waits = [_SECONDS.fullmatch(str(detail["retryDelay"])) for detail in details if "retryDelay" in detail]
        return Told(
            code=reasons[0] if reasons else str(error.get("status") or ""),
            message=str(error.get("message") or ""),
            status=error.get("code") if not failed and isinstance(error.get("code"), int) else None,
            retry_after=next((float(wait[1]) for wait in waits if wait), None),
        )

    def refusal_of(self, parsed: Any) -> str | None:
        if not parsed.get("candidates"):
            feedback = mapping(parsed.get("promptFeedback"))
            reason = feedback.get("blockReason")
            return None if reason is None else f"the prompt was blocked: {reason} {feedback.get('blockReasonMessage') or ''}".strip()
        candidate = parsed["candidates"][0]
        reason = candidate.get("finishReason")
        if reason not in _FILTERED or _text(candidate):
            return None
        return f"{reason} {candidate.get('finishMessage') or ''}".strip()

    def completion_of(self, parsed: Any, name: str) -> Completion:
        candidate = parsed["candidates"][0]
        reason = candidate.get("finishReason")
        said = None if reason is None else "content_filter" if reason in _FILTERED else _REASONS.get(reason, str(reason).lower())
        return Completion(
            text=_text(candidate), usage=self.usage_of(parsed), model=name, finish_reason=said, response_id=parsed.get("responseId")
        )

    def usage_of(self, parsed: Any) -> TokenUsage:
        usage = mapping(mapping(parsed).get("usageMetadata"))
        thoughts = count(usage.get("thoughtsTokenCount"))
        prompt = count(usage.get("promptTokenCount"))
        written = count(usage.get("candidatesTokenCount"))
        if written is None and prompt is not None:  # a field whose value is 0 is left out
            written = 0
        return TokenUsage(
            input_tokens=None if prompt is None else plus(prompt, count(usage.get("toolUsePromptTokenCount"))),
            output_tokens=plus(written, thoughts),
            cached_tokens=count(usage.get("cachedContentTokenCount")),
            reasoning_tokens=thoughts,
        )


def _thinking(model: str, effort: str) -> dict[str, Any]:
    if _BUDGETED.search(model):
        if effort not in _BUDGETS:
            raise ConfigError(f"{model} has no reasoning_effort {effort!r}; there is: {', '.join(_BUDGETS)}")
        return {"thinkingBudget": _BUDGETS[effort]}
    if effort not in _LEVELS:
        raise ConfigError(f"{model} has no reasoning_effort {effort!r}; there is: {', '.join(_LEVELS)}")
    return {"thinkingLevel": _LEVELS[effort]}


def _text(candidate: Mapping[str, Any]) -> str:
    """What the model says, without its thoughts."""
    parts = mapping(candidate.get("content")).get("parts") or ()
    return "".join(str(part.get("text") or "") for part in parts if not part.get("thought"))
