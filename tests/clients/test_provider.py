"""The scripted provider itself, over a plain socket."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any
from urllib.parse import urlsplit

import pytest

from arlm.testing import Script, ScriptedProvider, start_provider


async def ask(url: str, *requests: dict[str, Any], key: str = "k") -> list[tuple[int, Any]]:
    """Send requests one after the other on one connection."""
    reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
    replies = []
    try:
        for request in requests:
            body = json.dumps(request).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nauthorization: Bearer {key}\r\ncontent-LENGTH: {len(body)}\r\n\r\n"
            writer.write(head.encode())
            await writer.drain()
            for start in range(0, len(body), 1_000):
                writer.write(body[start : start + 1_000])
            status = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(status.partition("Content-Length: ")[2].partition("\r\n")[0])
            replies.append((int(status.split()[1]), json.loads(await reader.readexactly(length))))
    finally:
        writer.close()
    await writer.wait_closed()
    return replies


def chat(*contents: str, system: str | None = None) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": content} for place, content in enumerate(contents)]
    return {"model": "m", "messages": [*([{"role": "system", "content": system}] if system else []), *messages]}


def text_of(reply: tuple[int, Any]) -> str:
    text: str = reply[1]["choices"][0]["message"]["content"]
    return text


async def test_one_connection_carries_many_calls() -> None:
    async with ScriptedProvider() as provider:
        replies = await ask(provider.url, chat("one"), chat("two" * 5_000), chat("three"))
        assert [text_of(reply) for reply in replies] == ["one", "two" * 5_000, "three"]
        assert (await provider.stats())["connections"] == 1


async def test_roots_play_their_turns_by_the_assistant_messages_sent_along() -> None:
    async with ScriptedProvider(Script(turns=["first", "second"], sub={"text": "sub"})) as provider:
        asked = (chat("q", system="s"), chat("q", "first", "out", system="s"), chat("q", "a", "b", "c", "d", system="s"), chat("q"))
        replies = await ask(provider.url, *asked)
        assert [text_of(reply) for reply in replies] == ["first", "second", "second", "sub"]
        stats = await provider.stats()
        assert (stats["root_calls"], stats["sub_calls"]) == (3, 1)


async def test_roots_may_have_scripts_of_their_own() -> None:
    async with ScriptedProvider(Script(turns=["other"], roots=[{"contains": "child", "turns": ["child's"]}])) as provider:
        replies = await ask(provider.url, chat("a child", system="s"), chat("a parent", system="s"))
        assert [text_of(reply) for reply in replies] == ["child's", "other"]


async def test_usage_is_counted_by_the_same_rule_as_it_is_told() -> None:
    async with ScriptedProvider(Script(sub={"text": "x" * 9}, cached_tokens=2, reasoning_tokens=5, cost=0.5)) as provider:
        [(_, reply)] = await ask(provider.url, chat("y" * 41))
        assert reply["usage"]["prompt_tokens"] == 11
        assert reply["usage"]["completion_tokens"] == 3 + 5
        assert reply["usage"]["cost"] == 0.5
        stats = await provider.stats()
        assert (stats["prompt_tokens"], stats["completion_tokens"], stats["cached_tokens"], stats["reasoning_tokens"]) == (11, 8, 2, 5)


async def test_held_replies_go_out_together_and_a_client_that_left_is_forgotten() -> None:
    async with ScriptedProvider(Script(hold=3)) as provider:
        leaver = asyncio.create_task(ask(provider.url, chat("leaver")))
        stayer = asyncio.create_task(ask(provider.url, chat("stayer")))
        await provider.until(lambda stats: stats["in_flight"] == 2)
        leaver.cancel()
        await provider.until(lambda stats: stats["aborted"] == 1)
        assert not stayer.done()
        replies = await asyncio.gather(stayer, ask(provider.url, chat("a")), ask(provider.url, chat("b")))
        assert [text_of(reply[0]) for reply in replies] == ["stayer", "a", "b"]


async def test_rules_come_before_sub() -> None:
    async with ScriptedProvider(Script(sub="upper", rules=[{"contains": "secret", "text": "no"}])) as provider:
        assert [text_of(reply) for reply in await ask(provider.url, chat("a secret"), chat("open"))] == ["no", "OPEN"]


async def test_a_wrong_key_a_missing_model_and_a_broken_body_are_refused() -> None:
    async with ScriptedProvider(Script(key="right", missing_models=["gone"])) as provider:
        assert [status for status, _ in await ask(provider.url, chat("x"), key="wrong")] == [401]
        replies = await ask(provider.url, {**chat("x"), "model": "gone"}, {"model": "m"}, chat("x"), key="right")
        assert [status for status, _ in replies] == [404, 400, 200]
        assert (await provider.stats())["rejected"] == 3


async def test_error_rates_are_drawn_from_a_seed() -> None:
    async def statuses(seed: int) -> list[int]:
        async with ScriptedProvider(Script(error_rates={"429": 0.3, "500": 0.2}, seed=seed)) as provider:
            return [status for status, _ in await ask(provider.url, *[chat("x")] * 60)]

    first = await statuses(1)
    assert first == await statuses(1)
    assert first != await statuses(2)
    assert set(first) == {200, 429, 500}


@pytest.mark.parametrize("fields", [{"nonsense": 1}, {"faults": ["418"]}, {"sub": "sing"}])
async def test_a_script_with_a_mistake_is_refused_with_what_there_is(fields: dict[str, Any]) -> None:
    async with start_provider() as provider:
        with pytest.raises(ValueError, match="there is:"):
            await provider.configure(fields)


async def test_the_provider_in_its_own_process_can_be_configured_asked_and_reset() -> None:
    async with start_provider({"sub": "length", "latency": 0.001}) as provider:
        assert text_of((await ask(provider.url, chat("12345")))[0]) == "5"
        await provider.configure({"sub": {"text": "new"}})
        assert text_of((await ask(provider.url, chat("x")))[0]) == "new"
        assert (await provider.stats())["calls"] == 2
        assert [request["body"]["messages"][0]["content"] for request in await provider.requests()] == ["12345", "x"]
        await provider.reset()
        assert (await provider.stats())["calls"] == 0


async def test_the_command_line_prints_the_url_first_and_ends_with_its_stdin() -> None:
    arguments = ["-m", "arlm.testing.provider", "--sub", "upper", "--key", "k", "--error-rate", "500=0", "--exit-with-stdin"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    assert text_of((await ask(url, chat("hi")))[0]) == "HI"
    assert process.stdin is not None
    process.stdin.close()
    _, stderr = await process.communicate()
    assert (process.returncode, stderr) == (0, b"")
