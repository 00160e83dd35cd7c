"""What only one wire of the scripted provider has, by the vendor's own SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest
from google import genai
from google.genai import types

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from arlm.testing import ScriptedProvider

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def gpt(provider: ScriptedProvider) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key="k", base_url=provider.url, max_retries=0) as client:
        yield client


@pytest.fixture
async def claude(provider: ScriptedProvider) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(api_key="k", base_url=provider.root, max_retries=0) as client:
        yield client


@pytest.fixture
async def gemini(provider: ScriptedProvider) -> AsyncIterator[genai.client.AsyncClient]:
    client = genai.Client(api_key="k", http_options=types.HttpOptions(base_url=provider.root)).aio
    yield client
    await client.aclose()


async def test_a_model_of_responses_alone_says_so_on_chat_completions(provider: ScriptedProvider, gpt: openai.AsyncOpenAI) -> None:
    await provider.configure({"responses_only": ["o9-pro"]})
    with pytest.raises(openai.NotFoundError) as caught:
        await gpt.chat.completions.create(model="o9-pro", messages=HELLO)
    assert caught.value.body == {
        "message": "This model is only supported in v1/responses and not in v1/chat/completions.",
        "type": "invalid_request_error",
        "param": "model",
        "code": None,
    }
    assert (await gpt.responses.create(model="o9-pro", input="hello")).output_text == "hello"
    assert (await gpt.chat.completions.create(model="other", messages=HELLO)).choices[0].message.content == "hello"


async def test_responses_reads_parts_and_passes_over_reasoning_sent_back(provider: ScriptedProvider, gpt: openai.AsyncOpenAI) -> None:
    await provider.configure({"turns": ["first", "second"]})
    items: Any = [
        {"role": "developer", "content": [{"type": "input_text", "text": "a root"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "question"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "first", "annotations": []}]},
        {"role": "user", "content": "further"},
    ]
    assert (await gpt.responses.create(model="m", input=items)).output_text == "second"


async def test_a_failed_response_has_its_error_in_a_200(provider: ScriptedProvider, gpt: openai.AsyncOpenAI) -> None:
    await provider.configure({"finish_reason": "error"})
    made = await gpt.responses.create(model="m", input="hello")
    assert made.status == "failed"
    assert made.error is not None
    assert made.error.code == "server_error"


async def test_a_refusal_of_responses_is_a_part(provider: ScriptedProvider, gpt: openai.AsyncOpenAI) -> None:
    await provider.configure({"refusal": "I will not."})
    [message] = (await gpt.responses.create(model="m", input="hello")).output
    assert message.type == "message"
    [part] = message.content
    assert part.type == "refusal"
    assert part.refusal == "I will not."


async def test_the_cost_is_told_where_openrouter_tells_it(provider: ScriptedProvider, gpt: openai.AsyncOpenAI) -> None:
    await provider.configure({"cost": 0.25})
    chat = await gpt.chat.completions.create(model="m", messages=HELLO)
    response = await gpt.responses.create(model="m", input="hello")
    assert [made.usage.model_extra for made in (chat, response) if made.usage] == [{"cost": 0.25}] * 2


async def test_a_blocked_prompt_is_a_bad_request_of_openai(provider: ScriptedProvider, gpt: openai.AsyncOpenAI) -> None:
    await provider.configure({"prompt_blocked": True})
    for call in (gpt.chat.completions.create(model="m", messages=HELLO), gpt.responses.create(model="m", input="hello")):
        with pytest.raises(openai.BadRequestError) as caught:
            await call
        assert caught.value.code == "content_filter"


async def test_content_in_parts_is_read_as_one_text(provider: ScriptedProvider, gpt: openai.AsyncOpenAI) -> None:
    parts: Any = [{"type": "text", "text": "one, "}, {"type": "text", "text": "two"}]
    made = await gpt.chat.completions.create(
        model="m", messages=[{"role": "assistant", "content": None}, {"role": "user", "content": parts}]
    )
    assert made.choices[0].message.content == "one, two"


async def test_azures_token_is_a_key_too(provider: ScriptedProvider) -> None:
    await provider.configure({"key": "a token"})
    given: Any = {"azure_endpoint": provider.root, "api_version": "2024-10-21", "max_retries": 0}
    async with openai.AsyncAzureOpenAI(azure_ad_token="a token", **given) as client:
        assert (await client.chat.completions.create(model="deployment", messages=HELLO)).model == "deployment"
    assert (await provider.requests())[-1]["path"] == "/openai/deployments/deployment/chat/completions"


async def test_a_wire_that_is_not_streamed_says_so(provider: ScriptedProvider, gpt: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="does not stream"):
        await gpt.chat.completions.create(model="m", messages=HELLO, stream=True)


async def listen(claude: anthropic.AsyncAnthropic, got: list[str]) -> None:
    async with claude.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "hello " * 50}]) as stream:
        async for text in stream.text_stream:
            got.append(text)  # noqa: PERF401 - what came before the end counts


async def test_an_error_in_mid_stream_comes_after_some_text(provider: ScriptedProvider, claude: anthropic.AsyncAnthropic) -> None:
    await provider.configure({"faults": ["stream_error"]})
    got: list[str] = []
    with pytest.raises(anthropic.APIStatusError) as caught:
        await listen(claude, got)
    assert caught.value.type == "overloaded_error"
    assert 0 < len("".join(got)) < 300
    assert (await provider.stats())["answered"] == 0


async def test_an_error_in_mid_stream_is_an_overload_where_nothing_is_streamed(
    provider: ScriptedProvider, claude: anthropic.AsyncAnthropic
) -> None:
    await provider.configure({"faults": ["stream_error"]})
    with pytest.raises(anthropic.InternalServerError) as caught:
        await claude.messages.create(model="m", max_tokens=9, messages=HELLO)
    assert caught.value.status_code == 529


async def test_a_stream_cut_in_the_middle_had_begun(provider: ScriptedProvider, claude: anthropic.AsyncAnthropic) -> None:
    await provider.configure({"faults": ["cut"]})
    got: list[str] = []
    with pytest.raises(Exception, match="incomplete"):
        await listen(claude, got)
    assert 0 < len("".join(got)) < 300


async def test_a_refusal_of_anthropic_has_its_explanation(provider: ScriptedProvider, claude: anthropic.AsyncAnthropic) -> None:
    await provider.configure({"refusal": "I will not."})
    made = await claude.messages.create(model="m", max_tokens=9, messages=HELLO)
    assert (made.stop_reason, made.content) == ("refusal", [])
    assert made.stop_details is not None
    assert made.stop_details.explanation == "I will not."


async def test_cached_input_of_anthropic_is_counted_beside_the_rest(provider: ScriptedProvider, claude: anthropic.AsyncAnthropic) -> None:
    await provider.configure({"cached_tokens": 3, "cache_write_tokens": 4})
    usage = (await claude.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "x" * 40}])).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (3, 3, 4)
    assert (await provider.stats())["prompt_tokens"] == 10


async def test_the_errors_of_anthropic_say_what_the_real_ones_say(provider: ScriptedProvider, claude: anthropic.AsyncAnthropic) -> None:
    await provider.configure({"max_output_tokens": 8_192, "context_chars": 100})
    with pytest.raises(
        anthropic.BadRequestError, match=r"max_tokens: 9000 > 8192, which is the maximum allowed number of output tokens for m"
    ):
        await claude.messages.create(model="m", max_tokens=9_000, messages=HELLO)
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: 30 tokens > 25 maximum"):
        await claude.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "x" * 120}])
    with pytest.raises(anthropic.BadRequestError, match=r"messages.1: all messages must have non-empty content") as caught:
        await claude.messages.create(model="m", max_tokens=9, messages=[*HELLO, {"role": "assistant", "content": ""}, *HELLO])
    assert caught.value.request_id is not None
    assert caught.value.request_id.startswith("req_")


async def test_anthropics_bearer_token_is_a_key_too(provider: ScriptedProvider) -> None:
    await provider.configure({"key": "a token"})
    async with anthropic.AsyncAnthropic(auth_token="a token", base_url=provider.root, max_retries=0) as client:
        assert (await client.messages.create(model="m", max_tokens=9, messages=HELLO)).stop_reason == "end_turn"


async def test_a_wait_is_a_header_but_stands_in_the_body_of_gemini(
    provider: ScriptedProvider, claude: anthropic.AsyncAnthropic, gemini: genai.client.AsyncClient
) -> None:
    script = {"retry_after": "7", "retry_after_ms": "1500"}
    await provider.configure({"faults": ["429"], **script})
    with pytest.raises(anthropic.RateLimitError) as limited:
        await claude.messages.create(model="m", max_tokens=9, messages=HELLO)
    assert (limited.value.response.headers["retry-after"], limited.value.response.headers["retry-after-ms"]) == ("7", "1500")
    await provider.configure({"faults": ["429"], **script})
    with pytest.raises(genai.errors.ClientError) as caught:
        await gemini.models.generate_content(model="m", contents="hello")
    assert caught.value.status == "RESOURCE_EXHAUSTED"
    assert caught.value.details["error"]["details"] == [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.5s"}]


async def test_a_wait_that_is_a_date_is_not_told_by_gemini(provider: ScriptedProvider, gemini: genai.client.AsyncClient) -> None:
    await provider.configure({"faults": ["429"], "retry_after": "Wed, 21 Oct 2026 07:28:00 GMT"})
    with pytest.raises(genai.errors.ClientError) as caught:
        await gemini.models.generate_content(model="m", contents="hello")
    assert "details" not in caught.value.details["error"]


async def test_a_blocked_prompt_of_gemini_has_feedback_and_no_candidate(
    provider: ScriptedProvider, gemini: genai.client.AsyncClient
) -> None:
    await provider.configure({"prompt_blocked": True, "reasoning_tokens": 3})
    made = await gemini.models.generate_content(model="m", contents="hello")
    assert (made.candidates, made.text) == (None, None)
    assert made.prompt_feedback is not None
    assert made.prompt_feedback.block_reason is types.BlockedReason.PROHIBITED_CONTENT
    stats = await provider.stats()
    assert (stats["prompt_tokens"], stats["completion_tokens"], stats["reasoning_tokens"]) == (2, 0, 0)


async def test_the_errors_of_gemini_say_what_the_real_ones_say(provider: ScriptedProvider, gemini: genai.client.AsyncClient) -> None:
    async def told(script: dict[str, Any]) -> tuple[int, str | None, str | None]:
        await provider.configure(script)
        with pytest.raises(genai.errors.APIError) as caught:
            await gemini.models.generate_content(model="m", contents="hello there")
        return caught.value.code, caught.value.status, caught.value.message

    too_long = "The input token count (3) exceeds the maximum number of tokens allowed (1)."
    assert await told({"context_chars": 4}) == (400, "INVALID_ARGUMENT", too_long)
    assert await told({"key": "another"}) == (400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.")
    assert await told({"faults": ["503"]}) == (503, "UNAVAILABLE", "The model is overloaded. Please try again later.")
    assert (await told({"missing_models": ["m"]}))[:2] == (404, "NOT_FOUND")


async def test_the_sdks_list_their_models(
    provider: ScriptedProvider, gpt: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic, gemini: genai.client.AsyncClient
) -> None:
    await provider.configure({"models": ["one", "two"]})
    assert [model.id async for model in gpt.models.list()] == ["one", "two"]
    assert [model.id async for model in claude.models.list()] == ["one", "two"]
    assert [model.name async for model in await gemini.models.list()] == ["models/one", "models/two"]
    vertex = genai.Client(vertexai=True, api_key="k", http_options=types.HttpOptions(base_url=provider.root)).aio
    assert [model.name async for model in await vertex.models.list()] == [f"publishers/google/models/{name}" for name in ("one", "two")]
    await vertex.aclose()
