"""What a call costs by each provider's SDK: 1,000 in flight, an answer at once, beside the bare transport on the same wire.

``bare aiohttp`` sends the same body to the same URL and reads the text out of the JSON: no errors, no usage, no time limit.
``SDK`` is the vendor's async client as it comes, ``SDK on aiohttp`` the same on the aiohttp transport that the vendor offers; retries are
off. ``arlm`` is the client that a run uses; it puts off full garbage collections at that many calls, and one bare case does so too. All
of a case's connections are open before the clock starts.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from measure import Benchmark, Case, Figures, spending

from arlm.clients.anthropic import AnthropicLM
from arlm.clients.base import BaseLM
from arlm.clients.crowd import RARELY
from arlm.clients.gemini import GeminiLM
from arlm.clients.openai import OpenAILM
from arlm.clients.portkey import PortkeyLM

IN_FLIGHT = 1_000
CALLS = 5_000
SLOW_CALLS = 1_500  # of an SDK as it comes, of which each takes milliseconds
MODEL = "bench"
KEY = "sk-bench"
os.environ.setdefault("OPENAI_API_VERSION", "2024-10-21")  # Azure's
MOST = 1_000  # max_tokens, which Anthropic insists on
STREAMED = 30_000  # so many that Anthropic's SDK streams
Ask = Callable[[str], Awaitable[str]]


def url() -> str:
    return os.environ["OPENAI_BASE_URL"]


def root() -> str:
    parts = urlsplit(url())
    return f"{parts.scheme}://{parts.netloc}"


def said(prompt: str) -> list[Any]:
    return [{"role": "user", "content": prompt}]


def bare(path: str, body: Callable[[str], Any], text: Callable[[Any], str], headers: Mapping[str, str]) -> Callable[[], Ask]:
    """One POST of aiohttp's, as plainly as it can be written."""

    def opened() -> Ask:
        import aiohttp

        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        address = root() + path
        sent = {"Content-Type": "application/json", **headers}

        async def ask(prompt: str) -> str:
            async with session.post(address, data=json.dumps(body(prompt)).encode(), headers=sent) as response:
                return text(json.loads(await response.read()))

        return ask

    return opened


def chat_bare(headers: Mapping[str, str], path: str = "/v1/chat/completions") -> Callable[[], Ask]:
    return bare(
        path, lambda prompt: {"model": MODEL, "messages": said(prompt)}, lambda reply: reply["choices"][0]["message"]["content"], headers
    )


def client(lm: Callable[[], BaseLM], **sampling: Any) -> Callable[[], Ask]:
    """arlm's own."""

    def opened() -> Ask:
        model = lm()

        async def ask(prompt: str) -> str:
            completion: Any = await model.acompletion(said(prompt), sampling=sampling or None)
            return str(completion.text)

        return ask

    return opened


def chat_sdk(make: Callable[[], Any]) -> Callable[[], Ask]:
    def opened() -> Ask:
        sdk = make()

        async def ask(prompt: str) -> str:
            completion = await sdk.chat.completions.create(model=MODEL, messages=said(prompt))
            return str(completion.choices[0].message.content)

        return ask

    return opened


def openai_sdk(*, aiohttp: bool = False, azure: bool = False) -> Any:
    import openai

    more = {"http_client": openai.DefaultAioHttpClient()} if aiohttp else {}
    if azure:
        return openai.AsyncAzureOpenAI(azure_endpoint=root(), api_key=KEY, api_version="2024-10-21", max_retries=0, **more)
    return openai.AsyncOpenAI(base_url=url(), api_key=KEY, max_retries=0, **more)


def responses_sdk(*, aiohttp: bool = False) -> Ask:
    sdk = openai_sdk(aiohttp=aiohttp)

    async def ask(prompt: str) -> str:
        return str((await sdk.responses.create(model=MODEL, input=said(prompt), store=False)).output_text)

    return ask


def anthropic_sdk(*, aiohttp: bool = False, stream: bool = False) -> Ask:
    import anthropic

    more = {"http_client": anthropic.DefaultAioHttpClient()} if aiohttp else {}
    sdk = anthropic.AsyncAnthropic(base_url=root(), api_key=KEY, max_retries=0, **more)

    async def ask(prompt: str) -> str:
        if stream:
            async with sdk.messages.stream(model=MODEL, max_tokens=STREAMED, messages=said(prompt)) as events:
                return str(await events.get_final_text())
        message = await sdk.messages.create(model=MODEL, max_tokens=MOST, messages=said(prompt))
        return "".join(block.text for block in message.content if block.type == "text")

    return ask


def gemini_sdk(*, aiohttp: bool = False) -> Ask:
    from google import genai
    from google.genai import types

    if not aiohttp:
        os.environ["GOOGLE_GENAI_HTTP_CLIENT"] = "httpx2"
    sdk = genai.Client(api_key=KEY, http_options=types.HttpOptions(base_url=root()))

    async def ask(prompt: str) -> str:
        return str((await sdk.aio.models.generate_content(model=MODEL, contents=prompt)).text)

    return ask


def portkey_sdk() -> Any:
    import portkey_ai

    sdk = portkey_ai.AsyncPortkey(api_key=KEY, base_url=url())
    sdk.openai_client.max_retries = 0
    return sdk


def without_full_collections(opened: Callable[[], Ask]) -> Callable[[], Ask]:
    """On arlm's terms: it puts off full garbage collections while a thousand calls are in flight."""

    def opened_so() -> Ask:
        gc.set_threshold(*gc.get_threshold()[:2], RARELY)
        return opened()

    return opened_so


async def measured(opened: Callable[[], Ask], calls: int) -> Figures:
    """``IN_FLIGHT`` workers that take prompts from one iterator, until all ``calls`` are answered."""
    ask = opened()
    await ask("warm")
    await asyncio.gather(*(ask(f"open {number}") for number in range(IN_FLIGHT)))
    left = iter(range(calls))
    right = 0

    async def work() -> None:
        nonlocal right
        for number in left:
            answer = await ask(f"question {number}")
            right += answer == f"question {number}"

    with spending() as spent:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.create_task(work())
    assert right == calls, (right, calls)
    logging.disable()  # of the sessions that end with the process
    return {"calls_a_second": calls / spent.wall, "cpu_a_call_ms": 1_000 * spent.host_cpu / calls}


MESSAGES_HEADERS = {"x-api-key": KEY, "anthropic-version": "2026-10-21"}
WAYS: Mapping[str, Mapping[str, Callable[[], Ask]]] = {
    "openai": {
        "bare aiohttp": chat_bare({"Authorization": f"Bearer {KEY}"}),
        "bare aiohttp, full collections put off": without_full_collections(chat_bare({"Authorization": f"Bearer {KEY}"})),
        "arlm": client(lambda: OpenAILM(MODEL, api_key=KEY)),
        "SDK on aiohttp": chat_sdk(partial(openai_sdk, aiohttp=True)),
        "SDK": chat_sdk(openai_sdk),
    },
    "openai responses": {
        "bare aiohttp": bare(
            "/v1/responses",
            lambda prompt: {"model": MODEL, "input": said(prompt), "store": False},
            lambda reply: next(item for item in reply["output"] if item["type"] == "message")["content"][0]["text"],
            {"Authorization": f"Bearer {KEY}"},
        ),
        "arlm": client(lambda: OpenAILM("o3-pro", api_key=KEY)),
        "SDK on aiohttp": partial(responses_sdk, aiohttp=True),
        "SDK": responses_sdk,
    },
    "azure": {
        "bare aiohttp": chat_bare({"api-key": KEY}, f"/openai/deployments/{MODEL}/chat/completions?api-version=2024-10-21"),
        "arlm": client(lambda: OpenAILM(MODEL, provider="azure", base_url=root(), api_key=KEY)),
        "SDK on aiohttp": chat_sdk(partial(openai_sdk, aiohttp=True, azure=True)),
        "SDK": chat_sdk(partial(openai_sdk, azure=True)),
    },
    "anthropic": {
        "bare aiohttp": bare(
            "/v1/messages",
            lambda prompt: {"model": MODEL, "max_tokens": MOST, "messages": said(prompt)},
            lambda reply: reply["content"][0]["text"],
            MESSAGES_HEADERS,
        ),
        "arlm": client(lambda: AnthropicLM(MODEL, base_url=root(), api_key=KEY)),
        "arlm, streamed": client(lambda: AnthropicLM(MODEL, base_url=root(), api_key=KEY), max_tokens=STREAMED),
        "SDK on aiohttp": partial(anthropic_sdk, aiohttp=True),
        "SDK": anthropic_sdk,
        "SDK, streamed": partial(anthropic_sdk, stream=True),
    },
    "gemini": {
        "bare aiohttp": bare(
            f"/v1/models/{MODEL}:generateContent",
            lambda prompt: {"contents": [{"role": "user", "parts": [{"text": prompt}]}]},
            lambda reply: reply["candidates"][0]["content"]["parts"][0]["text"],
            {"x-goog-api-key": KEY},
        ),
        "arlm": client(lambda: GeminiLM(MODEL, base_url=root(), api_key=KEY)),
        "SDK on aiohttp": partial(gemini_sdk, aiohttp=True),
        "SDK": gemini_sdk,
    },
    "portkey": {
        "bare aiohttp": chat_bare({"x-portkey-api-key": KEY}),
        "arlm": client(lambda: PortkeyLM(MODEL, base_url=url(), api_key=KEY)),
        "SDK": chat_sdk(portkey_sdk),
    },
}
CASES: dict[str, Case] = {
    f"{provider}: {way}": partial(measured, opened, SLOW_CALLS if way.startswith("SDK") else CALLS)
    for provider, ways in WAYS.items()
    for way, opened in ways.items()
}


def compared(medians: Mapping[str, Figures]) -> dict[str, Figures]:
    """Each way's CPU beside that of the bare transport on the same wire."""
    bare_cpu = {name.partition(":")[0]: figures["cpu_a_call_ms"] for name, figures in medians.items() if name.endswith("bare aiohttp")}
    return {
        name: {"times_bare": figures["cpu_a_call_ms"] / bare_cpu[provider]}
        for name, figures in medians.items()
        if (provider := name.partition(":")[0]) in bare_cpu
    }


BENCHMARK = Benchmark(
    claim=f"CPU of a call by each provider's SDK, {IN_FLIGHT:,} in flight",
    cases=CASES,
    provider={"latency": 0.0},
    derive=compared,
    rounds=3,
    target="openai at most 2.5 times bare aiohttp; none above 1 ms",
    sampled=False,
)

if __name__ == "__main__":
    BENCHMARK.main()
