"""Contexts on the host's side: what is written is what was given, and what cannot be a context says where and why."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import threading
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arlm import context
from arlm.context import ContextFile, write_context
from arlm.errors import ConfigError, SandboxError
from arlm.guest import values

ODD = "'\"\\\0\a\r\n\u2028é\U0001f600\ud83d\ude00 \ude00\ud83d\ufeff{}"
TEXT = st.text(st.characters(codec=None, categories=None))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


async def written(value: object, path: Path) -> tuple[ContextFile, object]:
    file = await write_context(value, path)
    return file, values.load(str(file.path), file.kind)


@given(
    value=st.text(st.characters(codec=None, categories=None), min_size=1)
    | st.binary(min_size=1)
    | st.lists(JSON, min_size=1)
    | st.dictionaries(TEXT, JSON, min_size=1)
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_a_worker_reads_is_what_was_given(value: object, tmp_path: Path) -> None:
    file = context._write(value, tmp_path / "c")
    read = values.load(str(file.path), file.kind)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("value", [0, -5, 2.5, True, False, None, float("inf"), 2**200, [None], [[]], {"": ""}])
async def test_every_json_value_is_a_context(value: object, tmp_path: Path) -> None:
    _, read = await written(value, tmp_path / "c")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("value", [bytearray(b"x\0\xff"), memoryview(b"x\0\xff")])
async def test_other_buffers_arrive_as_bytes(value: object, tmp_path: Path) -> None:
    assert (await written(value, tmp_path / "c"))[1] == b"x\0\xff"


async def test_large_values_are_written_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "SLICE", 3)
    for value in (ODD * 5, ODD.encode("utf-8", "surrogatepass")):
        assert (await written(value, tmp_path / "c"))[1] == value
    path = tmp_path / "given"
    path.write_bytes("é\U0001f600\r\n".encode() * 5)
    file, read = await written(path, tmp_path / "c")
    assert (read, file.size) == ("é\U0001f600\r\n" * 5, 20)


DESCRIPTIONS = [
    ("x" * 1234, "a str of 1,234 characters", 1234),
    (b"x" * 1234, "a bytes object of 1,234 bytes", 1234),
    (["a" * 1000, "b"], "a list of 2 str, 1,001 characters in all (lengths: 1,000, 1)", None),
    (["a"] * 7, "a list of 7 str, 7 characters in all (lengths: 1, 1, 1, 1, 1, …)", None),
    (["a", 1, None], "a list of 3 items (NoneType, int, str)", None),
    ({"k": 1, "l": 2}, "a dict of 2 entries (keys: 'k', 'l')", None),
    ({str(n): n for n in range(9)}, "a dict of 9 entries (keys: '0', '1', '2', '3', '4', …)", None),
    (5, "a JSON value of type int", None),
]


@pytest.mark.parametrize(("value", "description", "size"), DESCRIPTIONS, ids=[row[1] for row in DESCRIPTIONS])
async def test_the_description_says_what_it_is(value: object, description: str, size: int | None, tmp_path: Path) -> None:
    file = await write_context(value, tmp_path / "c")
    assert file.description == description
    assert file.size == (size or len((tmp_path / "c").read_bytes()))


async def test_a_long_key_does_not_flood_the_description(tmp_path: Path) -> None:
    assert len((await write_context({"k" * 10_000: 1}, tmp_path / "c")).description) < 200


async def test_a_path_is_used_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("given.txt").write_bytes(b"line\r\n")
    file = await write_context(Path("given.txt"), tmp_path / "c")
    assert (file.path, file.kind) == (tmp_path / "given.txt", "text")
    assert file.description == "a str of 6 characters (the text of given.txt)"
    assert not (tmp_path / "c").exists()


async def test_several_paths_become_a_dict_by_the_paths_as_given(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("b", "a", "empty")]
    for path in paths:
        path.write_bytes(b"" if path.name == "empty" else f"{ODD}".encode("utf-8", "ignore") + path.name.encode())
    for given_ in (paths, tuple(paths)):
        file, read = await written(given_, tmp_path / "c")
        assert read == {str(path): path.read_bytes().decode() for path in paths}
        assert list(read) == list(map(str, paths))
        assert file.description.startswith("a dict of 3 files, path to text")


class Number(IntEnum):
    ONE = 1


class Text(str):
    __slots__ = ()


async def test_subclasses_of_plain_types_arrive_as_those(tmp_path: Path) -> None:
    assert (await written([Number.ONE, Text("x"), {Text("k"): 1}], tmp_path / "c"))[1] == [1, "x", {"k": 1}]


LOOP: list = []
LOOP.append(LOOP)
DEEP: list = []
for _ in range(100_000):
    DEEP = [DEEP]

REFUSED = {
    "an empty str": ("", "the context is empty"),
    "empty bytes": (b"", "the context is empty"),
    "an empty list": ([], "the context is empty"),
    "an empty dict": ({}, "the context is empty"),
    "a set": ({1}, "context is a set, which JSON does not have; pass a list"),
    "a tuple": ((1, 2), "context is a tuple"),
    "a tuple inside": ({"k": [0, (1,)]}, "context['k'][1] is a tuple"),
    "a number as key": ({5: "x"}, "context has the key 5 (int); a context's dicts need str keys"),
    "a key inside": ([{"k": {None: 1}}], "context[0]['k'] has the key None (NoneType)"),
    "bytes inside": ([b"x"], "context[0] is bytes inside a container"),
    "a path inside": (["x", Path("y")], "context[1] is a path among other values"),
    "paths in a dict": ({"k": Path("y")}, "context['k'] is a path among other values"),
    "an object": (object(), "context is a object, which cannot be a context"),
    "an object inside": ([[object()]], "context[0][0] is a object"),
    "a loop": (LOOP, "nested too deeply, or contains itself"),
    "a deep list": (DEEP, "nested too deeply, or contains itself"),
    "a number of too many digits": ([10**10_000], "digits"),
}


@pytest.mark.parametrize(("value", "reason"), REFUSED.values(), ids=REFUSED)
async def test_what_cannot_be_a_context_says_where_and_why(value: object, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        await write_context(value, tmp_path / "c")
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("depth", [10, 300, 600, 900, 950, 980, 1000, 2000])
async def test_any_depth_either_is_written_or_is_refused(depth: int, tmp_path: Path) -> None:
    value: list = ["x"]
    for _ in range(depth):
        value = [value]
    try:
        file = await write_context(value, tmp_path / "c")
    except ConfigError as error:
        reason = str(error)
    else:
        reason = "nested too deeply" if file.path.read_text() == "[" * depth + '["x"]' + "]" * depth else "not as given"
    assert "nested too deeply" in reason


BAD_FILES = {
    "missing": (None, "cannot be read: No such file or directory"),
    "empty": (b"", "is empty; there is nothing to ask about"),
    "latin-1": ("süß".encode("latin-1"), "is not UTF-8 text: byte 0xfc at position 1 (invalid start byte)"),
    "cut off": ("ab\U0001f600".encode()[:-1], "is not UTF-8 text: byte 0xf0 at position 2 (unexpected end of data)"),
    "surrogates": ("\ud800".encode("utf-8", "surrogatepass"), "is not UTF-8 text: byte 0xed at position 0"),
    "binary": (bytes(range(256)), "is not UTF-8 text: byte 0x80 at position 128"),
}


@pytest.mark.parametrize("slice_", [1, 2, 3, 1000])
@pytest.mark.parametrize(("data", "reason"), BAD_FILES.values(), ids=BAD_FILES)
async def test_a_bad_file_says_what_is_wrong(
    data: bytes | None, reason: str, slice_: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "SLICE", slice_)
    path = tmp_path / "given.txt"
    if data is not None:
        path.write_bytes(data)
    for value in (path, [path]):
        with pytest.raises(ConfigError) as caught:
            await write_context(value, tmp_path / "c")
        if data != b"" or value is path:
            assert reason in str(caught.value)
        assert str(path) in str(caught.value) or data == b""


async def test_a_file_that_is_not_utf8_says_how_to_pass_it_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "given"
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="read_bytes"):
        await write_context(path, tmp_path / "c")


async def test_a_folder_and_a_doubled_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder; give its files"):
        await write_context(tmp_path, tmp_path / "c")
    path = tmp_path / "given"
    path.write_text("x")
    with pytest.raises(ConfigError, match="the same file is given twice"):
        await write_context([path, path], tmp_path / "c")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every file")
async def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "given"
    path.write_text("x")
    path.chmod(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        await write_context(path, tmp_path / "c")


async def test_a_place_that_cannot_be_written_is_a_sandbox_error(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="could not be written"):
        await write_context("text", tmp_path / "no" / "such" / "folder")


async def test_writing_leaves_the_loop_free(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    writing = asyncio.create_task(write_context("text", tmp_path / "fifo"))
    reader = await asyncio.to_thread((tmp_path / "fifo").open, "rb")  # both sides block until the other is there
    with reader:
        await writing
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


async def test_a_cancelled_writing_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "SLICE", 1)
    begun, go_on, threads = threading.Event(), threading.Event(), []

    class Slow(str):
        __slots__ = ()

        def __getitem__(self, key: object) -> str:
            threads.append(threading.current_thread())
            begun.set()
            go_on.wait(10)
            return str.__getitem__(self, key)

    writing = asyncio.create_task(write_context(Slow("x" * 1000), tmp_path / "c"))
    await asyncio.to_thread(begun.wait)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    go_on.set()
    await asyncio.to_thread(lambda: None)
    deadline = asyncio.get_running_loop().time() + 10
    while len(threads) < 1000 and (before := len(threads)) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.05)
        if len(threads) == before:
            break
    assert len(threads) < 10


async def test_json_is_written_without_a_copy_of_the_whole(tmp_path: Path) -> None:
    file = await write_context({"a": ["x"] * 3, "b": 1}, tmp_path / "c")
    assert isinstance(json.loads(file.path.read_text()), Mapping)
