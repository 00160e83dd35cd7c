"""Google's generateContent, of the Gemini API and of Vertex AI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from .base import Answer, Asked, Body, Event, Tokens, Trouble, What, bearer

if TYPE_CHECKING:
    from ..provider_script import Script

CALL = ":generateContent"
FINISHES = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}
ROLES = {"model": "assistant"}
UNSAFE = {"category": "HARM_CATEGORY_DANGEROUS_CONTENT", "probability": "HIGH", "blocked": True}

ROWS: Mapping[What, str] = {
    "key": "API key not valid. Please pass a valid API key.",
    "body": "Invalid JSON payload received. {told}",
    "url": "Requested entity was not found.",
    "model": "models/{model} is not found for API version v1beta, or is not supported for generateContent.",
    "context": "The input token count ({tokens}) exceeds the maximum number of tokens allowed ({most}).",
    "output": "Unable to submit request because it has a maxOutputTokens value of {tokens} but the supported range is from 1 (inclusive) "
    "to {most} (inclusive). Update the value and try again.",
    "rate": "You exceeded your current quota, please check your plan and billing details.",
}
FAULTS: Mapping[int, str] = {
    401: "Request had invalid authentication credentials. Expected OAuth 2 access token or other valid authentication credential.",
    403: "Permission denied on resource project.",
    413: "Request payload size exceeds the limit.",
    429: "You exceeded your current quota, please check your plan and billing details.",
    500: "An internal error has occurred.",
    503: "The model is overloaded. Please try again later.",
    504: "Deadline expired before operation could complete.",
}
STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    504: "DEADLINE_EXCEEDED",
}
RPC = "type.googleapis.com/google.rpc."


class Gemini:
    """POST .../models/{model}:generateContent, without streaming."""

    name = "gemini"
    id_header = "x-request-id"
    says_wait_in_headers = False
    streams = False

    def recognises(self, path: str) -> bool:
        """Whether a POST to this path is a call on this wire."""
        return path.endswith(CALL)

    def is_spoken(self, path: str, headers: Mapping[str, str]) -> bool:
        """The Gemini API by its key's header, Vertex AI by its version."""
        return "x-goog-api-key" in headers or path.startswith("/v1beta")

    def key(self, headers: Mapping[str, str]) -> str:
        """The x-goog-api-key, or a token."""
        return headers.get("x-goog-api-key") or bearer(headers)

    def asked(self, path: str, headers: Mapping[str, str], body: Any) -> Asked:
        """Read a request; the model stands in the path."""
        contents = body.get("contents")
        if not contents:
            raise ValueError("* GenerateContentRequest.contents: contents is not specified")
        messages = [{"role": ROLES.get(it.get("role", "user"), "user"), "content": _text(it)} for it in contents]
        if "systemInstruction" in body:
            messages.insert(0, {"role": "system", "content": _text(body["systemInstruction"])})
        config = body.get("generationConfig") or {}
        model = unquote(path.rpartition("/")[2].removesuffix(CALL))
        return Asked(model=model, messages=messages, max_tokens=config.get("maxOutputTokens"), stops=config.get("stopSequences") or ())

    def trouble(self, asked: Asked, script: Script) -> Trouble | None:
        """Nothing: a prompt that is blocked has a reply that says so."""
        return None

    def reply(self, asked: Asked, answer: Answer, script: Script, number: int) -> Body:
        """A GenerateContentResponse. A blocked prompt has feedback and no candidate."""
        if script.prompt_blocked:
            said: Body = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}
        else:
            said = {"candidates": [_candidate(answer, script)]}
        if script.usage:
            said["usageMetadata"] = _usage(answer.tokens)
        return {**said, "modelVersion": asked.model, "responseId": f"response-{number}"}

    def events(self, asked: Asked, answer: Answer, script: Script, number: int) -> list[Event]:
        """Not streamed here."""
        raise NotImplementedError

    def error(self, trouble: Trouble, number: int) -> tuple[int, Body]:
        """A google.rpc.Status. A key that is not let in is a bad argument; a token is what 401 is for."""
        code = 400 if trouble.what == "key" else trouble.status
        template = FAULTS.get(code, "scripted {status}") if trouble.what == "fault" else ROWS[trouble.what]
        details = _details(trouble, code)
        error: Body = {"code": code, "message": trouble.say(template), "status": STATUSES.get(code, "UNAVAILABLE")}
        return code, {"error": {**error, "details": details} if details else error}

    def models(self, script: Script, path: str) -> Body:
        """A page of models, as the Gemini API or, below ``publishers``, Vertex AI names them."""
        if "/publishers/" in path:
            return {"publisherModels": [{"name": f"publishers/google/models/{name}", "versionId": "default"} for name in script.models]}
        return {"models": [self.model(name, script) for name in script.models]}

    def model(self, name: str, script: Script) -> Body:
        """A model, with the limits of the script."""
        limits = {"inputTokenLimit": script.context_tokens, "outputTokenLimit": script.max_output_tokens}
        known = {limit: tokens for limit, tokens in limits.items() if tokens is not None}
        return {"name": f"models/{name}", "version": "001", "displayName": name, "supportedGenerationMethods": ["generateContent"], **known}


def _text(content: Body) -> str:
    return "".join(part["text"] for part in content["parts"] if "text" in part and not part.get("thought"))


def _candidate(answer: Answer, script: Script) -> Body:
    if answer.text is None:
        return {"index": 0, "finishReason": "SAFETY", "finishMessage": script.refusal, "safetyRatings": [UNSAFE]}
    parts: list[Body] = [] if script.thinking is None else [{"text": script.thinking, "thought": True}]
    if answer.text:
        parts.append({"text": answer.text})
    content: Body = {"role": "model", "parts": parts} if parts else {"role": "model"}
    return {"index": 0, "content": content, "finishReason": FINISHES.get(script.finish_reason, script.finish_reason)}


def _usage(tokens: Tokens) -> Body:
    """Counts that are zero are left out, as the vendor's JSON leaves them out."""
    counts = {
        "promptTokenCount": tokens.prompt,
        "candidatesTokenCount": tokens.completion - tokens.reasoning,
        "thoughtsTokenCount": tokens.reasoning,
        "cachedContentTokenCount": tokens.cached,
        "totalTokenCount": tokens.prompt + tokens.completion,
    }
    return {name: count for name, count in counts.items() if count}


def _details(trouble: Trouble, code: int) -> list[Body]:
    if trouble.what == "key":
        domain = {"domain": "googleapis.com", "metadata": {"service": "generativelanguage.googleapis.com"}}
        return [{"@type": f"{RPC}ErrorInfo", "reason": "API_KEY_INVALID", **domain}]
    if code in (429, 503) and trouble.wait is not None:
        return [{"@type": f"{RPC}RetryInfo", "retryDelay": f"{trouble.wait:g}s"}]
    return []
