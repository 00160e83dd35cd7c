"""The vendors' own SDKs, unmodified and without retries, behind one way to ask: what the scripted provider is held against."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import anthropic
import httpx2
import openai
import portkey_ai
from google import genai
from google.genai import types
from portkey_ai._vendor import openai as portkey_openai

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from arlm.testing import ScriptedProvider

PATIENT_S = 60.0
MOST = 100  # max_tokens, which one vendor insists on


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A reply, with its tokens as arlm counts them."""

    text: str | None
    prompt: int
    completion: int
    cached: int
    written: int | None  # None: the wire has no word for it
    reasoning: int
    finish: str
    thought: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    key: str = "k"
    model: str = "m"
    timeout: float = PATIENT_S
    system: str | None = None
    history: tuple[str, ...] = ()
    most: int = MOST

    def turns(self, prompt: str, other: str = "assistant") -> list[tuple[str, str]]:
        roles = ("user", other)
        return [(roles[place % 2], text) for place, text in enumerate((*self.history, prompt))]

    def messages(self, prompt: str, *, system: bool = True) -> list[Any]:
        first = [("system", self.system)] if system and self.system is not None else []
        return [{"role": role, "content": text} for role, text in (*first, *self.turns(prompt))]


Ask = Callable[[str], Awaitable[Said]]
Opened = Callable[["ScriptedProvider", Options], "AbstractAsyncContextManager[Ask]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """One SDK.

    Attributes:
        wire: the name that the board should tell.
        open: the SDK's client, pointed at the provider.
        statuses: the error that each HTTP status raises.
        cut, late: what a connection lost in the middle of a body raises, and a body that does not go on.
        finishes: how it says stop, length and content_filter.
        wrong_key: the status of a key that is not let in.
    """

    name: str
    wire: str
    open: Opened
    statuses: Mapping[int, type[Exception]]
    cut: type[Exception]
    late: type[Exception]
    finishes: Mapping[str, str]
    wrong_key: int = 401

    def __str__(self) -> str:
        return self.name


def _status_errors(sdk: Any) -> dict[int, type[Exception]]:
    by_name = {
        400: "BadRequestError",
        401: "AuthenticationError",
        403: "PermissionDeniedError",
        404: "NotFoundError",
        429: "RateLimitError",
    }
    known = {status: getattr(sdk, name) for status, name in by_name.items()}
    return {**known, 413: sdk.APIStatusError, **dict.fromkeys((500, 502, 503, 504, 529), sdk.InternalServerError)}


def _chat_said(completion: Any) -> Said:
    [choice], usage = completion.choices, completion.usage
    return Said(
        text=choice.message.content,
        prompt=usage.prompt_tokens,
        completion=usage.completion_tokens,
        cached=usage.prompt_tokens_details.cached_tokens,
        written=getattr(usage.prompt_tokens_details, "cache_write_tokens", 0) or 0,
        reasoning=usage.completion_tokens_details.reasoning_tokens,
        finish=choice.finish_reason,
    )


async def _chat(client: Any, prompt: str, options: Options, **more: Any) -> Said:
    messages = options.messages(prompt)
    return _chat_said(await client.chat.completions.create(model=options.model, messages=messages, max_tokens=options.most, **more))


@contextlib.asynccontextmanager
async def _openai(provider: ScriptedProvider, options: Options) -> AsyncIterator[Ask]:
    async with openai.AsyncOpenAI(api_key=options.key, base_url=provider.url, max_retries=0, timeout=options.timeout) as client:
        yield lambda prompt: _chat(client, prompt, options)


@contextlib.asynccontextmanager
async def _azure(provider: ScriptedProvider, options: Options) -> AsyncIterator[Ask]:
    common: dict[str, Any] = {"max_retries": 0, "timeout": options.timeout, "api_version": "2024-10-21"}
    async with openai.AsyncAzureOpenAI(api_key=options.key, azure_endpoint=provider.root, **common) as client:
        yield lambda prompt: _chat(client, prompt, options)


@contextlib.asynccontextmanager
async def _portkey(provider: ScriptedProvider, options: Options) -> AsyncIterator[Ask]:
    client = portkey_ai.AsyncPortkey(api_key=options.key, base_url=provider.url, provider="openai")
    client.openai_client.max_retries = 0  # the SDK's own arguments have no way to say it
    try:
        yield lambda prompt: _chat(client, prompt, options, timeout=options.timeout)
    finally:
        await client.openai_client.close()


@contextlib.asynccontextmanager
async def _responses(provider: ScriptedProvider, options: Options) -> AsyncIterator[Ask]:
    async with openai.AsyncOpenAI(api_key=options.key, base_url=provider.url, max_retries=0, timeout=options.timeout) as client:

        async def ask(prompt: str) -> Said:
            given = options.messages(prompt, system=False)
            system = openai.omit if options.system is None else options.system
            made = await client.responses.create(model=options.model, input=given, instructions=system, max_output_tokens=options.most)
            return _response_said(made)

        yield ask


def _response_said(made: Any) -> Said:
    usage = made.usage
    thoughts = [part.text for item in made.output if item.type == "reasoning" for part in item.summary]
    return Said(
        text=made.output_text if any(part.type == "output_text" for part in _message_parts(made)) else None,
        prompt=usage.input_tokens,
        completion=usage.output_tokens,
        cached=usage.input_tokens_details.cached_tokens,
        written=usage.input_tokens_details.cache_write_tokens,
        reasoning=usage.output_tokens_details.reasoning_tokens,
        finish=made.incomplete_details.reason if made.incomplete_details else made.status,
        thought="".join(thoughts) if thoughts else None,
    )


def _message_parts(made: Any) -> list[Any]:
    return [part for item in made.output if item.type == "message" for part in item.content]


def _anthropic(*, streamed: bool) -> Opened:
    @contextlib.asynccontextmanager
    async def opened(provider: ScriptedProvider, options: Options) -> AsyncIterator[Ask]:
        async with anthropic.AsyncAnthropic(api_key=options.key, base_url=provider.root, max_retries=0, timeout=options.timeout) as client:

            async def ask(prompt: str) -> Said:
                system = anthropic.omit if options.system is None else options.system
                given = options.messages(prompt, system=False)
                if not streamed:
                    made: Any = await client.messages.create(model=options.model, max_tokens=options.most, messages=given, system=system)
                    return _message_said(made)
                async with client.messages.stream(model=options.model, max_tokens=options.most, messages=given, system=system) as stream:
                    return _message_said(await stream.get_final_message())

            yield ask

    return opened


def _message_said(made: Any) -> Said:
    usage = made.usage
    texts = [block.text for block in made.content if block.type == "text"]
    thoughts = [block.thinking for block in made.content if block.type == "thinking"]
    return Said(
        text=None if made.stop_reason == "refusal" else "".join(texts),
        prompt=usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens,
        completion=usage.output_tokens,
        cached=usage.cache_read_input_tokens,
        written=usage.cache_creation_input_tokens,
        reasoning=usage.output_tokens_details.thinking_tokens,
        finish=made.stop_reason,
        thought="".join(thoughts) if thoughts else None,
    )


def _gemini(*, vertex: bool) -> Opened:
    @contextlib.asynccontextmanager
    async def opened(provider: ScriptedProvider, options: Options) -> AsyncIterator[Ask]:
        http = types.HttpOptions(base_url=provider.root, timeout=int(options.timeout * 1_000))
        client = genai.Client(vertexai=vertex, api_key=options.key, http_options=http).aio
        config = types.GenerateContentConfig(system_instruction=options.system, max_output_tokens=options.most)

        async def ask(prompt: str) -> Said:
            turns = options.turns(prompt, "model")
            contents = [types.Content(role=role, parts=[types.Part(text=text)]) for role, text in turns]
            return _content_said(await client.models.generate_content(model=options.model, contents=list(contents), config=config))

        try:
            yield ask
        finally:
            await client.aclose()

    return opened


def _content_said(made: Any) -> Said:
    usage = made.usage_metadata
    reasoning = usage.thoughts_token_count or 0
    [candidate] = made.candidates
    thoughts = [part.text for part in (candidate.content and candidate.content.parts) or [] if part.thought]
    return Said(
        text=made.text if made.text is not None or candidate.content is None else "",
        prompt=usage.prompt_token_count or 0,
        completion=(usage.candidates_token_count or 0) + reasoning,
        cached=usage.cached_content_token_count or 0,
        written=None,
        reasoning=reasoning,
        finish=candidate.finish_reason.value,
        thought="".join(thoughts) if thoughts else None,
    )


CHAT_FINISHES = {"stop": "stop", "length": "length", "content_filter": "content_filter"}
RESPONSES_FINISHES = {"stop": "completed", "length": "max_output_tokens", "content_filter": "content_filter"}
ANTHROPIC_FINISHES = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}
GEMINI_FINISHES = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}

OPENAI_ERRORS: dict[str, Any] = {"statuses": _status_errors(openai), "cut": openai.APIConnectionError, "late": openai.APITimeoutError}
PORTKEY_ERRORS: dict[str, Any] = {
    "statuses": _status_errors(portkey_openai),
    "cut": portkey_openai.APIConnectionError,
    "late": portkey_openai.APITimeoutError,
}
ANTHROPIC_ERRORS: dict[str, Any] = {"statuses": _status_errors(anthropic), "finishes": ANTHROPIC_FINISHES}
GEMINI: dict[str, Any] = {
    "wire": "gemini",
    "statuses": {
        **dict.fromkeys((400, 401, 403, 404, 413, 429), genai.errors.ClientError),
        **dict.fromkeys((500, 502, 503, 504, 529), genai.errors.ServerError),
    },
    "cut": aiohttp.ClientPayloadError,
    "late": TimeoutError,
    "finishes": GEMINI_FINISHES,
    "wrong_key": 400,
}

SPEAKERS = [
    Speaker(name="openai", wire="chat", open=_openai, finishes=CHAT_FINISHES, **OPENAI_ERRORS),
    Speaker(name="azure", wire="chat", open=_azure, finishes=CHAT_FINISHES, **OPENAI_ERRORS),
    Speaker(name="portkey", wire="chat", open=_portkey, finishes=CHAT_FINISHES, **PORTKEY_ERRORS),
    Speaker(name="responses", wire="responses", open=_responses, finishes=RESPONSES_FINISHES, **OPENAI_ERRORS),
    Speaker(
        name="anthropic",
        wire="anthropic",
        open=_anthropic(streamed=False),
        cut=anthropic.APIConnectionError,
        late=anthropic.APITimeoutError,
        **ANTHROPIC_ERRORS,
    ),
    Speaker(  # once a stream runs, this SDK lets its transport's errors through
        name="anthropic-stream",
        wire="anthropic",
        open=_anthropic(streamed=True),
        cut=httpx2.RemoteProtocolError,
        late=httpx2.ReadTimeout,
        **ANTHROPIC_ERRORS,
    ),
    Speaker(name="gemini", open=_gemini(vertex=False), **GEMINI),
    Speaker(name="vertex", open=_gemini(vertex=True), **GEMINI),
]
