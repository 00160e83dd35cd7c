"""OpenAI's Responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .base import Answer, Asked, Body, Tokens, Trouble, joined
from .chat import CREATED, Chat
from .openai_errors import error_of

if TYPE_CHECKING:
    from ..provider_script import Script

INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
TEXTS = ("input_text", "output_text", "text")


class Responses(Chat):
    """POST {base}/responses, without streaming."""

    name = "responses"

    def recognises(self, path: str) -> bool:
        """Whether a POST to this path is a call on this wire."""
        return path.endswith("/responses")

    def asked(self, path: str, headers: Mapping[str, str], body: Any) -> Asked:
        """Read a request: a text or a list of items; items that are no message, such as reasoning sent back, are passed over."""
        model, given = body["model"], body["input"]
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        messages = [
            {"role": it["role"], "content": joined(it["content"], kinds=TEXTS)} for it in items if it.get("type", "message") == "message"
        ]
        if body.get("instructions"):
            messages.insert(0, {"role": "system", "content": body["instructions"]})
        return Asked(model=str(model), messages=messages, stream=bool(body.get("stream")), max_tokens=body.get("max_output_tokens"))

    def trouble(self, asked: Asked, script: Script) -> Trouble | None:
        """A prompt that is blocked."""
        return Trouble(what="prompt", status=400) if script.prompt_blocked else None

    def reply(self, asked: Asked, answer: Answer, script: Script, number: int) -> Body:
        """A response object. The finish reason ``error`` is the status failed."""
        finish = script.finish_reason
        reason = INCOMPLETE.get(finish)
        failed = finish == "error"
        status = "failed" if failed else "incomplete" if reason else "completed"
        response: Body = {
            "id": f"resp_{number}",
            "object": "response",
            "created_at": CREATED,
            "status": status,
            "error": {"code": "server_error", "message": "The model failed to generate a response."} if failed else None,
            "incomplete_details": {"reason": reason} if reason else None,
            "model": asked.model,
            "output": [] if failed else _output(answer, script, status, number),
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }
        return {**response, "usage": _usage(answer.tokens)} if script.usage else response

    def error(self, trouble: Trouble, number: int) -> tuple[int, Body]:
        """OpenAI's error object."""
        return error_of(trouble, "input", "max_output_tokens")


def _output(answer: Answer, script: Script, status: str, number: int) -> list[Body]:
    """A reasoning item where there was reasoning, and a message where something was said before an end by length."""
    output: list[Body] = []
    if script.thinking is not None or answer.tokens.reasoning:
        summary = [] if script.thinking is None else [{"type": "summary_text", "text": script.thinking}]
        output.append({"id": f"rs_{number}", "type": "reasoning", "summary": summary})
    if answer.text is None:
        part: Body = {"type": "refusal", "refusal": script.refusal}
    else:
        part = {"type": "output_text", "text": answer.text, "annotations": []}
    if answer.text != "" or status == "completed":
        output.append({"id": f"msg_{number}", "type": "message", "role": "assistant", "status": status, "content": [part]})
    return output


def _usage(tokens: Tokens) -> Body:
    usage: Body = {
        "input_tokens": tokens.prompt,
        "input_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": tokens.cache_write or 0},
        "output_tokens": tokens.completion,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
        "total_tokens": tokens.prompt + tokens.completion,
    }
    return usage if tokens.cost is None else {**usage, "cost": tokens.cost}
