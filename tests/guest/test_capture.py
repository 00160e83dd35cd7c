"""What is kept of a cell's output: head and tail, with the true length; and the streams put right again."""

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arlm.guest import capture


def kept(text: str, limit: int, size: int = 7) -> tuple[str, int]:
    """Write text in pieces of ``size`` bytes and take it."""
    it, data = capture.Capture(limit), text.encode()
    for start in range(0, len(data), size):
        it.write(data[start : start + size])
    return it.take()


@given(text=st.text(max_size=100), size=st.integers(1, 9))
def test_a_text_within_the_limit_is_whole(text: str, size: int) -> None:
    assert kept(text, 100, size) == (text, len(text))


@given(text=st.text(st.characters(codec="utf-8"), min_size=101, max_size=400), size=st.integers(1, 50))
def test_a_longer_text_keeps_head_and_tail_and_says_how_much_was_cut(text: str, size: int) -> None:
    output, total = kept(text, 100, size)
    assert total == len(text)
    tail = min(25, len(text) - 100)
    head = 100 - tail
    assert output == f"{text[:head]}\n… [{len(text) - 100:,} of {len(text):,} characters cut here] …\n{text[-tail:]}"


def test_what_is_kept_is_bounded_while_it_comes() -> None:
    it = capture.Capture(100)
    for _ in range(1000):
        it.write(b"x" * 10_000)
    assert sum(map(len, it._head)) + len(it._tail) <= 125
    assert it.take()[1] == 10_000_000


def test_taking_begins_anew() -> None:
    it = capture.Capture(10)
    it.write(b"first, and much more")
    it.take()
    it.write(b"second")
    assert it.take() == ("second", 6)
    assert it.take() == ("", 0)


def test_bytes_that_are_no_text_are_replaced() -> None:
    it = capture.Capture(10)
    it.write(b"a\xffb\xc3")
    it.write(b"\xa9")
    assert it.take() == ("a\ufffdbé", 4)


def test_progress_gives_each_part_of_the_head_once() -> None:
    it = capture.Capture(10)
    it.write(b"abc")
    assert it.progress() == "abc"
    assert it.progress() == ""
    assert not it.full
    it.write(b"defghijklm")
    assert it.progress() == "defghij"
    assert it.full
    it.write(b"more")
    assert it.progress() == ""
    assert it.take()[1] == 17
    assert not it.full


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = capture.open_pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_waiting_counts_the_bytes_in_the_pipe(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    assert capture.waiting(reader) == 0
    os.write(writer, b"12345")
    assert capture.waiting(reader) == 5


def test_reading_an_empty_pipe_does_not_block(pipe: tuple[int, int]) -> None:
    with pytest.raises(BlockingIOError):
        os.read(pipe[0], 1)


BREAKS = {
    "replaced": lambda: setattr(sys, "stdout", None),
    "closed": lambda: (sys.stdout.close(), sys.stdin.close()),
    "detached": lambda: sys.stdout.detach(),
    "deleted": lambda: delattr(sys, "stdout"),
    "descriptor closed": lambda: (os.close(1), os.close(0)),
    "descriptor redirected": lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 1),
}


@pytest.mark.parametrize("name", BREAKS)
def test_streams_are_put_right_whatever_was_done_to_them(name: str, pipe: tuple[int, int]) -> None:
    # In a child: descriptors 0, 1 and 2 belong to the test run.
    reader, writer = pipe
    pid = os.fork()
    if pid == 0:
        try:
            stdio = capture.Stdio(writer)
            BREAKS[name]()
            stdio.flush()
            stdio.restore()
            print("text")
            os.write(1, b"bytes\n")
            print(repr(sys.stdin.read()), file=sys.stderr)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 1000) == b"text\nbytes\n''\n"
