"""The wires as the client suite looks at them: where a request has what, and which replies are as good as any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lm_case import Need

Body = Mapping[str, Any]
Turn = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """One wire.

    Attributes:
        system: the texts of a request's system messages, taken from where this provider has them.
        turns: a request's other messages, role and text; roles are ``user`` and ``assistant``.
        options: where each of arlm's sampling options stands in a request, as a path of names; those left out are refused.
        reply: a reply of this text.
        forms: replies that all say ``"as it should be"``, each in a form that this wire allows.
        counts: what ``usage`` may look like, and the input and output tokens in it.
        usage: the name of the field with the usage.
        without: what no client of this wire can have, each with the reason.
    """

    system: Callable[[Body], list[str]]
    turns: Callable[[Body], list[Turn]]
    options: Mapping[str, str]
    reply: Callable[[str], dict[str, Any]]
    forms: Mapping[str, dict[str, Any]]
    counts: tuple[tuple[Any, int | None, int | None], ...]
    usage: str = "usage"
    without: Mapping[Need, str] = field(default_factory=dict)


FORM = "as it should be"
_COMMON = {name: name for name in ("temperature", "top_p")}
_UNSTREAMED: dict[Need, str] = {"stream": "this client asks for no stream"}


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _chat_system(messages: Any) -> list[str]:
    return [_text(it["content"]) for it in messages if it["role"] in ("system", "developer")]


def _chat_turns(messages: Any) -> list[Turn]:
    return [(it["role"], _text(it["content"])) for it in messages if it["role"] not in ("system", "developer")]


def _chat_reply(message: Mapping[str, Any], finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, "logprobs": None}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], **more}


def _chat_count(read: Any, written: Any) -> dict[str, Any]:
    return {"prompt_tokens": read, "completion_tokens": written}


CHAT = Speech(
    system=lambda body: _chat_system(body["messages"]),
    turns=lambda body: _chat_turns(body["messages"]),
    options={
        **_COMMON,
        "max_tokens": "max_completion_tokens",
        "stop": "stop",
        "seed": "seed",
        "reasoning_effort": "reasoning_effort",
    },
    reply=lambda text: _chat_reply({"content": text}),
    forms={
        "with every field there is": _chat_reply(
            {"content": FORM, "refusal": None, "annotations": [], "tool_calls": None, "function_call": None, "audio": None},
            service_tier="default",
            system_fingerprint="fp_1",
        ),
        "with thoughts beside it, as vLLM has them": _chat_reply({"content": FORM, "reasoning_content": "thought", "tool_calls": []}),
        "with thoughts beside it, as OpenRouter has them": _chat_reply(
            {"content": FORM, "reasoning": "thought", "reasoning_details": [{"type": "reasoning.text", "text": "thought"}]}
        ),
        "in parts": _chat_reply({"content": [{"type": "text", "text": "as it "}, {"type": "text", "text": "should be"}]}),
        "in parts with thoughts, as Mistral has them": _chat_reply(
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "thought"}]},
                    {"type": "text", "text": FORM},
                ]
            }
        ),
        "without a finish reason": _chat_reply({"content": FORM}, None),
        "with no error": _chat_reply({"content": FORM}, error=None),
        "filtered by Azure": _chat_reply({"content": FORM}, prompt_filter_results=[{"prompt_index": 0, "content_filter_results": {}}]),
    },
    counts=(
        (None, None, None),
        ({}, None, None),
        (_chat_count(7, 3), 7, 3),
        (_chat_count(7, None), 7, None),
        (_chat_count("7", -3), None, None),
        ({**_chat_count(7, 3), "prompt_tokens_details": None, "completion_tokens_details": None}, 7, 3),
        ({**_chat_count(7, 3), "cost": "free", "total_tokens": 10, "queue_time": 0.1}, 7, 3),
        ([7, 3], None, None),
    ),
    without={**_UNSTREAMED, "thinking": "Chat Completions has no place for thoughts"},
)


def _responses_reply(*items: Mapping[str, Any], status: str = "completed", **more: Any) -> dict[str, Any]:
    return {"id": "resp_1", "object": "response", "created_at": 1, "status": status, "model": "m", "output": [*items], **more}


def _responses_item(*texts: str) -> dict[str, Any]:
    parts = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []} for text in texts]
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": parts}


def _responses_count(read: Any, written: Any) -> dict[str, Any]:
    return {"input_tokens": read, "output_tokens": written}


RESPONSES = Speech(
    system=lambda body: [*([body["instructions"]] if body.get("instructions") else []), *_chat_system(body["input"])],
    turns=lambda body: _chat_turns(body["input"]),
    options={**_COMMON, "max_tokens": "max_output_tokens", "reasoning_effort": "reasoning.effort"},
    reply=lambda text: _responses_reply(_responses_item(text)),
    forms={
        "with every field there is": _responses_reply(
            _responses_item(FORM), error=None, incomplete_details=None, instructions=None, metadata={}, reasoning={"effort": "low"}, text={}
        ),
        "in parts": _responses_reply(_responses_item("as it ", "should be")),
        "in several messages": _responses_reply(_responses_item("as it "), _responses_item("should be")),
        "after thoughts": _responses_reply(
            {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "thought"}], "content": None},
            _responses_item(FORM),
        ),
        "beside an item of another kind": _responses_reply(
            {"id": "ws_1", "type": "web_search_call", "status": "completed"}, _responses_item(FORM)
        ),
    },
    counts=(
        (None, None, None),
        ({}, None, None),
        (_responses_count(7, 3), 7, 3),
        (_responses_count(None, 3), None, 3),
        (_responses_count(True, 3.5), None, None),
        ({**_responses_count(7, 3), "input_tokens_details": None, "output_tokens_details": None}, 7, 3),
    ),
    without={**_UNSTREAMED, "cost": "OpenAI's Responses names no cost"},
)


def _anthropic_system(body: Body) -> list[str]:
    system = body.get("system", [])
    return [system] if isinstance(system, str) else [block["text"] for block in system]


def _anthropic_reply(*blocks: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [*blocks]}
    return {**message, "stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 7, "output_tokens": 3}, **more}


def _block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


ANTHROPIC = Speech(
    system=_anthropic_system,
    turns=lambda body: _chat_turns(body["messages"]),
    options={"max_tokens": "max_tokens", "stop": "stop_sequences", "reasoning_effort": "output_config.effort"},
    reply=lambda text: _anthropic_reply(_block(text)),
    forms={
        "with every field there is": _anthropic_reply({**_block(FORM), "citations": None}, stop_details=None, container=None),
        "in several blocks": _anthropic_reply(_block("as it "), _block("should be")),
        "after thoughts": _anthropic_reply({"type": "thinking", "thinking": "thought", "signature": "s"}, _block(FORM)),
        "after encrypted thoughts": _anthropic_reply({"type": "redacted_thinking", "data": "dGhvdWdodA=="}, _block(FORM)),
        "beside a block of another kind": _anthropic_reply({"type": "server_tool_use", "id": "1", "name": "x", "input": {}}, _block(FORM)),
        "ended by a stop text": _anthropic_reply(_block(FORM), stop_reason="stop_sequence", stop_sequence="."),
    },
    counts=(
        (None, None, None),
        ({}, None, None),
        ({"input_tokens": 7, "output_tokens": 3}, 7, 3),
        ({"input_tokens": 7, "cache_read_input_tokens": 2, "cache_creation_input_tokens": None, "output_tokens": 3}, 9, 3),
        ({"input_tokens": 7, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 4, "output_tokens": 3}, 13, 3),
        ({"input_tokens": None, "cache_read_input_tokens": 2, "output_tokens": "3"}, None, None),
        ({"input_tokens": 7, "output_tokens": 3, "output_tokens_details": None, "server_tool_use": None}, 7, 3),
    ),
    without={
        "cost": "Anthropic names no cost",
        "partly_filtered": "Anthropic's refusal is a refusal, whatever was said before it",
    },
)

_GEMINI_ROLES = {"model": "assistant"}


def _gemini_turns(body: Body) -> list[Turn]:
    return [(_GEMINI_ROLES.get(it["role"], it["role"]), _text(it["parts"])) for it in body["contents"]]


def _gemini_reply(*parts: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    candidate = {"index": 0, "content": {"role": "model", "parts": [*parts]}, "finishReason": "STOP"}
    return {"candidates": [candidate], "modelVersion": "m", "responseId": "r1", **more}


GEMINI = Speech(
    system=lambda body: [part["text"] for part in body.get("systemInstruction", {"parts": []})["parts"]],
    turns=_gemini_turns,
    options={
        "temperature": "generationConfig.temperature",
        "top_p": "generationConfig.topP",
        "max_tokens": "generationConfig.maxOutputTokens",
        "stop": "generationConfig.stopSequences",
        "seed": "generationConfig.seed",
        "reasoning_effort": "generationConfig.thinkingConfig.thinkingLevel",
    },
    reply=lambda text: _gemini_reply({"text": text}),
    forms={
        "in parts": _gemini_reply({"text": "as it "}, {"text": "should be"}),
        "after thoughts": _gemini_reply({"text": "thought", "thought": True}, {"text": FORM, "thoughtSignature": "cw=="}),
        "beside a part of another kind": _gemini_reply({"executableCode": {"language": "PYTHON", "code": "1"}}, {"text": FORM}),
        "with feedback on the prompt": _gemini_reply({"text": FORM}, promptFeedback={"safetyRatings": []}),
    },
    counts=(
        (None, None, None),
        ({}, None, None),
        ({"promptTokenCount": 7, "candidatesTokenCount": 3, "totalTokenCount": 10}, 7, 3),
        ({"promptTokenCount": 7, "totalTokenCount": 7}, 7, 0),
        ({"promptTokenCount": 7, "candidatesTokenCount": 3, "thoughtsTokenCount": 5}, 7, 8),
        ({"promptTokenCount": 7, "toolUsePromptTokenCount": 4, "candidatesTokenCount": 3}, 11, 3),
        ({"promptTokenCount": "7", "candidatesTokenCount": None}, None, None),
    ),
    usage="usageMetadata",
    without={**_UNSTREAMED, "cost": "Gemini names no cost", "cache_write": "Gemini says nothing of what it writes to its cache"},
)

NONE = Speech(
    system=CHAT.system,
    turns=CHAT.turns,
    options={},
    reply=CHAT.reply,
    forms={},
    counts=(),
    without=dict.fromkeys(("server", "stream", "key"), "no server stands behind this client"),
)

WIRES: Mapping[str, Speech] = {"chat": CHAT, "responses": RESPONSES, "anthropic": ANTHROPIC, "gemini": GEMINI, "none": NONE}
