"""OpenAI's Chat Completions, which Azure, OpenRouter, Portkey, vLLM and Ollama speak too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from .base import Answer, Asked, Body, Event, Tokens, Trouble, bearer, joined
from .openai_errors import error_of

if TYPE_CHECKING:
    from ..provider_script import Script

CREATED = 1_700_000_000
MODEL = {"object": "model", "created": CREATED, "owned_by": "scripted"}


class Chat:
    """POST {base}/chat/completions, without streaming."""

    name = "chat"
    id_header = "x-request-id"
    says_wait_in_headers = True
    streams = False

    def recognises(self, path: str) -> bool:
        """Whether a POST to this path is a call on this wire."""
        return path.endswith("/chat/completions")

    def is_spoken(self, path: str, headers: Mapping[str, str]) -> bool:
        """Everything that no other wire claims."""
        return True

    def key(self, headers: Mapping[str, str]) -> str:
        """The key of Portkey, of Azure, or the common one."""
        return headers.get("x-portkey-api-key") or headers.get("api-key") or bearer(headers)

    def asked(self, path: str, headers: Mapping[str, str], body: Any) -> Asked:
        """Read a request; Azure's may name its model by the path alone."""
        model = body.get("model") or unquote(path.partition("/deployments/")[2].partition("/")[0])
        if not model:
            raise ValueError("you must provide a model parameter")
        messages = body["messages"]
        if not all(type(message.get("content")) is str for message in messages):
            messages = [{"role": message["role"], "content": joined(message.get("content"))} for message in messages]
        most = body.get("max_completion_tokens") or body.get("max_tokens")
        return Asked(model=str(model), messages=messages, stream=bool(body.get("stream")), max_tokens=most)

    def trouble(self, asked: Asked, script: Script) -> Trouble | None:
        """A model of the other wire, or a prompt that is blocked."""
        if asked.model in script.responses_only:
            return Trouble(what="wire", status=404)
        return Trouble(what="prompt", status=400) if script.prompt_blocked else None

    def reply(self, asked: Asked, answer: Answer, script: Script, number: int) -> Body:
        """A chat.completion object."""
        message: Body = {"role": "assistant", "content": answer.text}
        if script.refusal is not None:
            message["refusal"] = script.refusal
        completion: Body = {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "created": CREATED,
            "model": asked.model,
            "choices": [{"index": 0, "message": message, "finish_reason": script.finish_reason}],
        }
        if script.usage:
            completion["usage"] = _usage(answer.tokens)
        return completion

    def events(self, asked: Asked, answer: Answer, script: Script, number: int) -> list[Event]:
        """Not streamed here."""
        raise NotImplementedError

    def error(self, trouble: Trouble, number: int) -> tuple[int, Body]:
        """OpenAI's error object."""
        return error_of(trouble, "messages", "max_tokens")

    def models(self, script: Script, path: str) -> Body:
        """A list object."""
        return {"object": "list", "data": [self.model(name, script) for name in script.models]}

    def model(self, name: str, script: Script) -> Body:
        """A model object."""
        return {"id": name, **MODEL}


def _usage(tokens: Tokens) -> Body:
    details = {"cached_tokens": tokens.cached}
    if tokens.cache_write is not None:
        details["cache_write_tokens"] = tokens.cache_write
    usage: Body = {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.prompt + tokens.completion,
        "prompt_tokens_details": details,
        "completion_tokens_details": {"reasoning_tokens": tokens.reasoning},
    }
    if tokens.cost is not None:
        usage["cost"] = tokens.cost
    return usage
