"""REPL functions on the guest's side: how batches are cut, which exceptions a cell sees."""

import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlm.guest import stubs
from arlm.guest.link import CallFailed

BATCHED = {
    "name": "ask_batched",
    "method": "ask_batched",
    "doc": "Ask.",
    "params": [["prompts"], ["model", None]],
    "returns": "replies",
    "split": "prompts",
    "awaitable": False,
}


class AnsweredCall:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def wait(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class EchoLink:
    """Answers each piece of a batch at once; counts what is under way."""

    def __init__(self) -> None:
        self.pieces: list[list[str]] = []
        self.cancelled: list[Any] = []
        self.broken_at: int | None = None

    def request(self, method: str, args: dict[str, Any]) -> AnsweredCall:
        self.pieces.append(args["prompts"])
        if self.broken_at == len(self.pieces):
            return AnsweredCall(CallFailed("KeyError", "no"))
        return AnsweredCall([{"text": prompt} for prompt in args["prompts"]])

    def cancel(self, call: Any) -> None:
        self.cancelled.append(call)


def batched(link: EchoLink) -> Any:
    return stubs.build([BATCHED], link)["ask_batched"]


@given(items=st.lists(st.text(max_size=30), max_size=40))
def test_pieces_are_bounded_and_lose_nothing(items: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stubs, "BATCH_CHARS", 100)
        pieces = [items[begin:end] for begin, end, _ in stubs._pieces(items, None)]
    assert [item for piece in pieces for item in piece] == items
    assert all(sum(len(item) + 16 for item in piece[:-1]) + len(piece[-1]) <= 100 for piece in pieces if len(piece) > 1)
    assert all(pieces)


def test_a_batch_is_put_together_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stubs, "BATCH_CHARS", 100)
    monkeypatch.setattr(stubs, "WINDOW_CHARS", 200)
    link = EchoLink()
    items = [f"{n:020}" for n in range(50)]
    assert batched(link)(items) == items
    assert len(link.pieces) > 10


def test_an_error_in_one_piece_cancels_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stubs, "BATCH_CHARS", 10)
    link = EchoLink()
    link.broken_at = 2
    with pytest.raises(KeyError):
        batched(link)(["a" * 10, "b" * 10, "c" * 10])
    assert len(link.cancelled) == 2  # the failed one, which is harmless, and the one behind it


@pytest.mark.parametrize("items", ["text", b"bytes", 5, None, ["a", None], ["a", b"b"]])
def test_what_is_no_list_of_str_is_refused_before_anything_is_sent(items: object) -> None:
    link = EchoLink()
    with pytest.raises(TypeError, match="ask_batched"):
        batched(link)(items)
    assert link.pieces == []


def test_a_stub_looks_like_the_function_it_stands_for() -> None:
    stub = batched(EchoLink())
    assert (stub.__name__, stub.__doc__, stub.__module__) == ("ask_batched", "Ask.", "arlm")
    assert str(inspect.signature(stub)) == "(prompts, model=None)"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ValueError", ValueError),
        ("KeyError", KeyError),
        ("TimeoutError", TimeoutError),
        ("CallLimit", RuntimeError),
        ("not a name", RuntimeError),
    ],
)
def test_an_error_is_a_builtin_by_its_name_or_a_runtime_error(kind: str, expected: type[Exception]) -> None:
    error = stubs.exception(CallFailed(kind, "the text"))
    assert isinstance(error, expected)
    assert "the text" in str(error)


@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt", "BaseException", "UnicodeDecodeError", "print", "__import__"])
def test_no_name_makes_an_exception_that_a_cell_could_not_catch(kind: str) -> None:
    assert isinstance(stubs.exception(CallFailed(kind, "the text")), RuntimeError)


@pytest.mark.parametrize("kind", ["ExceptionGroup", "SyntaxError", "OSError", "StopIteration", "KeyError", "ImportError"])
def test_every_builtin_exception_can_be_made(kind: str) -> None:
    assert "the text" in str(stubs.exception(CallFailed(kind, "the text")))
