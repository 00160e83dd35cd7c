"""Every body that the scripted provider sends, against the SDKs' own models: strictly, and with no field that they do not know."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import pytest
from anthropic.types import Message, ModelInfo, RawMessageStreamEvent
from anthropic.types.shared import ErrorResponse
from google.genai.types import FinishReason, GenerateContentResponse
from openai.types import ErrorObject, Model
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from portkey_ai.api_resources.types.chat_complete_type import ChatCompletions
from pydantic import BaseModel, TypeAdapter

if TYPE_CHECKING:
    from arlm.testing import ScriptedProvider

T = TypeVar("T", bound=BaseModel)
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
ANTHROPIC = {"x-api-key": "k", "anthropic-version": "2023-06-01"}
GEMINI = {"x-goog-api-key": "k"}

SCRIPTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "with everything": {
        "sub": {"text": "an answer " * 40},
        "thinking": "a thought " * 40,
        "cached_tokens": 1,
        "cache_write_tokens": 1,
        "reasoning_tokens": 7,
    },
    "empty": {"sub": "empty"},
    "cut short": {"finish_reason": "length", "reasoning_tokens": 5},
    "nothing but reasoning": {"finish_reason": "length", "sub": "empty", "reasoning_tokens": 5},
    "filtered": {"finish_reason": "content_filter"},
    "refused": {"refusal": "I will not."},
}
REFUSING: dict[str, tuple[int, dict[str, Any]]] = {
    "key": (401, {"key": "another"}),
    "model": (404, {"missing_models": ["m"]}),
    "context": (400, {"context_chars": 3}),
    "output": (400, {"max_output_tokens": 8}),
    "rate": (429, {"rate": 1e-6, "burst": 0.0}),
    **{fault: (int(fault), {"faults": [fault]}) for fault in ("401", "403", "429", "500", "502", "503", "504", "529")},
}


def fields(value: object) -> Iterator[BaseModel]:
    """The model, and all models in it."""
    if isinstance(value, BaseModel):
        yield value
        value = list(dict(value).values())
    elif isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from fields(item)


def strictly(kind: type[T], raw: str | bytes) -> T:
    made = kind.model_validate_json(raw, strict=True)
    assert [model for model in fields(made) if model.model_extra] == []
    return made


async def post(provider: ScriptedProvider, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> httpx.Response:
    async with httpx.AsyncClient(base_url=provider.root, headers=dict(headers), trust_env=False) as client:
        return await client.post(path, json=body)


async def chat(provider: ScriptedProvider) -> httpx.Response:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
    return await post(provider, "/v1/chat/completions", body, {"authorization": "Bearer k"})


async def responses(provider: ScriptedProvider, model: str = "m") -> httpx.Response:
    return await post(provider, "/v1/responses", {"model": model, "max_output_tokens": 9, "input": "hello"}, {"authorization": "Bearer k"})


async def messages(provider: ScriptedProvider, **more: Any) -> httpx.Response:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}], **more}
    return await post(provider, "/v1/messages", body, ANTHROPIC)


async def content(provider: ScriptedProvider) -> httpx.Response:
    body = {"contents": [{"role": "user", "parts": [{"text": "hello"}]}], "generationConfig": {"maxOutputTokens": 9}}
    return await post(provider, "/v1beta/models/m:generateContent", body, GEMINI)


def events_of(raw: str) -> list[tuple[str, str]]:
    """Name and data of each event; every one has both."""
    assert raw.endswith("\n\n")
    pairs = []
    for block in raw.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        pairs.append((name.removeprefix("event: "), data.removeprefix("data: ")))
    return pairs


@pytest.mark.parametrize("script", SCRIPTS)
async def test_chat_completions(provider: ScriptedProvider, script: str) -> None:
    await provider.configure(SCRIPTS[script])
    raw = (await chat(provider)).content
    strictly(ChatCompletion, raw)
    if script != "with everything":  # what was written to the cache is a detail that Portkey's models have not heard of
        strictly(ChatCompletions, raw)


@pytest.mark.parametrize("script", [*SCRIPTS, "failed"])
async def test_responses(provider: ScriptedProvider, script: str) -> None:
    await provider.configure(SCRIPTS.get(script, {"finish_reason": "error"}))
    made = strictly(Response, (await responses(provider, "gpt-5")).content)
    assert (made.error is not None) == (made.status == "failed") == (script == "failed")
    assert (made.incomplete_details is not None) == (made.status == "incomplete")
    if script == "with everything":
        assert [item.type for item in made.output] == ["reasoning", "message"]
    if script == "nothing but reasoning":
        assert [item.type for item in made.output] == ["reasoning"]


@pytest.mark.parametrize("script", [*SCRIPTS, "at a stop sequence", "at the end of the window"])
async def test_messages(provider: ScriptedProvider, script: str) -> None:
    further = {"at a stop sequence": "stop_sequence", "at the end of the window": "model_context_window_exceeded"}
    await provider.configure(SCRIPTS.get(script) or {"finish_reason": further.get(script, "stop")})
    made = strictly(Message, (await messages(provider, stop_sequences=["END"])).content)
    assert (made.stop_details is not None) == (made.stop_reason == "refusal")
    assert made.stop_sequence == ("END" if script == "at a stop sequence" else None)


@pytest.mark.parametrize("script", SCRIPTS)
async def test_streamed_messages(provider: ScriptedProvider, script: str) -> None:
    await provider.configure(SCRIPTS[script])
    reply = await messages(provider, stream=True)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = events_of(reply.text)
    assert [name for name, _ in events[:2]] == ["message_start", "ping"]
    assert [name for name, _ in events[-2:]] == ["message_delta", "message_stop"]
    for name, data in events:
        if name == "ping":  # which the SDK drops before it looks at it
            assert json.loads(data) == {"type": "ping"}
            continue
        event = EVENT.validate_json(data, strict=True)
        assert event.type == name
        assert [model for model in fields(event) if model.model_extra] == []


async def test_a_streamed_message_is_the_whole_one_in_pieces(provider: ScriptedProvider) -> None:
    await provider.configure(SCRIPTS["with everything"])
    whole = (await messages(provider)).json()
    events = [json.loads(data) for _, data in events_of((await messages(provider, stream=True)).text)]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta.get("thinking", "") for delta in deltas) == whole["content"][0]["thinking"]
    assert "".join(delta.get("text", "") for delta in deltas) == whole["content"][1]["text"]
    assert [delta["signature"] for delta in deltas if "signature" in delta] == [whole["content"][0]["signature"]]
    assert len(deltas) > 4
    told = events[-2]["usage"]
    assert told == {name: whole["usage"][name] for name in told}


@pytest.mark.parametrize("script", [*SCRIPTS, "blocked", *[reason.value for reason in FinishReason if "UNSPECIFIED" not in reason.value]])
async def test_generated_content(provider: ScriptedProvider, script: str) -> None:
    further = {"prompt_blocked": True} if script == "blocked" else {"finish_reason": script}
    await provider.configure(SCRIPTS.get(script, further))
    made = strictly(GenerateContentResponse, (await content(provider)).content)
    if script == "blocked":
        assert made.candidates is None
        assert made.prompt_feedback is not None
        assert made.prompt_feedback.block_reason is not None
        assert made.usage_metadata is not None
        assert made.usage_metadata.total_token_count == 2
        return
    assert made.candidates is not None
    [candidate] = made.candidates
    assert (candidate.content is None) == (script == "refused")
    if script in FinishReason.__members__:
        assert candidate.finish_reason is FinishReason(script)


@pytest.mark.parametrize("trouble", REFUSING)
async def test_the_errors_of_openai(provider: ScriptedProvider, trouble: str) -> None:
    status, script = REFUSING[trouble]
    for ask in (chat, responses):
        await provider.configure(script)
        reply = await ask(provider)
        assert reply.status_code == status
        assert list(reply.json()) == ["error"]
        strictly(ErrorObject, json.dumps(reply.json()["error"]))


@pytest.mark.parametrize("trouble", REFUSING)
async def test_the_errors_of_anthropic(provider: ScriptedProvider, trouble: str) -> None:
    status, script = REFUSING[trouble]
    await provider.configure(script)
    reply = await messages(provider)
    assert reply.status_code == status
    error = strictly(ErrorResponse, reply.content)
    assert error.request_id == reply.headers["request-id"]


async def test_a_request_too_large_has_a_type_that_the_sdks_union_lacks(provider: ScriptedProvider) -> None:
    await provider.configure({"faults": ["413"]})
    assert (await messages(provider)).json()["error"]["type"] == "request_too_large"


@pytest.mark.parametrize("trouble", REFUSING)
async def test_the_errors_of_gemini(provider: ScriptedProvider, trouble: str) -> None:
    status, script = REFUSING[trouble]
    await provider.configure({**script, "retry_after": "34"})
    reply = await content(provider)
    error = reply.json()["error"]
    assert reply.status_code == error["code"] == (400 if trouble == "key" else status)
    assert error["status"].isupper()
    assert set(error) <= {"code", "message", "status", "details"}
    details = {detail["@type"].rpartition(".")[2]: detail for detail in error.get("details", [])}
    if status in (429, 503):
        assert details["RetryInfo"]["retryDelay"] == "34s"
        assert "retry-after" not in reply.headers
    elif trouble == "key":
        assert details["ErrorInfo"]["reason"] == "API_KEY_INVALID"
    else:
        assert details == {}


async def test_the_lists_of_models_are_each_vendors_own(provider: ScriptedProvider) -> None:
    await provider.configure({"models": ["one", "two"], "context_chars": 800, "max_output_tokens": 50, "missing_models": ["gone"]})
    async with httpx.AsyncClient(base_url=provider.root, trust_env=False) as client:
        openai_list = (await client.get("/v1/models")).json()
        anthropic_list = (await client.get("/v1/models", headers=ANTHROPIC)).json()
        gemini_list = (await client.get("/v1beta/models", headers=GEMINI)).json()
        one = await client.get("/v1/models/two", headers=ANTHROPIC)
        gone = await client.get("/v1/models/gone", headers=ANTHROPIC)
        await provider.configure({"key": "another"})
        refused = [(await client.get("/v1/models", headers=headers)).status_code for headers in ({}, ANTHROPIC, GEMINI)]
    assert [strictly(Model, json.dumps(it)).id for it in openai_list["data"]] == ["one", "two"]
    assert [strictly(ModelInfo, json.dumps(it)).id for it in anthropic_list["data"]] == ["one", "two"]
    assert [it["name"] for it in gemini_list["models"]] == ["models/one", "models/two"]
    assert (one.json()["max_input_tokens"], one.json()["max_tokens"]) == (200, 50)
    assert (gemini_list["models"][0]["inputTokenLimit"], gemini_list["models"][0]["outputTokenLimit"]) == (200, 50)
    assert (gone.status_code, strictly(ErrorResponse, gone.content).error.type) == (404, "not_found_error")
    assert refused == [401, 401, 400]


async def test_lone_surrogates_come_back_whole_on_every_wire(provider: ScriptedProvider) -> None:
    text = "a\ud800b\udfffc"
    bodies: list[tuple[str, dict[str, Any], dict[str, str]]] = [
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": text}]}, {}),
        ("/v1/responses", {"model": "m", "input": text}, {}),
        ("/v1/messages", {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": text}]}, ANTHROPIC),
        ("/v1beta/models/m:generateContent", {"contents": [{"parts": [{"text": text}]}]}, GEMINI),
    ]
    async with httpx.AsyncClient(base_url=provider.root, trust_env=False) as client:
        for path, body, headers in bodies:
            reply = await client.post(path, content=json.dumps(body), headers=headers)
            assert text in list(_texts(reply.json()))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
