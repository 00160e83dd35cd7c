import json
from pathlib import Path

import pytest

import arlm
from arlm.log import read_log
from arlm.testing.scripted import ScriptedLM

LONG = "a long text " * 100


async def logged(tmp_path: Path, **options) -> tuple[Path, list[arlm.events.AnyEvent]]:
    seen: list[arlm.events.AnyEvent] = []
    code = "r = llm_query_batched([context] * 3 + ['short'])\nprint(len(context))"
    lm = ScriptedLM([f"```repl\n{code}\n```", "```repl\nanswer.update(content='done', ready=True)\n```"], sub=LONG)
    await arlm.run("q", context=LONG, model=lm, log_dir=tmp_path, on_event=seen.append, **options)
    (path,) = tmp_path.glob("*.jsonl")
    return path, seen


async def test_the_log_holds_the_same_events_that_on_event_saw(tmp_path):
    path, seen = await logged(tmp_path)
    expected = [event.to_dict() for event in seen if event.type != "cell_output"]
    assert list(read_log(path)) == json.loads(json.dumps(expected))


async def test_a_large_value_is_written_once(tmp_path):
    path, _ = await logged(tmp_path)
    text = path.read_text(encoding="utf-8")
    assert text.count(json.dumps(LONG)[1:-1]) == 1  # three prompts and four replies


async def test_a_torn_last_line_is_left_out(tmp_path):
    path, _ = await logged(tmp_path)
    whole = list(read_log(path))
    path.write_bytes(path.read_bytes()[:-10])
    assert list(read_log(path)) == whole[:-1]


async def test_a_broken_line_in_the_middle_is_an_error_that_says_where(tmp_path):
    path, _ = await logged(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"{torn\n", *lines[1:]]))
    with pytest.raises(ValueError, match="line 2"):
        list(read_log(path))


async def test_the_log_of_a_failed_run_ends_with_its_error(tmp_path):
    with pytest.raises(arlm.AuthError):
        await arlm.run("q", context="c", model=ScriptedLM([arlm.AuthError("wrong key")]), log_dir=tmp_path)
    (path,) = tmp_path.glob("*.jsonl")
    last = list(read_log(path))[-1]
    assert (last["type"], last["error"]) == ("run_ended", "AuthError: wrong key")


async def test_a_log_dir_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(arlm.ConfigError, match="log_dir"):
        await arlm.run("q", context="c", model=ScriptedLM([]), log_dir=tmp_path / "file" / "logs")


async def test_lone_surrogates_survive_the_log(tmp_path):
    odd = "\ud83d\ude00 \udc80"
    lm = ScriptedLM(["```repl\nanswer.update(content=llm_query(context), ready=True)\n```"], sub=lambda messages: messages[0]["content"])
    result = await arlm.run("q", context=odd, model=lm, log_dir=tmp_path)
    assert result.answer == odd
    (path,) = tmp_path.glob("*.jsonl")
    assert next(event for event in read_log(path) if event["type"] == "subcall_started")["prompt"][-1] == "\udc80"


def test_the_documented_schema_is_the_one_in_the_code():
    document = (Path(__file__).parents[1] / "docs" / "events.md").read_text(encoding="utf-8")
    assert document.split("<!-- schema -->\n")[1] == arlm.events.documentation()
