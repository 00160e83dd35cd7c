"""Models, tools and contexts that misbehave: none of it ends a run untyped, and none of it reaches the next question."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

import arlm
from arlm.guest.files import remove_tree
from arlm.log import read_log
from arlm.testing.scripted import ScriptedLM


def cell(code: str) -> str:
    return f"```repl\n{code}\n```"


def final(expression: str) -> str:
    return cell(f"answer['content'] = {expression}\nanswer['ready'] = True")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


async def cancels_itself(_messages: list[arlm.Message]) -> str:
    raise asyncio.CancelledError


async def awaits_a_cancelled_future(_messages: list[arlm.Message]) -> str:
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    future.cancel()
    return await future


@pytest.mark.parametrize("sub", [cancels_itself, awaits_a_cancelled_future, Mute()])
async def test_a_sub_model_that_raises_anything_is_a_failed_call(sub):
    lm = ScriptedLM([final("[llm_query('x').failed, *[r.failed for r in llm_query_batched(['y', 'z'])]]")], sub=sub)
    assert (await arlm.run("q", context="c", model=lm, output_type=list)).answer == [True, True, True]


@pytest.mark.parametrize("error", [asyncio.CancelledError(), Mute(), GeneratorExit(), SystemExit(1), RecursionError("deep")])
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_tool_that_raises_anything_is_an_exception_in_the_cell(error, is_async):
    def tool() -> None:
        raise error

    async def async_tool() -> None:
        raise error

    code = "try:\n    tool()\nexcept BaseException as e:\n    got = type(e).__name__"
    lm = ScriptedLM([cell(code), final("got")])
    assert (await arlm.run("q", context="c", model=lm, tools={"tool": async_tool if is_async else tool})).answer == type(error).__name__


async def test_a_tool_result_that_is_too_deep_is_an_error_in_the_cell():
    def deep() -> Any:
        value: Any = []
        for _ in range(980):
            value = [value]
        return value

    lm = ScriptedLM([cell("try:\n    deep()\nexcept Exception as e:\n    got = type(e).__name__"), final("'on'")])
    assert (await arlm.run("q", context="c", model=lm, tools=[deep])).answer == "on"


@pytest.mark.parametrize("args", ["{'prompt': 'x', 'foo': 1}", "{'prompt': 'x', 'run': 1}", "{}", "{'prompt': 1}", "{'prompts': 'x'}"])
async def test_a_forged_request_is_an_error_for_the_cell_alone(args):
    code = (
        "link = llm_query.__closure__\n"
        "link = next(c.cell_contents for c in link if type(c.cell_contents).__name__ == 'Link')\n"
        f"try:\n    got = link.request('llm_query', {args}).wait()\nexcept Exception as e:\n    got = [e.kind]"
    )
    lm = ScriptedLM([cell(code), final("got")], sub="ok")
    assert (await arlm.run("q", context="c", model=lm, output_type=Any)).answer == ["TypeError"]
    assert lm.sub_calls == []


async def test_an_inner_runs_limit_is_a_failed_call_and_its_usage_is_counted():
    used = arlm.Completion(text=cell("1"), usage=arlm.TokenUsage(input_tokens=10, output_tokens=5, cost_usd=0.5))
    inner = arlm.RLM(model=ScriptedLM([used] * 9, model="scripted/inner"), max_calls=3, on_limit="raise")
    lm = ScriptedLM([cell("r = llm_query('x')"), final("[r.failed, str(r)]")])
    result = await arlm.run("q", context="c", model=lm, sub_model=inner, output_type=list)
    assert result.stop_reason == "answered"
    assert result.answer[0] is True
    assert "max_calls" in result.answer[1]
    assert result.usage.models[inner.name].input_tokens == 20


async def test_a_cancelled_contexts_writer_does_not_write_into_the_next_questions():
    lm = ScriptedLM([final("str(len(context))")])
    async with arlm.RLM(model=lm).session() as session:
        slow = asyncio.ensure_future(session.run("one", context=["é" * 60_000_000]))
        await asyncio.sleep(0.05)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        assert (await session.run("two", context="a" * 1_000_000)).answer == "1000000"


async def test_a_context_that_cannot_be_loaded_costs_its_question_and_no_later_one():
    lm = ScriptedLM([cell("len(context)")] * 3 + [final("context")] * 3)
    async with arlm.RLM(model=lm, memory_limit=40_000_000).session() as session:
        with pytest.raises(arlm.SandboxError, match="could not be loaded"):
            await session.run("one", context="x" * 60_000_000, max_iterations=1)
        assert (await session.run("two", context="small", max_iterations=5)).answer == "small"


@pytest.mark.unmeasured  # a timer of the cell has to fire between two questions, and the measuring of a cell's end takes longer than that
async def test_a_worker_that_hangs_between_questions_is_replaced(monkeypatch):
    from arlm.environments import repl

    monkeypatch.setattr(repl, "IDLE_SECONDS", 0.3)
    hang = "import signal, time\nsignal.signal(signal.SIGALRM, lambda *_: time.sleep(60))\nsignal.setitimer(signal.ITIMER_REAL, 0.3)"
    ends = "answer.update(content='x', ready=True)"  # in the same cell: a timer that hits a second one would hang that instead
    lm = ScriptedLM([cell(f"{hang}\n{ends}"), cell("1"), final("context")])
    async with arlm.RLM(model=lm).session() as session:
        await session.run("one", context="the text")
        await asyncio.sleep(0.6)
        assert (await session.run("two")).answer == "the text"
        assert "The REPL was restarted" in lm.root_calls[-1].messages[3]["content"]


async def test_a_session_used_after_its_block_says_so():
    async with arlm.RLM(model=ScriptedLM([])).session() as session:
        pass
    with pytest.raises(arlm.ConfigError, match="this session is over"):
        await session.run("q")


async def test_huge_answers_do_not_end_a_session():
    lm = ScriptedLM([final("'x' * 3_000_000"), final("str(len(history[0]['answer']) < 2_000_000)")])
    async with arlm.RLM(model=lm).session() as session:
        assert len((await session.run("one", context="c")).answer) == 3_000_000
        assert (await session.run("two")).answer == "True"


async def test_events_come_in_pairs_whatever_goes_wrong():
    seen: list[Any] = []
    lm = ScriptedLM([final("llm_query('x', model='nope').failed")])
    await arlm.run("q", context="c", model=lm, on_event=seen.append)
    with pytest.raises(arlm.ConfigError):
        await arlm.run("q", context={1: 2}, model=lm, on_event=seen.append)
    types = [event.type for event in seen]
    assert types.count("subcall_started") == types.count("subcall_ended") == 1
    assert types.count("run_started") == types.count("run_ended") == 2


async def test_an_answer_that_looks_like_the_logs_own_marks_is_read_back(tmp_path: Path):
    odd = {"$value": "sha256:zz", "$$value": ["x" * 300], "other": {"$value": 1}}
    await arlm.run("q", context="c", model=ScriptedLM([final(repr(odd))]), log_dir=tmp_path, output_type=dict)
    (path,) = tmp_path.glob("*.jsonl")
    assert list(read_log(path))[-1]["answer"] == odd


async def test_the_log_has_its_end_when_every_task_is_cancelled(tmp_path: Path):
    async def cancel_all(_messages: list[arlm.Message]) -> str:
        for task in asyncio.all_tasks():
            task.cancel()
        await asyncio.sleep(60)
        return "never"

    run = asyncio.ensure_future(arlm.run("q", context="c", model=ScriptedLM([cell("llm_query('x')")], sub=cancel_all), log_dir=tmp_path))
    with pytest.raises(asyncio.CancelledError):
        await run
    (path,) = tmp_path.glob("*.jsonl")
    assert list(read_log(path))[-1]["type"] == "run_ended"


def test_a_tree_of_any_depth_and_without_permissions_is_removed(tmp_path: Path):
    import os

    root = tmp_path / "root"
    root.mkdir()
    here = os.open(root, os.O_RDONLY)
    for _ in range(2_500):
        os.mkdir("deep", dir_fd=here)
        further = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = further
    os.close(here)
    (root / "file").write_text("x")
    (root / "link").symlink_to(tmp_path)
    (root / "closed").mkdir()
    (root / "closed" / "inner").mkdir()
    (root / "closed").chmod(0)
    remove_tree(str(root))
    assert not root.exists()
    assert tmp_path.exists()
