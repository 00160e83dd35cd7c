"""Each call is the one that the vendor's own SDK makes through its highest door, and its reply is read as the SDK reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import portkey_ai
import pydantic
import pytest
from anthropic.types import message_create_params
from google import genai
from google.genai import types
from openai.types.chat import completion_create_params
from openai.types.responses import response_create_params
from portkey_ai._vendor.openai.types.chat import completion_create_params as portkey_params

from arlm.clients.anthropic import AnthropicLM
from arlm.clients.base import BaseLM
from arlm.clients.gemini import GeminiLM
from arlm.clients.openai import OpenAILM
from arlm.clients.portkey import PortkeyLM
from arlm.types import Message, TokenUsage

if TYPE_CHECKING:
    from arlm.testing import ScriptedProvider

# google-genai's own class for aiohttp; the pages of the SDK that arlm asks for an envelope do not make one
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

KEY = "sk-of-the-real-sdks-0123456789"
VERSION = "2024-10-21"
MESSAGES: list[Message] = [
    {"role": "system", "content": "be brief, é"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three 😀"},
]
[SYSTEM], TURNS = [message["content"] for message in MESSAGES[:1]], MESSAGES[1:]
LONG = 64_000  # tokens: so many have to be streamed
REPLY = {"turns": ["answered é"], "cached_tokens": 2, "cache_write_tokens": 1, "reasoning_tokens": 3, "cost": 0.25}

# Headers that say how a call was made and nothing of what is asked, each with the reason why it may differ.
HOW_MADE = {
    "host": "the address",
    "connection": "aiohttp leaves out what HTTP/1.1 takes for granted",
    "accept-encoding": "what the carrier can unpack",
    "content-length": "a body with its names in another order, or with spaces, is as long",
    "x-stainless-raw-response": "Anthropic's SDK says by it that its caller reads the reply",
    "x-stainless-timeout": "the seconds that the SDK itself would wait",
    "x-stainless-read-timeout": "likewise",
    "x-stainless-retry-count": "which of the SDK's own tries it is",
}

Read = tuple[str, TokenUsage, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One call, made by an SDK and by arlm.

    Attributes:
        sdk: makes it through the SDK, and says what the SDK's model of the reply has in it.
        lm: arlm's client.
        sampling: what arlm is told beside the messages.
        params: the SDK's own type of the body.
        dropped: headers of the SDK's that arlm leaves out, each with the reason.
        messages: what is sent.
    """

    name: str
    sdk: Callable[[ScriptedProvider], Awaitable[Read]]
    lm: Callable[[ScriptedProvider], BaseLM]
    sampling: Mapping[str, Any]
    params: Any
    dropped: Mapping[str, str]
    messages: list[Message]

    def __str__(self) -> str:
        return self.name


ASKED = {"temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["END"], "reasoning_effort": "low"}


def read_chat(reply: Any, cost: float | None) -> Read:
    [choice], usage = reply.choices, reply.usage
    read, written = usage.prompt_tokens_details, usage.completion_tokens_details
    tokens = TokenUsage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cached_tokens=read.cached_tokens,
        cache_write_tokens=read.cache_write_tokens,
        reasoning_tokens=written.reasoning_tokens,
        cost_usd=cost,
    )
    return choice.message.content, tokens, choice.finish_reason


async def openai_chat(provider: ScriptedProvider) -> Read:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=provider.url) as client:
        reply: Any = await client.chat.completions.create(model="small", messages=MESSAGES, max_completion_tokens=99, **ASKED)
        return read_chat(reply, reply.usage.cost)


async def vllm_chat(provider: ScriptedProvider) -> Read:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=provider.url) as client:
        reply: Any = await client.chat.completions.create(model="small", messages=MESSAGES, max_tokens=99, **ASKED)
        return read_chat(reply, reply.usage.cost)


async def azure_chat(provider: ScriptedProvider) -> Read:
    common = {"api_key": KEY, "azure_endpoint": provider.root, "api_version": VERSION}
    async with openai.AsyncAzureOpenAI(**common) as client:
        reply: Any = await client.chat.completions.create(model="my model", messages=MESSAGES, max_completion_tokens=99, **ASKED)
        return read_chat(reply, reply.usage.cost)


async def azure_token(provider: ScriptedProvider) -> Read:
    common = {"azure_ad_token": KEY, "azure_endpoint": provider.root, "api_version": VERSION}
    async with openai.AsyncAzureOpenAI(**common) as client:
        reply: Any = await client.chat.completions.create(model="small", messages=MESSAGES)
        return read_chat(reply, reply.usage.cost)


async def portkey_chat(provider: ScriptedProvider) -> Read:
    client = portkey_ai.AsyncPortkey(api_key=KEY, base_url=provider.url, virtual_key="vk-1", config="pc-1", provider="openai")
    try:
        reply: Any = await client.chat.completions.create(model="small", messages=MESSAGES, max_tokens=99, **ASKED)
        return read_chat(reply, reply.usage.cost)
    finally:
        await client.openai_client.close()


def read_responses(reply: Any) -> Read:
    usage = reply.usage
    tokens = TokenUsage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.input_tokens_details.cached_tokens,
        cache_write_tokens=usage.input_tokens_details.cache_write_tokens,
        reasoning_tokens=usage.output_tokens_details.reasoning_tokens,
    )
    return reply.output_text, tokens, {"completed": "stop"}[reply.status]


RESPONSES = {"max_output_tokens": 99, "temperature": 0.5, "top_p": 0.9, "reasoning": {"effort": "low"}, "store": False}


async def openai_responses(provider: ScriptedProvider) -> Read:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=provider.url) as client:
        given: Any = {**RESPONSES, "input": MESSAGES}
        return read_responses(await client.responses.create(model="gpt-5.5-pro", **given))


async def azure_responses(provider: ScriptedProvider) -> Read:
    common = {"api_key": KEY, "azure_endpoint": provider.root, "api_version": VERSION}
    async with openai.AsyncAzureOpenAI(**common) as client:
        given: Any = {**RESPONSES, "input": MESSAGES}
        return read_responses(await client.responses.create(model="gpt-5.5-pro", **given))


CACHED: Any = {"type": "ephemeral"}
MARKED: Any = {"system": [{"type": "text", "text": SYSTEM, "cache_control": CACHED}], "cache_control": CACHED}


def read_message(reply: Any) -> Read:
    usage = reply.usage
    tokens = TokenUsage(
        input_tokens=usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.cache_read_input_tokens,
        cache_write_tokens=usage.cache_creation_input_tokens,
        reasoning_tokens=usage.output_tokens_details.thinking_tokens,
    )
    return "".join(block.text for block in reply.content if block.type == "text"), tokens, {"end_turn": "stop"}[reply.stop_reason]


async def anthropic_message(provider: ScriptedProvider) -> Read:
    given: Any = {"messages": TURNS, **MARKED, "stop_sequences": ["END"], "output_config": {"effort": "low"}}
    async with anthropic.AsyncAnthropic(api_key=KEY, base_url=provider.root) as client:
        return read_message(await client.messages.create(model="small", max_tokens=99, **given))


async def anthropic_stream(provider: ScriptedProvider) -> Read:
    given: Any = {"messages": TURNS, **MARKED}
    async with (
        anthropic.AsyncAnthropic(api_key=KEY, base_url=provider.root) as client,
        client.messages.stream(model="small", max_tokens=LONG, **given) as stream,
    ):
        return read_message(await stream.get_final_message())


async def anthropic_token(provider: ScriptedProvider) -> Read:
    given: Any = {"messages": TURNS, **MARKED}
    async with anthropic.AsyncAnthropic(auth_token=KEY, base_url=provider.root) as client:
        return read_message(await client.messages.create(model="small", max_tokens=99, **given))


async def gemini_content(provider: ScriptedProvider) -> Read:
    config = types.GenerateContentConfig(
        system_instruction=types.Content(parts=[types.Part(text=SYSTEM)]),
        temperature=0.5,
        top_p=0.9,
        seed=1,
        max_output_tokens=99,
        stop_sequences=["END"],
        thinking_config=types.ThinkingConfig(thinking_level=types.ThinkingLevel.LOW),
    )
    roles = {"assistant": "model"}
    contents: list[Any] = [types.Content(role=roles.get(turn["role"], "user"), parts=[types.Part(text=turn["content"])]) for turn in TURNS]
    client = genai.Client(api_key=KEY, http_options=types.HttpOptions(base_url=provider.root)).aio
    try:
        reply: Any = await client.models.generate_content(model="small", contents=contents, config=config)
    finally:
        await client.aclose()
    usage = reply.usage_metadata
    tokens = TokenUsage(
        input_tokens=usage.prompt_token_count,
        output_tokens=(usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0),  # Google leaves zeros out
        cached_tokens=usage.cached_content_token_count,
        reasoning_tokens=usage.thoughts_token_count,
    )
    return reply.text, tokens, reply.candidates[0].finish_reason.value.lower()


def at_url(kind: Callable[..., BaseLM], model: str = "small", **options: Any) -> Callable[[ScriptedProvider], BaseLM]:
    return lambda provider: kind(model, base_url=provider.url, api_key=KEY, **options)


def at_root(kind: Callable[..., BaseLM], model: str = "small", **options: Any) -> Callable[[ScriptedProvider], BaseLM]:
    return lambda provider: kind(model, base_url=provider.root, api_key=KEY, **options)


def with_token(kind: Callable[..., BaseLM], **options: Any) -> Callable[[ScriptedProvider], BaseLM]:
    """The token stands in its variable."""
    return lambda provider: kind("small", base_url=provider.root, **options)


def pair(name: str, sdk: Any, lm: Any, params: Any, sampling: Mapping[str, Any], **dropped: str) -> Pair:
    return Pair(name=name, sdk=sdk, lm=lm, params=params, sampling=sampling, dropped=dropped, messages=MESSAGES)


CHAT = completion_create_params.CompletionCreateParamsNonStreaming
RESPONSE = response_create_params.ResponseCreateParamsNonStreaming
MESSAGE, STREAMED = message_create_params.MessageCreateParamsNonStreaming, message_create_params.MessageCreateParamsStreaming
ALL = {**ASKED, "max_tokens": 99}
PORTKEYS = {"virtual_key": "vk-1", "config": "pc-1", "portkey_provider": "openai"}
HELPER = dict.fromkeys(("x-stainless-helper-method", "x-stainless-stream-helper"), "which helper of the SDK puts the stream together")
PAIRS = [
    pair("openai", openai_chat, at_url(OpenAILM), CHAT, ALL),
    pair("openai-responses", openai_responses, at_url(OpenAILM, "gpt-5.5-pro"), RESPONSE, {**ALL, "stop": None, "seed": None}),
    pair("azure", azure_chat, at_root(OpenAILM, "my model", provider="azure"), CHAT, ALL),
    pair(
        "azure-responses",
        azure_responses,
        at_root(OpenAILM, "gpt-5.5-pro", provider="azure"),
        RESPONSE,
        {**ALL, "stop": None, "seed": None},
    ),
    pair("azure-token", azure_token, with_token(OpenAILM, provider="azure"), CHAT, {}),
    pair("vllm", vllm_chat, at_url(OpenAILM, provider="vllm"), CHAT, ALL),
    pair("anthropic", anthropic_message, at_root(AnthropicLM), MESSAGE, {"max_tokens": 99, "stop": "END", "reasoning_effort": "low"}),
    pair("anthropic-stream", anthropic_stream, at_root(AnthropicLM), STREAMED, {"max_tokens": LONG}, **HELPER),
    pair("anthropic-token", anthropic_token, with_token(AnthropicLM), MESSAGE, {"max_tokens": 99}),
    pair("gemini", gemini_content, at_root(GeminiLM), None, ALL),
    pair(
        "portkey",
        portkey_chat,
        at_url(PortkeyLM, **PORTKEYS),
        portkey_params.CompletionCreateParamsNonStreaming,
        ALL,
        authorization="the SDK writes the name of a variable there; Portkey reads its own header",
    ),
]


SCRIPTS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "with thoughts": {"thinking": "a thought"},
    "empty": {"turns": [""]},
    "long": {"turns": ["漢" * 5_000], "reasoning_tokens": 0},
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_VERSION", VERSION)
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", KEY)
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", KEY)


def shown(headers: Mapping[str, str], dropped: Iterable[str] = ()) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in HOW_MADE and name not in dropped}


def in_one_spelling(value: Any) -> Any:
    """A body with its names in camel case: Google's servers take either, and its SDK mixes them."""
    if isinstance(value, dict):
        return {re.sub("_([a-z])", lambda found: found[1].upper(), name): in_one_spelling(it) for name, it in value.items()}
    return [in_one_spelling(it) for it in value] if isinstance(value, list) else value


@pytest.mark.parametrize("call", PAIRS, ids=str)
async def test_a_call_is_the_one_that_the_sdk_makes(provider: ScriptedProvider, call: Pair) -> None:
    await provider.configure({**REPLY, "key": KEY})
    await call.sdk(provider)
    await call.lm(provider).acompletion(call.messages, sampling=call.sampling)
    theirs, ours = await provider.requests()
    assert (ours["wire"], ours["path"], ours["query"]) == (theirs["wire"], theirs["path"], theirs["query"])
    assert shown(ours["headers"]) == shown(theirs["headers"], call.dropped)
    assert in_one_spelling(ours["body"]) == in_one_spelling(theirs["body"])


@pytest.mark.parametrize("call", PAIRS, ids=str)
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
async def test_a_reply_is_read_as_the_sdk_reads_it(provider: ScriptedProvider, call: Pair, script: dict[str, Any]) -> None:
    await provider.configure({**REPLY, **script})
    text, usage, finish = await call.sdk(provider)
    completion: Any = await call.lm(provider).acompletion(call.messages, sampling=call.sampling)
    assert (completion.text, completion.finish_reason) == (text or "", finish)
    assert without_zeros(completion.usage) == without_zeros(usage)
    assert completion.usage.input_tokens == (await provider.stats())["prompt_tokens"] / 2


def without_zeros(usage: TokenUsage) -> dict[str, float]:
    return {name: count for name in TokenUsage.__dataclass_fields__ if (count := getattr(usage, name))}


def checked(params: Any, body: Mapping[str, Any]) -> None:
    """Hold a body against the SDK's own types: no name that they do not know, no value of another kind."""
    if params is None:
        assert body.keys() <= {"contents", "systemInstruction", "generationConfig"}
        for content in [*body["contents"], body["systemInstruction"]]:
            types.Content.model_validate(content)
        types.GenerationConfig.model_validate(body["generationConfig"])
        return
    assert body.keys() <= params.__annotations__.keys() | {name for base in params.__orig_bases__ for name in base.__annotations__}
    adapter = pydantic.TypeAdapter(params)  # kept, because what it makes of an Iterable goes on asking it
    used_up(adapter.validate_python(body))


def used_up(value: Any) -> None:
    """Go through what was validated: pydantic looks at the items of an Iterable only as they are taken."""
    if isinstance(value, Mapping):
        value = value.values()
    if isinstance(value, Iterable) and not isinstance(value, str):
        for item in value:
            used_up(item)


@pytest.mark.parametrize("call", PAIRS, ids=str)
async def test_a_body_is_of_the_sdks_own_type(provider: ScriptedProvider, call: Pair) -> None:
    await call.lm(provider).acompletion(call.messages, sampling=call.sampling)
    checked(call.params, (await provider.requests())[-1]["body"])


def test_a_body_of_another_type_is_noticed() -> None:
    body = {"model": "m", "messages": [{"role": "nobody", "content": "x"}], "max_tokens": 1}
    with pytest.raises(pydantic.ValidationError):
        checked(MESSAGE, body)
    with pytest.raises(pydantic.ValidationError):
        checked(CHAT, {**body, "messages": [{"role": "user", "content": 5}]})
    with pytest.raises(AssertionError):
        checked(CHAT, json.loads(json.dumps({**body, "temprature": 1})))
