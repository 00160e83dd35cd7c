"""The OpenAI client against a real socket: what is sent, what is understood, what a cancel does."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import anyio
import pytest

from arlm.clients.openai import OpenAILM
from arlm.errors import ConfigError, Refused
from arlm.testing import Script, ScriptedProvider, start_provider
from arlm.types import TokenUsage

KEY = "sk-a-very-secret-key"


def lm_of(server: Any, **options: Any) -> OpenAILM:
    return OpenAILM("small", **{"base_url": server.url, "api_key": KEY, **options})


async def body_of(provider: ScriptedProvider) -> dict[str, Any]:
    body: dict[str, Any] = (await provider.requests())[-1]["body"]
    return body


async def headers_of(provider: ScriptedProvider) -> dict[str, str]:
    headers: dict[str, str] = (await provider.requests())[-1]["headers"]
    return headers


async def test_a_call_is_one_chat_completion(provider: ScriptedProvider) -> None:
    completion = await lm_of(provider).acompletion("hello")
    assert (completion.text, completion.model, completion.finish_reason, completion.response_id) == (
        "hello",
        "openai/small",
        "stop",
        "chatcmpl-1",
    )
    assert await body_of(provider) == {"model": "small", "messages": [{"role": "user", "content": "hello"}]}
    headers = await headers_of(provider)
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["content-type"] == "application/json"


async def test_usage_has_cached_reasoning_and_written_tokens_and_the_providers_own_cost(provider: ScriptedProvider) -> None:
    await provider.configure({"sub": {"text": "x" * 8}, "cached_tokens": 3, "reasoning_tokens": 4, "cache_write_tokens": 2, "cost": 0.01})
    lm = lm_of(provider)
    expected = TokenUsage(input_tokens=10, output_tokens=6, cached_tokens=3, cache_write_tokens=2, reasoning_tokens=4, cost_usd=0.01)
    assert (await lm.acompletion("y" * 40)).usage == expected
    assert lm.get_last_usage() == expected


async def test_a_provider_that_reports_no_usage_leaves_it_unknown(provider: ScriptedProvider) -> None:
    await provider.configure({"usage": False})
    assert (await lm_of(provider).acompletion("x")).usage == TokenUsage()


async def test_an_empty_reply_cut_by_its_length_is_a_completion(provider: ScriptedProvider) -> None:
    await provider.configure({"sub": "empty", "finish_reason": "length", "reasoning_tokens": 100})
    completion = await lm_of(provider).acompletion("x")
    assert (completion.text, completion.finish_reason, completion.usage.output_tokens) == ("", "length", 100)


@pytest.mark.parametrize("script", [{"refusal": "I will not."}, {"sub": "empty", "finish_reason": "content_filter"}])
async def test_a_refusal_is_an_error_that_carries_what_was_billed(provider: ScriptedProvider, script: dict[str, Any]) -> None:
    await provider.configure(script)
    with pytest.raises(Refused) as caught:
        await lm_of(provider).acompletion("x" * 4)
    assert caught.value.usage is not None
    assert caught.value.usage.input_tokens == 1


async def test_unicode_survives_and_a_lone_surrogate_becomes_a_replacement_character(provider: ScriptedProvider) -> None:
    text = "quotes \" ' \\ NUL \0 CRLF \r\n tab \t é 漢 😀 \u2028 \x7f"
    lm = lm_of(provider)
    assert (await lm.acompletion(text)).text == text
    assert (await lm.acompletion("a\ud800b\udc00c😀")).text == "a\ufffdb\ufffdc😀"


async def test_a_prompt_of_a_megabyte_goes_and_comes_back(provider: ScriptedProvider) -> None:
    text = "a line of text, é\n" * 60_000
    assert (await lm_of(provider).acompletion(text)).text == text


async def test_sampling_options_stand_in_the_body_under_the_providers_names(provider: ScriptedProvider) -> None:
    sampling = {
        "temperature": 0.5,
        "max_tokens": 9,
        "stop": ["x"],
        "seed": 1,
        "top_p": 0.9,
        "reasoning_effort": "low",
        "extra_body": {"user": "me"},
    }
    common = {"temperature": 0.5, "stop": ["x"], "seed": 1, "top_p": 0.9, "reasoning_effort": "low", "user": "me"}
    await lm_of(provider).acompletion("x", sampling=sampling)
    assert (await body_of(provider)).items() >= {**common, "max_completion_tokens": 9}.items()
    await lm_of(provider, provider="vllm").acompletion("x", sampling=sampling)
    assert (await body_of(provider)).items() >= {**common, "max_tokens": 9}.items()
    assert "max_completion_tokens" not in await body_of(provider)


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"temprature": 1}, r"temprature.*there is: .*temperature"),
        ({"extra_body": {"messages": []}}, "extra_body"),
        ({"extra_body": "text"}, "extra_body"),
        ({"stop": {1, 2}}, "a text, or a list of texts"),
        ({"temperature": float("nan")}, "a number, 0 or more"),
        ({"extra_body": {"logit_bias": {1, 2}}}, "JSON"),
    ],
)
async def test_a_sampling_option_that_cannot_be_is_refused_before_anything_is_sent(
    provider: ScriptedProvider, sampling: dict[str, Any], said: str
) -> None:
    lm = lm_of(provider)
    with pytest.raises(ConfigError, match=said):
        await lm.acompletion("x", sampling=sampling)
    assert (await provider.stats())["calls"] == lm.get_usage_summary().total.calls == 0


async def test_another_model_of_the_same_provider_can_be_asked(provider: ScriptedProvider) -> None:
    lm = lm_of(provider)
    assert (await lm.acompletion("x", model="openai/large")).model == "openai/large"
    assert (await lm.acompletion("x", model="ft:large/two")).model == "openai/ft:large/two"
    assert (await provider.stats())["by_model"] == {"large": 1, "ft:large/two": 1}


async def test_azure_gets_its_own_path_version_and_header(provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", provider.url.removesuffix("/v1"))
    monkeypatch.setenv("OPENAI_API_VERSION", "2024-10-21")
    await provider.configure({"key": KEY})
    completion = await OpenAILM("my deployment", provider="azure").acompletion("x")
    assert completion.model == "azure/my deployment"
    assert (await provider.requests())[-1]["path"] == "/openai/deployments/my%20deployment/chat/completions"
    headers = await headers_of(provider)
    assert headers["api-key"] == KEY
    assert "authorization" not in headers


async def test_openrouter_is_asked_for_its_cost(provider: ScriptedProvider) -> None:
    await lm_of(provider, provider="openrouter").acompletion("x")
    assert (await body_of(provider))["usage"] == {"include": True}


async def test_a_provider_without_a_key_gets_no_authorization(provider: ScriptedProvider) -> None:
    await OpenAILM("m", provider="vllm", base_url=provider.url).acompletion("x")
    assert "authorization" not in await headers_of(provider)


async def test_an_openai_accounts_own_headers_reach_openai_alone(provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway: secret\nAuthorization: Bearer other")
    await lm_of(provider, provider="openrouter").acompletion("x")
    headers = await headers_of(provider)
    assert not {"openai-organization", "x-gateway"} & headers.keys()
    assert headers["authorization"] == f"Bearer {KEY}"
    async with ScriptedProvider() as second:
        await lm_of(second).acompletion("x")
        headers = await headers_of(second)
        assert (headers["openai-organization"], headers["x-gateway"]) == ("org-1", "secret")


async def test_the_environments_proxy_is_used_and_its_exceptions_hold(provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", provider.url.removesuffix("/v1"))
    lm = OpenAILM("m", api_key=KEY, base_url="http://nowhere.invalid/v1")
    assert (await lm.acompletion("through the proxy")).text == "through the proxy"
    assert (await provider.requests())[-1]["path"] == "http://nowhere.invalid/v1/chat/completions"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert (await lm_of(provider).acompletion("direct")).text == "direct"
    assert (await provider.requests())[-1]["path"] == "/v1/chat/completions"


async def test_two_hundred_calls_at_once_each_get_their_own_answer_and_usage() -> None:
    async with start_provider({"sub": "sha256", "hold": 200, "jitter": 0.05}) as provider:
        lm = lm_of(provider)
        prompts = [f"{number} " * number for number in range(200)]
        completions = await asyncio.gather(*[lm.acompletion(prompt) for prompt in prompts])
        again = await asyncio.gather(*[lm.acompletion(prompt) for prompt in reversed(prompts)])
        assert [completion.text for completion in completions] == [completion.text for completion in reversed(again)]
        assert len({completion.text for completion in completions}) == 200
        assert [completion.usage.input_tokens for completion in completions] == [-(-len(prompt) // 4) for prompt in prompts]
        stats, total = await provider.stats(), lm.get_usage_summary().total
        assert stats["max_in_flight"] == stats["connections"] == 200
        counted = (total.calls, total.input_tokens, total.output_tokens)
        assert counted == (400, stats["prompt_tokens"], stats["completion_tokens"])


async def test_all_objects_of_one_endpoint_share_their_connections(provider: ScriptedProvider) -> None:
    for _ in range(5):
        await lm_of(provider).acompletion("x")
    assert (await provider.stats())["connections"] == 1
    await lm_of(provider, api_key="sk-another-key").acompletion("x")
    assert (await provider.stats())["connections"] == 2


async def test_cancelling_a_call_closes_its_connection(provider: ScriptedProvider) -> None:
    await provider.configure({"faults": ["stall"]})
    lm = lm_of(provider)

    task = asyncio.create_task(lm.acompletion("x"))
    await provider.until(lambda stats: stats["in_flight"] == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await provider.until(lambda stats: stats["open_connections"] == 0)
    assert (await provider.stats())["aborted"] == 1
    assert lm.get_usage_summary().total.cancelled == 1
    assert (await lm.acompletion("after")).text == "after"


async def test_leaving_an_anyio_scope_closes_all_its_connections(provider: ScriptedProvider) -> None:
    await provider.configure({"latency": 60})
    lm = lm_of(provider)

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(lm.acompletion, "x")
        await provider.until(lambda stats: stats["in_flight"] == 50)
        group.cancel_scope.cancel()
    await provider.until(lambda stats: stats["open_connections"] == 0)
    assert (await provider.stats())["aborted"] == 50


async def test_a_cancel_before_the_first_call_has_opened_anything_leaves_the_others_alone(provider: ScriptedProvider) -> None:
    lm = lm_of(provider)
    tasks = [asyncio.create_task(lm.acompletion(str(number))) for number in range(10)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert [result.text for result in results[1:]] == [str(number) for number in range(1, 10)]  # type: ignore[union-attr]


async def test_one_object_serves_several_loops_and_each_closes_its_connections(provider: ScriptedProvider) -> None:
    lm = lm_of(provider)
    completions = await asyncio.gather(*[asyncio.to_thread(lm.completion, "x") for _ in range(3)])
    assert [completion.text for completion in completions] == ["x", "x", "x"]
    await provider.until(lambda stats: stats["open_connections"] == 0)
    assert (await provider.stats())["connections"] == 3


def test_the_end_of_asyncio_run_leaves_nothing_unclosed() -> None:
    async def main() -> None:
        async with ScriptedProvider(Script()) as provider:
            await asyncio.gather(*[lm_of(provider).acompletion("x") for _ in range(3)])

    asyncio.run(main())
    gc.collect()  # an unclosed session warns here, and warnings are errors
