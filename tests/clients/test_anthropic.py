"""What is Anthropic's own: the prompt cache, the cap on the output, streams. What all clients share is in the conformance suite."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from arlm.clients.anthropic import AnthropicLM
from arlm.clients.anthropic_wire import LONGEST_UNSTREAMED
from arlm.errors import BadRequest, ConfigError

if TYPE_CHECKING:
    from arlm.testing import ScriptedProvider
    from arlm.types import Message

KEY = "sk-ant-a-very-secret-key"
SYSTEM: Message = {"role": "system", "content": "be brief"}
USER: Message = {"role": "user", "content": "hello"}
MARK = {"type": "ephemeral"}


def lm_of(provider: ScriptedProvider, model: str = "small", **options: Any) -> AnthropicLM:
    return AnthropicLM(model, **{"base_url": provider.root, "api_key": KEY, **options})


async def body_of(provider: ScriptedProvider) -> dict[str, Any]:
    body: dict[str, Any] = (await provider.requests())[-1]["body"]
    return body


async def test_a_conversation_with_instructions_is_marked_for_the_cache(provider: ScriptedProvider) -> None:
    await lm_of(provider).acompletion([SYSTEM, USER])
    body = await body_of(provider)
    assert body["system"] == [{"type": "text", "text": "be brief", "cache_control": MARK}]
    assert body["cache_control"] == MARK


async def test_what_is_marked_stays_the_beginning_of_what_is_sent_next(provider: ScriptedProvider) -> None:
    lm = lm_of(provider)
    await lm.acompletion([SYSTEM, USER])
    first = await body_of(provider)
    await lm.acompletion([SYSTEM, USER, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "more"}])
    second = await body_of(provider)
    assert second["system"] == first["system"]
    assert second["messages"][: len(first["messages"])] == first["messages"]


async def test_a_call_of_one_message_is_not_marked(provider: ScriptedProvider) -> None:
    await lm_of(provider).acompletion("hello")
    assert "cache_control" not in str(await body_of(provider))


async def test_what_extra_body_says_about_the_cache_wins(provider: ScriptedProvider) -> None:
    own = {"type": "ephemeral", "ttl": "1h"}
    await lm_of(provider).acompletion([SYSTEM, USER], sampling={"extra_body": {"cache_control": own}})
    assert (await body_of(provider))["cache_control"] == own


@pytest.mark.parametrize(
    ("model", "most"), [("claude-9", LONGEST_UNSTREAMED), ("claude-3-haiku-20240307", 4_096), ("claude-3-5-sonnet-latest", 8_192)]
)
async def test_without_max_tokens_it_is_the_most_that_needs_no_stream(provider: ScriptedProvider, model: str, most: int) -> None:
    await lm_of(provider, model).acompletion("x")
    body = await body_of(provider)
    assert (body["max_tokens"], body.get("stream")) == (most, None)


@pytest.mark.parametrize(
    ("model", "wanted", "streamed"),
    [
        ("claude-9", LONGEST_UNSTREAMED, None),
        ("claude-9", LONGEST_UNSTREAMED + 1, True),
        ("claude-opus-4-1", 8_192, None),
        ("claude-opus-4-1", 8_193, True),
    ],
)
async def test_a_longer_reply_is_streamed(provider: ScriptedProvider, model: str, wanted: int, streamed: bool | None) -> None:
    completion = await lm_of(provider, model).acompletion("said", sampling={"max_tokens": wanted})
    body = await body_of(provider)
    assert (completion.text, body["max_tokens"], body.get("stream")) == ("said", wanted, streamed)  # type: ignore[union-attr]


async def test_a_limit_of_the_model_is_learned_from_its_first_refusal(provider: ScriptedProvider) -> None:
    await provider.configure({"max_output_tokens": 5_000})
    lm = lm_of(provider)
    assert (await lm.acompletion("one")).text == "one"  # type: ignore[union-attr]
    assert (await provider.stats())["calls"] == 2
    assert (await lm.acompletion("two", sampling={"max_tokens": 60_000})).text == "two"  # type: ignore[union-attr]
    assert (await body_of(provider))["max_tokens"] == 5_000
    assert (await provider.stats())["calls"] == 3
    assert lm.get_usage_summary().total.calls == 2


async def test_many_first_calls_at_once_learn_a_limit_together(provider: ScriptedProvider) -> None:
    await provider.configure({"max_output_tokens": 5_000})
    lm = lm_of(provider)
    texts = [str(number) for number in range(50)]
    completions: list[Any] = await asyncio.gather(*[lm.acompletion(text) for text in texts])
    assert [completion.text for completion in completions] == texts
    assert lm.get_usage_summary().total.failed == 0


async def test_a_limit_is_learned_for_one_model_alone(provider: ScriptedProvider) -> None:
    await provider.configure({"max_output_tokens": 5_000})
    lm = lm_of(provider)
    await lm.acompletion("x")
    await provider.configure({})
    await lm.acompletion("x", model="another")
    assert (await body_of(provider))["max_tokens"] == LONGEST_UNSTREAMED


async def test_a_limit_that_is_refused_again_is_a_bad_request(provider: ScriptedProvider) -> None:
    await provider.configure({"max_output_tokens": 5_000})
    lm = lm_of(provider)
    with pytest.raises(BadRequest, match="max_tokens"):
        await lm.acompletion("x", sampling={"extra_body": {"max_tokens": 6_000}})
    assert (await provider.stats())["calls"] == 1


async def test_thinking_is_turned_off_or_set_by_its_effort(provider: ScriptedProvider) -> None:
    lm = lm_of(provider)
    await lm.acompletion("x", sampling={"reasoning_effort": "none"})
    assert (await body_of(provider))["thinking"] == {"type": "disabled"}
    await lm.acompletion("x", sampling={"reasoning_effort": "max"})
    assert (await body_of(provider))["output_config"] == {"effort": "max"}
    with pytest.raises(ConfigError, match="minimal"):
        await lm.acompletion("x", sampling={"reasoning_effort": "minimal"})


async def test_a_token_goes_where_tokens_go_and_is_not_shown(provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", KEY)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", provider.root)
    lm = AnthropicLM("small")
    await lm.acompletion("x")
    headers = (await provider.requests())[-1]["headers"]
    assert headers["authorization"] == f"Bearer {KEY}"
    assert "x-api-key" not in headers
    assert KEY not in repr((lm, lm.rate_key))
