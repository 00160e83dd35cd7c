"""Large messages in small steps: the same values as json gives, in either direction."""

from __future__ import annotations

import json
import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlm.guest import wire
from arlm.server import heavy

TEXT = st.text(st.characters(codec=None, categories=None))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=30,
)
ESCAPES = st.lists(
    st.sampled_from(["x", '\\"', "\\\\", "\\n", "\\u0041", "\\ud83d", "\\ude00", "\\uD83D\\uDE00", "\ud83d", "\ude00", "é", "\U0001f600"]),
    max_size=200,
).map("".join)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heavy, "WHOLE_CHARS", 0)
    monkeypatch.setattr(heavy, "_SHORT", 0)
    monkeypatch.setattr(heavy, "STRING_CHARS", 3)
    monkeypatch.setattr(heavy, "_PIECE", re.compile(heavy._PIECE.pattern.replace("4096", "2").replace("2000", "3"), re.DOTALL))


@given(value=VALUES, ascii_only=st.booleans())
def test_a_text_is_parsed_as_json_does(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert heavy.loads(text) == json.loads(text)


@given(escapes=ESCAPES)
def test_escapes_are_never_cut(escapes: str) -> None:
    text = f'["{escapes}","next"]'
    assert heavy.loads(text) == json.loads(text)


@given(value=VALUES)
def test_a_value_is_written_as_json_does(value: object) -> None:
    message = {"id": 1, "ok": value}
    assert heavy.encode(message) == wire.encode(message)


def test_keys_that_are_no_text_are_written_as_json_does() -> None:
    message = {"id": 1, "ok": [{2: "a", None: "b", True: [], 1.5: (), "": {}}]}
    assert heavy.encode(message) == wire.encode(message)


@given(text=st.text(st.sampled_from('[]{},:"\\u1x '), max_size=40))
def test_what_json_refuses_is_refused(text: str) -> None:
    expected = None
    with suppress(ValueError):
        expected = json.loads(text)
    try:
        assert heavy.loads(text) == expected
    except ValueError:
        assert expected is None


BOMBS = {"lists": "[]", "dicts": '{"":0}', "numbers": "0", "texts": '""', "nested": "[[[]]]"}


@pytest.mark.parametrize("item", BOMBS.values(), ids=BOMBS)
def test_a_text_of_too_many_values_is_refused(item: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heavy, "MAX_VALUES", 1000)
    with pytest.raises(wire.WireError, match="more than 1,000 values"):
        wire.parse('{"id":1,"ok":[' + ",".join([item] * 1001) + "]}", heavy.loads)


def test_text_full_of_brackets_and_commas_is_one_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heavy, "MAX_VALUES", 10)
    text = json.dumps({"id": 1, "ok": '[{"a": 1},' * 1000})
    assert heavy.loads(text) == json.loads(text)


def test_a_text_nested_without_end_is_refused() -> None:
    with pytest.raises(wire.WireError, match="not JSON"):
        wire.parse("[" * 100_000, heavy.loads)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x" * heavy.LIGHT_BYTES, False),
        ("x" * (heavy.LIGHT_BYTES + 1), True),
        (["x" * heavy.LIGHT_BYTES, {"k": "x"}], True),
        ({"x" * heavy.LIGHT_BYTES: "xx"}, True),
        ([0] * 100, False),
        ([0] * 2000, True),
        (dict.fromkeys(range(2000)), True),
        ([[[0] * 100] * 100] * 100, True),
        (None, False),
    ],
    ids=["much text", "too much text", "text in a list", "a long key", "few", "a long list", "a large dict", "a tree", "nothing"],
)
def test_a_heavy_value_is_known_by_a_look_at_a_part_of_it(value: object, expected: bool) -> None:
    assert heavy.is_heavy(value) is expected
