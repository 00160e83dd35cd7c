"""The wire: any bytes in, messages or a WireError out; any JSON value back unchanged."""

import json
import struct
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arlm.guest import wire

TEXT = st.text(st.characters(codec=None, categories=None))  # every code point, surrogates too
NUMBERS = st.integers(-(2**80), 2**80) | st.floats(allow_nan=False)
JSON = st.recursive(st.none() | st.booleans() | NUMBERS | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=30)


def cut(data: bytes, points: list[int]) -> list[bytes]:
    """The data in pieces; each point is taken modulo its length."""
    places = sorted({0, len(data), *(point % (len(data) + 1) for point in points)})
    return [data[start:end] for start, end in pairwise(places)]


def decode(data: bytes, points: list[int] | None = None, **limits: int) -> list[wire.Message]:
    decoder = wire.Decoder(**limits)
    messages = []
    for piece in cut(data, points or []):
        fed = decoder.feed(piece)
        assert len(decoder.sizes) == len(fed)
        messages += fed
    decoder.end()
    return messages


@given(value=JSON, points=st.lists(st.integers(0, 10**6), max_size=8))
def test_any_value_comes_back_however_the_bytes_are_cut(value: object, points: list[int]) -> None:
    message = {"id": 1, "ok": value}
    assert decode(b"".join(wire.encode(message)), points) == [message]


@settings(max_examples=30, deadline=None)
@given(text=TEXT, points=st.lists(st.integers(0, 10**6), max_size=8), size=st.integers(1, 40))
def test_any_value_comes_back_in_fragments_of_any_size(text: str, points: list[int], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "FRAGMENT_CHARS", size)
        message = {"id": 1, "ok": [text, {text: text}]}
        assert decode(b"".join(wire.encode(message)), points) == [message]


@given(data=st.binary(max_size=300), points=st.lists(st.integers(0, 300), max_size=8))
def test_arbitrary_bytes_raise_nothing_but_a_wire_error(data: bytes, points: list[int]) -> None:
    decoder = wire.Decoder(max_frame=64)
    with suppress(wire.WireError):
        for piece in cut(data, points):
            for message in decoder.feed(piece):
                wire.kind(message)
        decoder.end()


@given(payloads=st.lists(st.binary(max_size=60), max_size=5), points=st.lists(st.integers(0, 300), max_size=5))
def test_arbitrary_payloads_raise_nothing_but_a_wire_error(payloads: list[bytes], points: list[int]) -> None:
    try:
        for message in decode(b"".join(map(wire.frame, payloads)), points):
            wire.kind(message)
    except wire.WireError:
        pass


@given(
    message=st.dictionaries(
        st.sampled_from(["id", "call", "args", "ok", "error", "cancel", "note", "bye", "hello", "frag", "data", "last"]), JSON
    )
)
def test_any_object_is_a_message_or_a_wire_error(message: dict) -> None:
    try:
        for found in decode(wire.frame(wire.dumps(message).encode("utf-8", "surrogatepass"))):
            assert wire.kind(found) in {"call", "ok", "error", "cancel", "note", "bye", "hello"}
    except wire.WireError:
        pass


@pytest.mark.parametrize("text", ["\ud83d\ude00", "\ude00\ud83d x", "\ud800", "\0", "\r\n", "\u2028", "\U0010ffff", "\ufeff", '"\\'])
def test_difficult_code_points_survive(text: str) -> None:
    (message,) = decode(b"".join(wire.encode({"note": text})))
    assert message["note"] == text
    assert len(message["note"]) == len(text)


def test_a_surrogate_pair_cut_by_a_fragment_stays_two_code_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FRAGMENT_CHARS", 1)
    (message,) = decode(b"".join(wire.encode({"note": "\ud83d\ude00"})))
    assert list(message["note"]) == ["\ud83d", "\ude00"]


def test_strictly_valid_text_is_strictly_valid_utf8() -> None:
    (frame,) = wire.encode({"note": "é\U0001f600"})
    assert "é\U0001f600" in frame[4:].decode("utf-8")


def test_a_small_message_is_one_frame_and_a_large_one_frames_of_bounded_size() -> None:
    assert len(wire.encode({"note": "x" * 1000})) == 1
    frames = wire.encode({"note": "x" * (5 * wire.FRAGMENT_CHARS)})
    assert len(frames) == 6
    assert max(map(len, frames)) < wire.FRAGMENT_CHARS + 200
    assert decode(b"".join(frames)) == [{"note": "x" * (5 * wire.FRAGMENT_CHARS)}]


def test_the_worst_fragment_fits_into_a_frame() -> None:
    frames = wire.encode({"note": "\0" * wire.FRAGMENT_CHARS})  # each NUL becomes six characters, and those are escaped once more
    assert max(map(len, frames)) < wire.MAX_FRAME
    assert decode(b"".join(frames)) == [{"note": "\0" * wire.FRAGMENT_CHARS}]


def test_fragments_of_several_messages_may_be_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FRAGMENT_CHARS", 5)
    first, second = wire.encode({"note": "first"}), wire.encode({"note": "second"})
    mixed = [frame for pair in zip(first, second, strict=False) for frame in pair] + second[len(first) :]
    assert [message["note"] for message in decode(b"".join(mixed))] == ["first", "second"]


def test_a_value_too_large_is_refused_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FRAGMENT_CHARS", 10)
    with pytest.raises(wire.TooLarge, match="a message of 150 characters is too large: one call may carry 100") as caught:
        wire.encode({"note": "x" * 139}, max_message=100)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes"])
def test_what_json_cannot_carry_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError):
        wire.encode({"ok": value})


def test_a_value_that_holds_itself_is_a_value_error() -> None:
    loop: list = []
    loop.append(loop)
    with pytest.raises(ValueError, match="Circular"):
        wire.encode({"ok": loop})


BAD_FRAMES = {
    "not UTF-8": (b"\xff\xfe", "not JSON"),
    "not JSON": (b"{", "not JSON"),
    "nothing": (b"", "not JSON"),
    "an array": (b"[]", "not a JSON object but list"),
    "a string": (b'"x"', "not a JSON object but str"),
    "null": (b"null", "not a JSON object but NoneType"),
    "nested without end": (b'{"a":' + b"[" * 200_000, "not JSON"),
    "a number without end": (b'{"a":' + b"9" * 10_000 + b"}", "not JSON"),
    "a fragment without data": (b'{"frag":1,"last":true}', "frag, data and last"),
    "a fragment with a bool id": (b'{"frag":true,"data":"x","last":true}', "frag, data and last"),
    "a fragment with an odd last": (b'{"frag":1,"data":"x","last":1}', "frag, data and last"),
    "an empty fragment": (b'{"frag":1,"data":"","last":false}', "not the last is empty"),
    "a fragment of no JSON": (b'{"frag":1,"data":"x","last":true}', "not JSON"),
    "a fragment of no object": (b'{"frag":1,"data":"[]","last":true}', "not a JSON object"),
}


@pytest.mark.parametrize(("payload", "reason"), BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_a_bad_frame_is_refused_with_the_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(wire.WireError, match=reason):
        decode(wire.frame(payload))


def test_fragments_within_fragments_are_no_message() -> None:
    inner = json.dumps({"frag": 2, "data": "{}", "last": True})
    outer = wire.frame(json.dumps({"frag": 1, "data": inner, "last": True}).encode())
    with pytest.raises(wire.WireError):
        wire.kind(decode(outer)[0])


def test_a_frame_above_the_limit_is_refused_by_its_length_alone() -> None:
    with pytest.raises(wire.WireError, match="a frame of 101 bytes is longer than the 100 allowed"):
        wire.Decoder(max_frame=100).feed(struct.pack(">I", 101))


def test_unfinished_messages_are_limited_in_size_and_number() -> None:
    def part(number: int, data: str) -> bytes:
        return wire.frame(json.dumps({"frag": number, "data": data, "last": False}).encode())

    with pytest.raises(wire.WireError, match="more than 100 characters"):
        wire.Decoder(max_message=100).feed(part(1, "x" * 60) + part(2, "x" * 60))
    with pytest.raises(wire.WireError, match="fragmented messages are under way"):
        wire.Decoder().feed(b"".join(part(number, "x") for number in range(wire.MAX_UNFINISHED + 1)))


def test_a_message_has_a_limited_number_of_fragments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_FRAGMENTS", 10)
    part = wire.frame(json.dumps({"frag": 1, "data": "x", "last": False}).encode())
    decoder = wire.Decoder()
    decoder.feed(part * 10)
    with pytest.raises(wire.WireError, match="more than 10 fragments"):
        decoder.feed(part)


def test_finished_messages_do_not_count_towards_the_limit() -> None:
    text = json.dumps({"note": "x" * 80})
    whole = wire.frame(json.dumps({"frag": 1, "data": text, "last": True}).encode())
    assert len(decode(whole * 10, max_message=100)) == 10


@pytest.mark.parametrize("length", [1, 3, 4, 7])
def test_an_end_inside_a_frame_is_said(length: int) -> None:
    decoder = wire.Decoder()
    decoder.feed(wire.frame(b'{"note":"x"}')[:length])
    with pytest.raises(wire.WireError, match="middle of a frame"):
        decoder.end()


def test_an_end_inside_a_message_is_said() -> None:
    decoder = wire.Decoder()
    decoder.feed(wire.frame(b'{"frag":1,"data":"x","last":false}'))
    with pytest.raises(wire.WireError, match="middle of a message"):
        decoder.end()


KINDS = {
    "call": {"id": 1, "call": "f", "args": {}},
    "ok": {"id": 1, "ok": None},
    "error": {"id": 1, "error": {"type": "E", "message": "m"}},
    "cancel": {"cancel": 1},
    "note": {"note": "n"},
    "bye": {"bye": "b"},
    "hello": {"hello": 1},
}


@pytest.mark.parametrize(("kind", "message"), KINDS.items(), ids=KINDS)
def test_each_kind_is_known_by_its_key(kind: str, message: wire.Message) -> None:
    assert wire.kind(message) == kind


SHAPES = [
    {},
    {"something": 1},
    {"call": "f", "args": {}},
    {"id": 0, "call": "f", "args": {}},
    {"id": -1, "call": "f", "args": {}},
    {"id": True, "call": "f", "args": {}},
    {"id": "1", "call": "f", "args": {}},
    {"id": 1.0, "call": "f", "args": {}},
    {"id": 1, "call": 5, "args": {}},
    {"id": 1, "call": "f"},
    {"id": 1, "call": "f", "args": []},
    {"ok": 1},
    {"id": 1, "error": "text"},
    {"id": 1, "error": {"type": "E"}},
    {"id": 1, "error": {"type": 1, "message": "m"}},
    {"cancel": "1"},
    {"cancel": True},
    {"note": 1},
    {"bye": None},
    {"hello": "1"},
    {"hello": True},
]


@pytest.mark.parametrize("message", SHAPES, ids=str)
def test_a_message_of_the_wrong_shape_is_refused(message: wire.Message) -> None:
    with pytest.raises(wire.WireError):
        wire.kind(message)
