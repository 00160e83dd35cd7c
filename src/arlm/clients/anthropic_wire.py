"""Anthropic's Messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..types import Completion, Message, TokenUsage
from .sampling import checked, stops_of
from .wire import Request, Told, Wire, count, encoded, mapping, plus

# The SDK makes no call without streaming that may last above ten minutes, and reckons an hour for 128,000 tokens.
LONGEST_UNSTREAMED = 128_000 * 10 // 60
# What older models write at most, from Anthropic's table of models; all newer ones write more than an unstreamed call may ask for.
OUTPUT_LIMITS = ((re.compile(r"claude-(2|3-(opus|sonnet|haiku)|instant|v1)"), 4_096), (re.compile(r"claude-3-5"), 8_192))
UNSTREAMED_LIMITS = ((re.compile(r"claude-(opus-4-[01]|4-opus|opus-4-20250514|opus-4@)"), 8_192),)  # MODEL_NONSTREAMING_TOKENS of the SDK
TOO_MANY = re.compile(r"max_tokens: \d+ > (\d+)")  # in the refusal of a max_tokens that the model does not have

_OURS = ("messages", "model", "stream", "system")
_REFUSED = {
    **dict.fromkeys(("temperature", "top_p"), "Anthropic's API takes none since its version 2026-10-21, which the SDK asks for"),
    "seed": "Anthropic's models take no seed",
}
_REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "model_context_window_exceeded": "length"}
_STATUS = {  # of an error that comes inside a stream, whose own status was 200
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_CACHED = {"type": "ephemeral"}


class MessagesWire(Wire):
    """Messages, as one client speaks them. Remembers the output limits that it was told of."""

    def __init__(self) -> None:
        self.limits: dict[str, int] = {}

    def request(self, model: str, messages: Sequence[Message], sampling: Mapping[str, Any] | None) -> Request:
        system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
        fields: dict[str, Any] = {"model": model, "messages": _turns(messages), **self.options(model, sampling)}
        if system:
            # A conversation with instructions goes on turn by turn, so what was sent is worth keeping there: the instructions, which all
            # runs share, and the turns so far. A call of one message is asked once, and writing to the cache costs more than not.
            fields["system"] = [{"type": "text", "text": system, "cache_control": _CACHED}]
            fields.setdefault("cache_control", _CACHED)
        if fields["max_tokens"] > _most(UNSTREAMED_LIMITS, model, LONGEST_UNSTREAMED):
            fields["stream"] = True
        return Request(route="/v1/messages", body=encoded(fields))

    def options(self, model: str, sampling: Mapping[str, Any] | None) -> dict[str, Any]:
        given = checked("anthropic", sampling, refused=_REFUSED, reserved=_OURS)
        fields: dict[str, Any] = {}
        if stops := stops_of(given):
            fields["stop_sequences"] = stops
        if "reasoning_effort" in given:
            fields.update(_effort(given["reasoning_effort"]))
        known = self.limits.get(model) or _most(OUTPUT_LIMITS, model, None)
        wanted = given.get("max_tokens", LONGEST_UNSTREAMED)
        fields["max_tokens"] = wanted if known is None else min(wanted, known)
        return {**fields, **given.get("extra_body", {})}

    def parsed(self, body: bytes, kind: str) -> Any:
        return _assembled(body) if "event-stream" in kind else json.loads(body)

    def error_of(self, parsed: Any, *, failed: bool) -> Told | None:
        body = mapping(parsed)
        if not failed and body.get("type") != "error":
            return None
        error = mapping(body.get("error"))
        code = str(error.get("type") or "")
        message = str(error.get("message") or body.get("message") or "")
        return Told(
            code=code,
            message=message if code != "request_too_large" else f"{code}: {message}",
            status=None if failed else _STATUS.get(code, 500),
            usage=_usage(body["usage"]) if "usage" in body else None,
        )

    def refusal_of(self, parsed: Any) -> str | None:
        if parsed["stop_reason"] != "refusal":
            return None
        details = mapping(parsed.get("stop_details"))
        return str(details.get("explanation") or details.get("category") or _text(parsed) or "no reason given")

    def completion_of(self, parsed: Any, name: str) -> Completion:
        reason = parsed["stop_reason"]
        return Completion(
            text=_text(parsed),
            usage=self.usage_of(parsed),
            model=name,
            finish_reason=_REASONS.get(reason, reason),
            response_id=parsed.get("id"),
        )

    def usage_of(self, parsed: Any) -> TokenUsage:
        return _usage(mapping(parsed).get("usage"))

    def usage_of_piece(self, body: bytes) -> TokenUsage | None:
        whole, end, _ = body.rpartition(b"\n\n")
        usage = _gathered(_events(whole)).get("usage") if end else None
        return None if usage is None else _usage(usage)


def learned_limit(message: str) -> int | None:
    """The most output tokens that a model has, from its refusal of more."""
    found = TOO_MANY.search(message)
    return int(found[1]) if found else None


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The turns of user and model. A model's empty reply is left out: the API takes no empty turn, and joins turns in a row."""
    return [
        {"role": message["role"], "content": message["content"]}
        for message in messages
        if message["role"] == "user" or (message["role"] == "assistant" and message["content"].strip())
    ]


def _effort(effort: str) -> dict[str, Any]:
    if effort == "minimal":
        raise ConfigError("'anthropic' has no reasoning_effort 'minimal': the least is 'low', and 'none' turns thinking off")
    return {"thinking": {"type": "disabled"}} if effort == "none" else {"output_config": {"effort": effort}}


def _most(limits: Iterable[tuple[re.Pattern[str], int]], model: str, otherwise: Any) -> Any:
    return next((limit for pattern, limit in limits if pattern.search(model)), otherwise)


def _text(parsed: Any) -> str:
    """What the model says; its thinking, as text or encrypted, is not part of it."""
    return "".join(str(block.get("text") or "") for block in parsed["content"] if block.get("type") == "text")


def _usage(usage: Any) -> TokenUsage:
    usage = mapping(usage)
    read, written = count(usage.get("cache_read_input_tokens")), count(usage.get("cache_creation_input_tokens"))
    fresh = count(usage.get("input_tokens"))
    return TokenUsage(
        input_tokens=None if fresh is None else plus(fresh, read, written),
        output_tokens=count(usage.get("output_tokens")),
        cached_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=count(mapping(usage.get("output_tokens_details")).get("thinking_tokens")),
    )


def _assembled(body: bytes) -> Mapping[str, Any]:
    """The message, or the error, that a whole stream says. Raises ValueError where the stream does not end as one."""
    message = _gathered(_events(body))
    if not message.get("ended"):
        raise ValueError("the stream has no end")
    return message


def _gathered(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {}
    text: list[str] = []
    for event in events:
        match event.get("type"):
            case "message_start":
                message = dict(event["message"])
            case "content_block_delta" if event["delta"].get("type") == "text_delta":
                text.append(event["delta"]["text"])
            case "content_block_start" if event["content_block"].get("type") == "text":
                text.append(event["content_block"].get("text") or "")
            case "message_delta":
                counted = {name: value for name, value in mapping(event.get("usage")).items() if value is not None}
                message = {**message, **event["delta"], "usage": {**mapping(message.get("usage")), **counted}}
            case "message_stop":
                message["ended"] = True
            case "error":
                return {**event, "usage": message.get("usage"), "ended": True} if "usage" in message else {**event, "ended": True}
    return {**message, "content": [{"type": "text", "text": "".join(text)}]}


def _events(body: bytes) -> Iterable[Mapping[str, Any]]:
    """The JSON of the events of a stream. Raises ValueError."""
    for line in body.split(b"\n"):  # in bytes, because a text has further ends of lines, which may stand inside of an event's JSON
        if line.startswith(b"data:"):
            event = json.loads(line[5:])
            if isinstance(event, Mapping):
                yield event
