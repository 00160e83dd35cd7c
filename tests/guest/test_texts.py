"""Large texts: the value is the decoder's, and no more memory is taken than it needs."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from arlm.guest import texts, values

MIB = 2**20
TEXTS = {
    "ASCII": "x" * 1000,
    "one of Latin-1 at the end": "x" * 1000 + "é",
    "one of Chinese at the end": "é" * 1000 + "中",
    "an emoji at the end": "中é" * 500 + "\N{ROLLING ON THE FLOOR LAUGHING}",
    "an emoji first": "\N{ROLLING ON THE FLOOR LAUGHING}" + "x" * 1000,
    "the last of each width": "\x7f\xff\uffff\U0010ffff" * 300,
    "lone surrogates": "\ud83e" * 500 + "\udd23\ud83e\udd23" * 100,
    "NUL": "\0\0é\0",
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "LARGE", 0)
    monkeypatch.setattr(texts, "PIECE", 61)  # a prime: pieces end in the midst of characters


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_arrives_unchanged(name: str) -> None:
    text = TEXTS[name]
    data = text.encode("utf-8", "surrogatepass")
    assert texts.decode(data) == text
    assert sys.getsizeof(texts.decode(data)) == sys.getsizeof(str(data, "utf-8", "surrogatepass"))
    assert texts.measure(data)[0] == len(text)


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xe4\xb8", b"\x80", b"\xf0\x9f\xa4", b"\xc0\x80"])
@pytest.mark.parametrize("before", [b"x" * 1000, "中".encode() * 100])
def test_what_is_no_utf_8_is_an_error(before: bytes, bad: bytes) -> None:
    with pytest.raises(ValueError, match="utf-8"):
        texts.decode(before + bad)
    with pytest.raises(ValueError, match="utf-8"):
        texts.decode(before + bad + b"x" * 100)


def test_data_that_changes_meanwhile_is_an_error_and_no_broken_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for measured in [(999, 4), (1001, 4), (1000, 2)]:
        monkeypatch.setattr(texts, "measure", lambda _, measured=measured: measured)
        with pytest.raises(ValueError, match="changed while it was read"):
            texts.decode(b"x" * 996 + "éééé".encode())


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(texts, "PIECE", MIB)
    path = tmp_path / "text"
    path.write_text("é" + "x" * (32 * MIB) + "\N{ROLLING ON THE FLOOR LAUGHING}")
    yield path
    path.unlink()


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space, and reads /proc")
@pytest.mark.parametrize(("room", "loaded"), [(4 * 32 + 32 + 24, True), (4 * 32 + 16, False)])
def test_the_peak_is_the_text_itself_and_its_mapped_file(file: Path, room: int, loaded: bool) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with open("/proc/self/statm") as statm:
                most = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + room * MIB
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            os.write(writer, str(len(values.load(str(file), "text"))).encode())
        except MemoryError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with open(reader) as answer:
        said = answer.read()
    chars = 32 * MIB + 2
    if loaded:
        assert said == str(chars)
    else:
        assert said.startswith(f"a str of {chars:,} characters, 4 bytes each, needs {4 * chars:,} bytes; the memory limit leaves ")


def test_what_the_machine_has_not_is_refused_before_it_is_tried(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "free_bytes", lambda: MIB)
    for kind, needs in (("text", 4 * (32 * MIB + 2)), ("bytes", file.stat().st_size)):
        with pytest.raises(MemoryError, match=f"needs {needs:,} bytes; the machine has {MIB:,} free"):
            values.load(str(file), kind)


def test_a_system_that_does_not_say_what_is_free_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "free_bytes", lambda: None)
    texts.require(2**60, "much")
