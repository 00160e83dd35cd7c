"""What is OpenAI's own: models of the Responses API, Azure with key and token. What all clients share is in the conformance suite."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from arlm.clients import link
from arlm.clients.openai import OpenAILM
from arlm.errors import AuthError, BadRequest, ConfigError, ConnectionFailed
from arlm.testing.lm_canned import CannedServer, said

if TYPE_CHECKING:
    from arlm.testing import ScriptedProvider

KEY = "sk-a-very-secret-key"
TOKEN = "ey-a-very-secret-entra-token"


def lm_of(provider: ScriptedProvider, model: str = "small", **options: Any) -> OpenAILM:
    return OpenAILM(model, **{"base_url": provider.url, "api_key": KEY, **options})


async def wires_of(provider: ScriptedProvider) -> list[str]:
    return [request["wire"] for request in await provider.requests()]


@pytest.mark.parametrize("model", ["o3-pro", "o1-pro-2025-03-19", "gpt-5-pro", "gpt-5.2-pro", "gpt-5.1-codex-max", "o4-mini-deep-research"])
async def test_models_known_to_need_responses_are_asked_there_at_once(provider: ScriptedProvider, model: str) -> None:
    await lm_of(provider).acompletion("x", model=model)
    assert await wires_of(provider) == ["responses"]


@pytest.mark.parametrize(("model", "name"), [("gpt-5-mini", "openai"), ("openai/o3-pro", "openrouter"), ("o3-pro", "vllm")])
async def test_all_others_are_asked_by_chat_completions(provider: ScriptedProvider, model: str, name: str) -> None:
    await OpenAILM(model, provider=name, base_url=provider.url, api_key=KEY).acompletion("x")
    assert await wires_of(provider) == ["chat"]


async def test_a_model_that_needs_responses_is_found_out_once(provider: ScriptedProvider) -> None:
    await provider.configure({"responses_only": ["new"]})
    lm = lm_of(provider, "new")
    for text in ("one", "two"):
        completion: Any = await lm.acompletion(text)
        assert completion.text == text
    assert await wires_of(provider) == ["chat", "responses", "responses"]
    assert (lm.get_usage_summary().total.calls, lm.get_usage_summary().total.failed) == (2, 0)
    await lm.acompletion("x", model="small")
    assert (await wires_of(provider))[-1] == "chat"


async def test_many_first_calls_at_once_find_it_out_together(provider: ScriptedProvider) -> None:
    await provider.configure({"responses_only": ["new"]})
    lm = lm_of(provider, "new")
    texts = [str(number) for number in range(50)]
    completions: list[Any] = await asyncio.gather(*[lm.acompletion(text) for text in texts])
    assert [completion.text for completion in completions] == texts
    assert lm.get_usage_summary().total.failed == 0


async def test_azures_refusal_is_understood_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_VERSION", "2025-04-01-preview")
    words = "The chatCompletion operation does not work with the specified model, o3-pro. Please choose different model and try again."
    text = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "found", "annotations": []}]}
    replies = [
        said({"error": {"code": "OperationNotSupported", "message": words}}, 400),
        said({"id": "resp_1", "object": "response", "status": "completed", "output": [text]}),
    ]
    async with CannedServer(replies) as server:
        completion: Any = await OpenAILM("my-deployment", provider="azure", base_url=server.root, api_key=KEY).acompletion("x")
        assert (completion.text, server.asked) == ("found", 2)


async def test_an_option_that_responses_lacks_is_refused_once_the_model_is_found_out(provider: ScriptedProvider) -> None:
    await provider.configure({"responses_only": ["new"]})
    with pytest.raises(ConfigError, match="stop"):
        await lm_of(provider, "new").acompletion("x", sampling={"stop": "END"})
    assert (await provider.stats())["answered"] == 0


async def test_a_failed_response_is_an_error_with_what_it_cost(provider: ScriptedProvider) -> None:
    await provider.configure({"finish_reason": "error"})
    with pytest.raises(Exception, match="failed to generate") as caught:
        await lm_of(provider, "o3-pro").acompletion("x" * 40)
    assert getattr(caught.value, "retryable", False)
    assert caught.value.usage.input_tokens == 10  # type: ignore[attr-defined]


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch, provider: ScriptedProvider) -> Callable[..., OpenAILM]:
    """Makes a client of Azure; what it authenticates itself with is the test's."""
    monkeypatch.setenv("OPENAI_API_VERSION", "2024-10-21")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", provider.root)
    return lambda **options: OpenAILM("small", provider="azure", **options)


async def sent_by(provider: ScriptedProvider) -> dict[str, str]:
    """The headers of the last call that authenticate it."""
    headers: dict[str, str] = (await provider.requests())[-1]["headers"]
    return {name: value for name, value in headers.items() if name in ("authorization", "api-key")}


async def test_azure_takes_a_key(provider: ScriptedProvider, azure: Callable[..., OpenAILM], monkeypatch: pytest.MonkeyPatch) -> None:
    await azure(api_key=KEY).acompletion("x")
    assert await sent_by(provider) == {"api-key": KEY}
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "another-key")
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", TOKEN)
    await azure().acompletion("x")
    assert await sent_by(provider) == {"api-key": "another-key"}


async def test_azure_takes_a_token_from_its_variable(
    provider: ScriptedProvider, azure: Callable[..., OpenAILM], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", TOKEN)
    lm = azure()
    await lm.acompletion("x")
    assert await sent_by(provider) == {"authorization": f"Bearer {TOKEN}"}
    await provider.configure({"key": "another"})
    with pytest.raises(AuthError, match="AZURE_OPENAI_AD_TOKEN") as caught:
        await lm.acompletion("x")
    assert TOKEN not in repr(caught.value)


@pytest.mark.parametrize("kind", ["function", "coroutine"])
async def test_azure_takes_a_token_from_a_provider_of_tokens(provider: ScriptedProvider, azure: Callable[..., OpenAILM], kind: str) -> None:
    asked = itertools.count(1)

    def token() -> str:
        return f"{TOKEN}-{next(asked)}"

    async def coroutine() -> str:
        await asyncio.sleep(0)
        return token()

    lm = azure(azure_ad_token_provider=token if kind == "function" else coroutine)
    for _ in range(3):
        await lm.acompletion("x")
    assert await sent_by(provider) == {"authorization": f"Bearer {TOKEN}-1"}
    assert next(asked) == 2  # asked once, not once a call
    assert TOKEN not in repr((lm, lm.rate_key))


class Tokens:
    """A provider of tokens beside a server that lets in the newest one alone."""

    def __init__(self, provider: ScriptedProvider) -> None:
        self._provider = provider
        self.newest = 1
        self.asked = 0

    async def roll(self) -> None:
        """From now on only the next token is let in."""
        self.newest += 1
        await self._provider.configure({"key": f"{TOKEN}-{self.newest}"})

    async def __call__(self) -> str:
        self.asked += 1
        return f"{TOKEN}-{self.newest}"


async def test_a_token_that_has_expired_is_renewed_and_the_call_made_again(
    provider: ScriptedProvider, azure: Callable[..., OpenAILM]
) -> None:
    tokens = Tokens(provider)
    lm = azure(azure_ad_token_provider=tokens)
    for _ in range(3):
        completion: Any = await lm.acompletion("x")
        assert completion.text == "x"
        await tokens.roll()
    assert tokens.asked == 3
    assert (await provider.stats())["rejected"] == 2
    assert (lm.get_usage_summary().total.calls, lm.get_usage_summary().total.failed) == (3, 0)


async def test_a_crowd_whose_token_has_expired_renews_it_once(provider: ScriptedProvider, azure: Callable[..., OpenAILM]) -> None:
    tokens = Tokens(provider)
    lm = azure(azure_ad_token_provider=tokens)
    await lm.acompletion("first")
    await tokens.roll()
    completions: list[Any] = await asyncio.gather(*[lm.acompletion(str(number)) for number in range(50)])
    assert [completion.text for completion in completions] == [str(number) for number in range(50)]
    assert tokens.asked <= 3


async def test_a_token_that_is_turned_away_for_good_is_an_auth_error_after_one_more_try(
    provider: ScriptedProvider, azure: Callable[..., OpenAILM], caplog: pytest.LogCaptureFixture
) -> None:
    tokens = Tokens(provider)
    lm = azure(azure_ad_token_provider=tokens)
    await lm.acompletion("x")
    await provider.configure({"key": "none that there is"})
    caplog.set_level(logging.DEBUG)
    with pytest.raises(AuthError) as caught:
        await lm.acompletion("x")
    assert tokens.asked == 2
    assert (await provider.stats())["rejected"] == 2
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caplog.text
    assert TOKEN not in shown


async def test_a_provider_of_tokens_that_fails_is_an_auth_error_without_what_it_knew(
    provider: ScriptedProvider, azure: Callable[..., OpenAILM]
) -> None:
    def broken() -> str:
        raise RuntimeError("no credential was found")

    with pytest.raises(AuthError, match="no credential was found"):
        await azure(azure_ad_token_provider=broken).acompletion("x")
    assert (await provider.stats())["calls"] == 0


async def test_a_network_that_gives_no_token_is_a_connection_that_failed(
    provider: ScriptedProvider, azure: Callable[..., OpenAILM]
) -> None:
    def offline() -> str:
        raise ConnectionRefusedError("login.example")

    with pytest.raises(ConnectionFailed, match="could not make a call"):
        await azure(azure_ad_token_provider=offline).acompletion("x")
    assert (await provider.stats())["calls"] == 0


async def test_a_token_that_never_comes_ends_the_call_in_bounded_time(
    azure: Callable[..., OpenAILM], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never() -> str:
        await asyncio.Event().wait()
        return ""

    monkeypatch.setattr(link, "TOKEN_S", 0.05)
    with pytest.raises(ConnectionFailed, match=r"no token for a call came within 0.05 s"):
        await azure(azure_ad_token_provider=never).acompletion("x")


async def test_a_provider_of_tokens_that_blocks_does_not_hold_up_the_loop(
    provider: ScriptedProvider, azure: Callable[..., OpenAILM]
) -> None:
    asked, goes_on = threading.Event(), threading.Event()

    def blocking() -> str:
        asked.set()
        assert goes_on.wait(20)
        return TOKEN

    call = asyncio.create_task(azure(azure_ad_token_provider=blocking).acompletion("x"))
    assert await asyncio.to_thread(asked.wait, 20)
    goes_on.set()  # by the loop, which is free while the provider waits for it
    await call
    assert await sent_by(provider) == {"authorization": f"Bearer {TOKEN}"}


async def test_a_key_that_is_turned_away_is_not_tried_again(provider: ScriptedProvider) -> None:
    await provider.configure({"key": "another"})
    with pytest.raises(AuthError):
        await lm_of(provider).acompletion("x")
    assert (await provider.stats())["rejected"] == 1


async def test_a_bad_request_teaches_nothing_and_is_not_made_again(provider: ScriptedProvider) -> None:
    await provider.configure({"missing_models": ["small"]})
    with pytest.raises(BadRequest):
        await lm_of(provider).acompletion("x")
    assert (await provider.stats())["rejected"] == 1
