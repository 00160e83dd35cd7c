"""Cases about text: what reaches the model, and what comes back."""

# ruff: noqa: D103 - the name of a case is its claim

from __future__ import annotations

from typing import TYPE_CHECKING

from ..types import Message
from .lm_canned import Canned, said
from .lm_case import Cases
from .lm_wires import FORM

if TYPE_CHECKING:
    from .lm_bench import Bench

CASES = Cases()
case = CASES.case

MEGABYTE = "a line of text, é\n" * 60_000
UNICODE = (
    "quotes \" ' \\ / </script> %s {braces} $ `ticks`",
    "CR LF \r\n, tab \t, form feed \f, bell \a, escape \x1b, delete \x7f",
    "NUL \0 inside",
    "line separator \u2028 paragraph separator \u2029 next line \x85",
    "accents é ñ ü, e\u0301 combined, \u200bzero width\u200d, byte order mark \ufeff",
    "漢字 かな 한글",
    "שלום مرحبا \u202eright to left\u202c",
    "😀 👩\u200d👩\u200d👧 🏳️\u200d🌈 \U0010ffff",
    "data: [DONE]\n\nevent: error\ndata: {}\n\n",
)


def user(text: str) -> Message:
    """A user's turn."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """A model's turn."""
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    """Instructions."""
    return {"role": "system", "content": text}


@case()
async def a_text_is_one_user_message(bench: Bench) -> None:
    completion = await bench.ask("hello")
    assert completion.text == "hello"
    assert completion.model == bench.lm.name
    assert await bench.turns() == [("user", "hello")]
    assert await bench.system() == ""


@case("server")
async def a_call_is_one_request_for_the_model_with_the_key(bench: Bench) -> None:
    await bench.ask("hello")
    assert (await bench.stats())["by_model"] == {bench.subject.models[0]: 1}
    assert (await bench.stats())["calls"] == 1


@case("server")
async def a_reply_has_the_providers_id(bench: Bench) -> None:
    first, second = await bench.ask("one"), await bench.ask("two")
    assert first.response_id
    assert second.response_id
    assert first.response_id != second.response_id


@case()
async def a_conversation_arrives_turn_by_turn(bench: Bench) -> None:
    assert (await bench.ask([user("one"), assistant("two"), user("three"), assistant("four"), user("five")])).text == "five"
    expected = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four"), ("user", "five")]
    assert await bench.turns() == expected


@case()
async def the_callers_messages_stay_as_they_are(bench: Bench) -> None:
    messages = [system("be brief"), user("one"), assistant(""), user("two")]
    before = [{**message} for message in messages]
    await bench.ask(messages)
    assert messages == before


@case()
async def a_system_message_stands_in_the_providers_own_place(bench: Bench) -> None:
    await bench.play(turns=["answered"])
    assert (await bench.ask([system("be brief"), user("hello")])).text == "answered"
    assert await bench.system() == "be brief"
    assert await bench.turns() == [("user", "hello")]


@case()
async def several_system_messages_all_arrive_in_their_order(bench: Bench) -> None:
    await bench.ask([system("first rule"), system("second rule"), user("hello"), assistant("hi"), user("again")])
    told = await bench.system()
    assert 0 <= told.index("first rule") < told.index("second rule")
    assert await bench.turns() == [("user", "hello"), ("assistant", "hi"), ("user", "again")]


@case()
async def a_system_message_amid_the_turns_is_no_turn_of_the_users(bench: Bench) -> None:
    await bench.ask([user("hello"), assistant("hi"), system("be brief"), user("again")])
    assert await bench.system() == "be brief"
    assert await bench.turns() == [("user", "hello"), ("assistant", "hi"), ("user", "again")]


@case()
async def an_empty_system_message_is_survived(bench: Bench) -> None:
    await bench.play(turns=["hello"])
    assert (await bench.ask([system(""), user("hello")])).text == "hello"


@case()
async def an_empty_turn_of_the_model_is_survived(bench: Bench) -> None:
    for empty in ("", " \n"):
        assert (await bench.ask([user("one"), assistant(empty), user("two")])).text == "two"
        turns = await bench.turns()
        assert [text for role, text in turns if role == "user"] == ["one", "two"]
        assert "".join(text for role, text in turns if role == "assistant").strip() == ""


@case()
async def a_turn_that_is_white_space_arrives_as_it_is(bench: Bench) -> None:
    assert (await bench.ask(" \n\t ")).text == " \n\t "


@case()
async def every_character_survives_there_and_back(bench: Bench) -> None:
    for text in UNICODE:
        assert (await bench.ask(text)).text == text
    await bench.ask([system("\n".join(UNICODE)), user(UNICODE[0]), assistant("".join(UNICODE)), user(UNICODE[-1])])
    assert await bench.system() == "\n".join(UNICODE)
    assert await bench.turns() == [("user", UNICODE[0]), ("assistant", "".join(UNICODE)), ("user", UNICODE[-1])]


@case("server")
async def a_lone_surrogate_is_sent_as_a_replacement_character(bench: Bench) -> None:
    assert (await bench.ask("a\ud800b\udc00c😀")).text == "a\ufffdb\ufffdc😀"
    assert (await bench.ask("\udfff")).text == "\ufffd"
    await bench.ask([system("rule \ud83d"), user("x"), assistant("\ude00"), user("y")])
    assert await bench.system() == "rule \ufffd"
    assert await bench.turns() == [("user", "x"), ("assistant", "\ufffd"), ("user", "y")]


@case("server")
async def a_lone_surrogate_in_a_reply_does_no_harm(bench: Bench) -> None:
    async with bench.canned(said(bench.speech.reply("a\ud800b"))) as (lm, _):
        completion = await lm.acompletion("x")
        assert completion.text in ("a\ud800b", "a\ufffdb")  # type: ignore[union-attr]


@case()
async def a_prompt_and_a_reply_of_a_megabyte_arrive(bench: Bench) -> None:
    assert (await bench.ask(MEGABYTE)).text == MEGABYTE


@case()
async def a_reply_of_a_megabyte_to_a_short_prompt_arrives(bench: Bench) -> None:
    await bench.play(sub={"text": MEGABYTE})
    assert (await bench.ask("x")).text == MEGABYTE


@case()
async def a_history_of_a_megabyte_arrives(bench: Bench) -> None:
    await bench.play(turns=["done"])
    history = [turn for number in range(500) for turn in (user(f"{number} {MEGABYTE[:1000]}"), assistant(f"{number} {MEGABYTE[:1000]}"))]
    assert (await bench.ask([system(MEGABYTE[:10_000]), *history, user("last")])).text == "done"
    turns = await bench.turns()
    assert len(turns) == 1_001
    assert turns[500][1].startswith("250 ")


@case()
async def an_empty_reply_is_an_empty_text(bench: Bench) -> None:
    await bench.play(sub="empty")
    assert (await bench.ask()).text == ""


@case("thinking")
async def thoughts_are_not_part_of_the_text(bench: Bench) -> None:
    await bench.play(thinking="a secret thought", reasoning_tokens=5)
    assert (await bench.ask("said")).text == "said"


@case("thinking")
async def a_reply_of_thoughts_alone_is_an_empty_text(bench: Bench) -> None:
    await bench.play(thinking="a secret thought", sub="empty", finish_reason="length")
    assert (await bench.ask()).text == ""


@case("server")
async def each_form_of_a_reply_gives_its_text(bench: Bench) -> None:
    async with bench.canned(*map(said, bench.speech.forms.values())) as (lm, _):
        for name in bench.speech.forms:
            completion = await lm.acompletion("x")
            assert (name, completion.text) == (name, FORM)  # type: ignore[union-attr]


@case("server")
async def a_reply_with_a_byte_order_mark_or_another_content_type_is_read(bench: Bench) -> None:
    body = said(bench.speech.reply("read")).body
    kinds = ("application/json; charset=utf-8", "text/plain", "application/octet-stream")
    replies = [Canned(body=body, kind=kind) for kind in kinds]
    async with bench.canned(*replies, Canned(body=b"\xef\xbb\xbf" + body)) as (lm, _):
        for _ in range(4):
            assert (await lm.acompletion("x")).text == "read"  # type: ignore[union-attr]
