"""Anthropic's Messages, whole and as server-sent events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .base import Answer, Asked, Body, Event, Tokens, Trouble, What, bearer, joined, pieces

if TYPE_CHECKING:
    from ..provider_script import Script

STOPS = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}
SIGNATURE = "c2NyaXB0ZWQgc2lnbmF0dXJl"

ROWS: Mapping[What, tuple[str, str]] = {
    "key": ("authentication_error", "invalid x-api-key"),
    "body": ("invalid_request_error", "{told}"),
    "url": ("not_found_error", "Not Found"),
    "model": ("not_found_error", "model: {model}"),
    "context": ("invalid_request_error", "prompt is too long: {tokens} tokens > {most} maximum"),
    "output": (
        "invalid_request_error",
        "max_tokens: {tokens} > {most}, which is the maximum allowed number of output tokens for {model}",
    ),
    "rate": ("rate_limit_error", "This request would exceed your organization's rate limit"),
}
FAULTS: Mapping[int, tuple[str, str]] = {
    401: ("authentication_error", "invalid x-api-key"),
    403: ("permission_error", "Your API key does not have permission to use the specified resource."),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: ("rate_limit_error", "scripted {status}"),
    504: ("timeout_error", "scripted {status}"),
    529: ("overloaded_error", "Overloaded"),
}
FAILED = ("api_error", "scripted {status}")


class Anthropic:
    """POST {base}/v1/messages."""

    name = "anthropic"
    id_header = "request-id"
    says_wait_in_headers = True
    streams = True

    def recognises(self, path: str) -> bool:
        """Whether a POST to this path is a call on this wire."""
        return path.endswith("/messages")

    def is_spoken(self, path: str, headers: Mapping[str, str]) -> bool:
        """Every request of this vendor's names the version of the API."""
        return "anthropic-version" in headers

    def key(self, headers: Mapping[str, str]) -> str:
        """The x-api-key, or a token."""
        return headers.get("x-portkey-api-key") or headers.get("x-api-key") or bearer(headers)

    def asked(self, path: str, headers: Mapping[str, str], body: Any) -> Asked:
        """Read a request; one that the real API would not take for its form is a ValueError."""
        if "anthropic-version" not in headers:
            raise ValueError("anthropic-version: header is required")
        for name in ("model", "max_tokens", "messages"):
            if name not in body:
                raise ValueError(f"{name}: Field required")
        if not body["messages"]:
            raise ValueError("messages: at least one message is required")
        messages = [{"role": message["role"], "content": joined(message["content"])} for message in body["messages"]]
        _check(messages)
        if "system" in body:
            messages.insert(0, {"role": "system", "content": joined(body["system"])})
        stops = body.get("stop_sequences") or ()
        return Asked(
            model=str(body["model"]), messages=messages, stream=bool(body.get("stream")), max_tokens=body["max_tokens"], stops=stops
        )

    def trouble(self, asked: Asked, script: Script) -> Trouble | None:
        """Nothing: a prompt that is blocked has a reply that says so."""
        return None

    def reply(self, asked: Asked, answer: Answer, script: Script, number: int) -> Body:
        """A message object."""
        message = {**_message(asked, _content(answer, script), number), **_stop(asked, script)}
        return {**message, "usage": _usage(answer.tokens)} if script.usage else message

    def events(self, asked: Asked, answer: Answer, script: Script, number: int) -> list[Event]:
        """A message as events."""
        begun = {**_message(asked, [], number), "stop_reason": None, "stop_sequence": None, "stop_details": None}
        ended: Body = {"type": "message_delta", "delta": _stop(asked, script)}
        if script.usage:
            usage = _usage(answer.tokens)
            begun["usage"] = {**usage, "output_tokens": 1, "output_tokens_details": None}
            ended["usage"] = {name: usage[name] for name in _TOLD_AT_THE_END}
        blocks = [event for place, block in enumerate(_content(answer, script)) for event in _block(place, block)]
        return [
            ("message_start", {"type": "message_start", "message": begun}),
            ("ping", {"type": "ping"}),
            *blocks,
            ("message_delta", ended),
            ("message_stop", {"type": "message_stop"}),
        ]

    def error(self, trouble: Trouble, number: int) -> tuple[int, Body]:
        """The error object, with the id that the header has too."""
        kind, template = FAULTS.get(trouble.status, FAILED) if trouble.what == "fault" else ROWS[trouble.what]
        error = {"type": kind, "message": trouble.say(template)}
        return trouble.status, {"type": "error", "error": error, "request_id": f"req_{number}"}

    def models(self, script: Script, path: str) -> Body:
        """A page of models."""
        data = [self.model(name, script) for name in script.models]
        ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        return {"data": data, "has_more": False, "first_id": ends[0], "last_id": ends[1]}

    def model(self, name: str, script: Script) -> Body:
        """A model object, with the limits of the script."""
        limits = {"max_input_tokens": script.context_tokens, "max_tokens": script.max_output_tokens}
        return {"type": "model", "id": name, "display_name": name, "created_at": "2025-01-01T00:00:00Z", "lifecycle": "active", **limits}


_TOLD_AT_THE_END = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens", "output_tokens_details")


def _check(messages: Sequence[Body]) -> None:
    for place, message in enumerate(messages):
        last = place == len(messages) - 1
        if not message["content"] and not (last and message["role"] == "assistant"):
            raise ValueError(f"messages.{place}: all messages must have non-empty content except for the optional final assistant message")


def _message(asked: Asked, content: list[Body], number: int) -> Body:
    return {"id": f"msg_{number}", "type": "message", "role": "assistant", "model": asked.model, "content": content}


def _content(answer: Answer, script: Script) -> list[Body]:
    content: list[Body] = []
    if script.thinking is not None:
        content.append({"type": "thinking", "thinking": script.thinking, "signature": SIGNATURE})
    if answer.text:
        content.append({"type": "text", "text": answer.text})
    return content


def _stop(asked: Asked, script: Script) -> Body:
    reason = "refusal" if script.refusal is not None or script.prompt_blocked else STOPS.get(script.finish_reason, script.finish_reason)
    details = {"type": "refusal", "category": None, "explanation": script.refusal} if reason == "refusal" else None
    sequence = next(iter(asked.stops), "\n\n") if reason == "stop_sequence" else None
    return {"stop_reason": reason, "stop_sequence": sequence, "stop_details": details}


def _usage(tokens: Tokens) -> Body:
    written = tokens.cache_write or 0
    return {
        "input_tokens": tokens.fresh,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": tokens.cached,
        "cache_creation": {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": 0},
        "output_tokens": tokens.completion,
        "output_tokens_details": {"thinking_tokens": tokens.reasoning},
        "service_tier": "standard",
    }


def _block(place: int, block: Body) -> Iterator[Event]:
    """One content block: begun empty, filled piece by piece, ended."""
    kind = block["type"]
    empty = {name: value if name == "type" else "" for name, value in block.items()}
    yield "content_block_start", {"type": "content_block_start", "index": place, "content_block": empty}
    for piece in pieces(block[kind]):
        yield _delta(place, {"type": f"{kind}_delta", kind: piece})
    if kind == "thinking":
        yield _delta(place, {"type": "signature_delta", "signature": block["signature"]})
    yield "content_block_stop", {"type": "content_block_stop", "index": place}


def _delta(place: int, delta: Body) -> Event:
    return "content_block_delta", {"type": "content_block_delta", "index": place, "delta": delta}
