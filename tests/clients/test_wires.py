"""The scripted provider's wires, held against the vendors' own SDKs over loopback."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from speakers import SPEAKERS, Options, Said, Speaker

from arlm.testing import ScriptedProvider, start_provider

if TYPE_CHECKING:
    from collections.abc import Awaitable

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

SOON_S = 0.05
every_speaker = pytest.mark.parametrize("speaker", SPEAKERS, ids=str)


async def said(speaker: Speaker, provider: ScriptedProvider, prompt: str = "hello", **options: Any) -> Said:
    async with speaker.open(provider, Options(**options)) as ask:
        return await ask(prompt)


async def failure(speaker: Speaker, provider: ScriptedProvider, kind: type[Exception], prompt: str = "hello", **options: Any) -> Any:
    async with speaker.open(provider, Options(**options)) as ask:
        with pytest.raises(kind) as caught:
            await ask(prompt)
    return caught.value


def status_of(error: Any) -> int:
    status: int = getattr(error, "status_code", None) or error.code
    return status


@every_speaker
async def test_a_text_is_answered_on_its_wire(speaker: Speaker, provider: ScriptedProvider) -> None:
    await provider.configure({"sub": "upper"})
    assert (await said(speaker, provider, "grüße 🦀 " * 30)).text == "GRÜSSE 🦀 " * 30
    [request] = await provider.requests()
    assert request["wire"] == speaker.wire
    assert "grüße" in str(request["body"])
    assert request["query"] == ("api-version=2024-10-21" if speaker.name == "azure" else "")


@every_speaker
async def test_a_root_plays_the_turn_that_the_conversation_has_come_to(speaker: Speaker, provider: ScriptedProvider) -> None:
    await provider.configure({"turns": ["first", "second"], "sub": {"text": "sub"}})
    assert (await said(speaker, provider, system="you are a root")).text == "first"
    assert (await said(speaker, provider, system="you are a root", history=("question", "first"))).text == "second"
    assert (await said(speaker, provider)).text == "sub"
    stats = await provider.stats()
    assert (stats["root_calls"], stats["sub_calls"]) == (2, 1)


@every_speaker
async def test_a_clients_sums_are_the_boards(speaker: Speaker, provider: ScriptedProvider) -> None:
    tokens = {"cached_tokens": 3, "cache_write_tokens": 4, "reasoning_tokens": 5}
    await provider.configure({"sub": {"text": "x" * 30}, **tokens})
    async with speaker.open(provider, Options(model="small")) as ask:
        replies = await asyncio.gather(*(ask("y" * length) for length in (4, 20, 41)))
    stats = await provider.stats()
    assert sum(reply.prompt for reply in replies) == stats["prompt_tokens"] == 1 + 5 + 11
    assert sum(reply.completion for reply in replies) == stats["completion_tokens"] == 3 * (8 + 5)
    assert sum(reply.cached for reply in replies) == stats["cached_tokens"] == 1 + 3 + 3
    assert sum(reply.reasoning for reply in replies) == stats["reasoning_tokens"] == 15
    assert stats["cache_write_tokens"] == 0 + 2 + 4
    if speaker.wire != "gemini":
        assert sum(reply.written or 0 for reply in replies) == stats["cache_write_tokens"]
    assert stats["by_model"] == {"small": 3}


@every_speaker
@pytest.mark.parametrize("finish", ["stop", "length", "content_filter"])
async def test_each_wire_says_the_finish_reason_in_its_own_words(speaker: Speaker, provider: ScriptedProvider, finish: str) -> None:
    await provider.configure({"finish_reason": finish})
    assert (await said(speaker, provider)).finish == speaker.finishes[finish]


@every_speaker
async def test_a_refusal_has_no_text(speaker: Speaker, provider: ScriptedProvider) -> None:
    await provider.configure({"refusal": "I will not."})
    reply = await said(speaker, provider)
    assert reply.text is None
    assert reply.completion == (await provider.stats())["completion_tokens"] == 3


@every_speaker
async def test_an_empty_reply_that_was_cut_by_its_length_has_reasoning_alone(speaker: Speaker, provider: ScriptedProvider) -> None:
    await provider.configure({"sub": "empty", "finish_reason": "length", "reasoning_tokens": 9})
    reply = await said(speaker, provider)
    assert reply.text in ("", None)
    assert (reply.completion, reply.reasoning) == (9, 9)


@every_speaker
async def test_thoughts_come_before_the_text_and_are_not_part_of_it(speaker: Speaker, provider: ScriptedProvider) -> None:
    await provider.configure({"thinking": "let me see, " * 9})
    reply = await said(speaker, provider)
    assert reply.text == "hello"
    assert reply.thought == (None if speaker.wire == "chat" else "let me see, " * 9)


@every_speaker
async def test_a_key_that_is_not_let_in_is_the_sdks_own_error(speaker: Speaker, provider: ScriptedProvider) -> None:
    await provider.configure({"key": "right"})
    assert (await said(speaker, provider, key="right")).text == "hello"
    error = await failure(speaker, provider, speaker.statuses[speaker.wrong_key], key="wrong")
    assert status_of(error) == speaker.wrong_key
    assert (await provider.stats())["rejected"] == 1


@every_speaker
async def test_a_model_that_is_not_there_is_not_found(speaker: Speaker, provider: ScriptedProvider) -> None:
    await provider.configure({"missing_models": ["gone"]})
    error = await failure(speaker, provider, speaker.statuses[404], model="gone")
    assert status_of(error) == 404
    assert "gone" in str(error)


@every_speaker
async def test_a_prompt_that_does_not_fit_is_told_with_its_limit(speaker: Speaker, provider: ScriptedProvider) -> None:
    await provider.configure({"context_chars": 100})
    assert "25" in str(await failure(speaker, provider, speaker.statuses[400], "x" * 120))


@every_speaker
async def test_more_output_than_the_model_has_is_refused_with_the_most_there_is(speaker: Speaker, provider: ScriptedProvider) -> None:
    await provider.configure({"max_output_tokens": 8_192})
    assert (await said(speaker, provider, most=8_192)).text == "hello"
    error = await failure(speaker, provider, speaker.statuses[400], most=9_000)
    assert "9000" in str(error)
    assert "8192" in str(error)


@every_speaker
@pytest.mark.parametrize("fault", ["401", "403", "413", "429", "500", "502", "503", "504", "529"])
async def test_a_status_is_the_sdks_own_error(speaker: Speaker, provider: ScriptedProvider, fault: str) -> None:
    await provider.configure({"faults": [fault]})
    error = await failure(speaker, provider, speaker.statuses[int(fault)])
    assert status_of(error) == int(fault)
    assert (await provider.stats())["faults"] == {fault: 1}


@every_speaker
async def test_calls_beyond_the_rate_are_limited(speaker: Speaker, provider: ScriptedProvider) -> None:
    await provider.configure({"rate": 1e-6, "burst": 1})
    await said(speaker, provider)
    await failure(speaker, provider, speaker.statuses[429])
    stats = await provider.stats()
    assert (stats["answered"], stats["limited"]) == (1, 1)


@every_speaker
async def test_a_body_cut_in_the_middle_is_a_lost_connection(speaker: Speaker, provider: ScriptedProvider) -> None:
    await provider.configure({"faults": ["cut"]})
    await failure(speaker, provider, speaker.cut, "a long text " * 50)
    assert (await provider.stats())["answered"] == 0


@every_speaker
async def test_a_body_that_does_not_go_on_is_late_and_given_up(speaker: Speaker, provider: ScriptedProvider) -> None:
    await provider.configure({"faults": ["stall_body"]})
    await failure(speaker, provider, speaker.late, timeout=SOON_S)
    await asyncio.wait_for(provider.until(lambda stats: stats["aborted"] == 1 and stats["in_flight"] == 0), 10)


@every_speaker
async def test_a_late_first_byte_is_waited_for_and_billed(speaker: Speaker, provider: ScriptedProvider) -> None:
    await provider.configure({"faults": ["slow_first_byte"], "slow": 0.01})
    assert (await said(speaker, provider)).text == "hello"
    stats = await provider.stats()
    assert (stats["answered"], stats["faults"]) == (1, {"slow_first_byte": 1})


@every_speaker
async def test_a_first_byte_later_than_the_client_waits_leaves_nothing_in_flight(speaker: Speaker, provider: ScriptedProvider) -> None:
    await provider.configure({"faults": ["slow_first_byte"], "slow": 600})
    await failure(speaker, provider, Exception, timeout=SOON_S)
    await asyncio.wait_for(provider.until(lambda stats: stats["aborted"] == 1 and stats["in_flight"] == 0), 10)


@every_speaker
@pytest.mark.parametrize("fault", ["invalid_json", "html"])
async def test_a_body_that_is_no_reply_is_none(speaker: Speaker, provider: ScriptedProvider, fault: str) -> None:
    await provider.configure({"faults": [fault]})
    await failure(speaker, provider, Exception)
    assert (await said(speaker, provider, "after")).text == "after"
    assert (await provider.stats())["answered"] == 1


@every_speaker
async def test_a_call_that_is_cancelled_is_left(speaker: Speaker, provider: ScriptedProvider) -> None:
    await provider.configure({"faults": ["stall"]})
    async with speaker.open(provider, Options()) as ask:
        call = asyncio.ensure_future(ask("hello"))
        await provider.until(lambda stats: stats["in_flight"] == 1)
        call.cancel()
        await asyncio.wait([call])
        await asyncio.wait_for(provider.until(lambda stats: stats["aborted"] == 1), 10)
    assert call.cancelled()


@every_speaker
async def test_calls_at_once_get_their_own_replies(speaker: Speaker, provider: ScriptedProvider) -> None:
    await provider.configure({"hold": 30})
    async with speaker.open(provider, Options()) as ask:
        calls: list[Awaitable[Said]] = [ask(f"number {number}") for number in range(30)]
        assert [reply.text for reply in await asyncio.gather(*calls)] == [f"number {number}" for number in range(30)]
    assert (await provider.stats())["max_in_flight"] == 30


@every_speaker
async def test_usage_may_be_left_out(speaker: Speaker, provider: ScriptedProvider) -> None:
    await provider.configure({"usage": False})
    await failure(speaker, provider, AttributeError)  # of the test's own reading: the SDK has no figures to read
    assert (await provider.stats())["prompt_tokens"] == 2


async def test_every_wire_is_spoken_on_one_port_by_a_process_of_its_own() -> None:
    async with start_provider({"sub": "upper"}) as process:
        assert process.root + "/v1" == process.url
        for speaker in SPEAKERS:
            async with speaker.open(process, Options()) as ask:
                assert (await ask("hello")).text == "HELLO"
        stats = await process.stats()
        assert (stats["calls"], stats["answered"]) == (len(SPEAKERS), len(SPEAKERS))
        assert {request["wire"] for request in await process.requests()} == {"chat", "responses", "anthropic", "gemini"}
