"""Runs through the public API, with a scripted model and real workers."""

import asyncio
import json
from typing import Any

import pydantic
import pytest

import arlm
from arlm.testing.scripted import ScriptedLM


def cell(code: str) -> str:
    return f"```repl\n{code}\n```"


def final(expression: str) -> str:
    return cell(f"answer['content'] = {expression}\nanswer['ready'] = True")


def echo(messages: list[arlm.Message]) -> str:
    return messages[0]["content"].upper()


def user_messages(lm: ScriptedLM) -> list[str]:
    return [message["content"] for message in lm.root_calls[-1].messages if message["role"] == "user"]


# -- the loop ---------------------------------------------------------------------------------------------------------


async def test_a_run_reads_its_context_by_code_and_answers():
    lm = ScriptedLM([cell("n = len(context)\nprint(n)"), final("str(n)")])
    result = await arlm.run("How long?", context="x" * 12_345, model=lm)
    assert (result.answer, result.stop_reason, result.iterations) == ("12345", "answered", 2)
    assert result.usage.models["scripted/model"].calls == 2
    assert "12345" in user_messages(lm)[1]


async def test_the_history_only_grows():
    lm = ScriptedLM([cell("1"), "only prose", cell("1/0"), final("'x'")])
    await arlm.run("q", context="c", model=lm)
    for earlier, later in zip(lm.root_calls, lm.root_calls[1:], strict=False):
        assert later.messages[: len(earlier.messages)] == earlier.messages
    roles = [message["role"] for message in lm.root_calls[-1].messages]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user", "assistant", "user"]


async def test_the_question_and_the_context_stand_in_the_first_user_message():
    lm = ScriptedLM([final("'x'")])
    await arlm.run("What is in {braces}?", context=["a", "bb"], model=lm)
    first = user_messages(lm)[0]
    assert "What is in {braces}?" in first
    assert "a list of 2 str" in first
    assert "Turn 1 of 30" in first


async def test_a_prompt_without_context_stands_in_the_message_by_its_head_and_in_context_whole():
    prompt = "a" * 2_000 + "HIDDEN" + "b" * 100
    lm = ScriptedLM([final("context")])
    result = await arlm.run(prompt, model=lm)
    assert result.answer == prompt
    assert "a" * 2_000 in user_messages(lm)[0]
    assert "HIDDEN" not in user_messages(lm)[0]


async def test_several_blocks_run_in_order_and_stop_at_the_first_error():
    lm = ScriptedLM(["\n".join([cell("print('one')"), cell("1/0"), cell("print('three')")]), final("'x'")])
    await arlm.run("q", context="c", model=lm)
    feedback = user_messages(lm)[1]
    assert "Output of block 1:\none" in feedback
    assert "ZeroDivisionError: division by zero" in feedback
    assert "three" not in feedback
    assert "[1 further block was not run]" in feedback


async def test_blocks_after_ready_do_not_run(tmp_path):
    marker = tmp_path / "ran"
    lm = ScriptedLM([final("'x'") + "\n" + cell(f"open({str(marker)!r}, 'w')")])
    assert (await arlm.run("q", context="c", model=lm)).answer == "x"
    assert not marker.exists()


async def test_a_turn_without_code_goes_on_and_says_so():
    lm = ScriptedLM(["Let me think.", final("'x'")])
    assert (await arlm.run("q", context="c", model=lm)).answer == "x"
    assert "no ```repl block" in user_messages(lm)[1]


async def test_a_block_cut_off_by_the_output_limit_is_not_run():
    cut = arlm.Completion(text="```repl\nprint('half", finish_reason="length")
    lm = ScriptedLM([cut, final("'x'")])
    await arlm.run("q", context="c", model=lm)
    assert "cut off" in user_messages(lm)[1]
    assert "half" not in user_messages(lm)[1]


async def test_braces_in_a_system_prompt_are_braces_and_instructions_are_added():
    lm = ScriptedLM([final("'x'")])
    await arlm.run("q", context="c", model=lm, system_prompt="Use {this} and {0}.", instructions="Be brief. {}")
    assert lm.calls[0].messages[0]["content"] == "Use {this} and {0}.\n\nBe brief. {}"


async def test_the_system_prompt_lists_every_function_from_the_one_place():
    from arlm.functions import FUNCTIONS

    lm = ScriptedLM([final("'x'")])
    await arlm.run("q", context="c", model=lm, max_depth=2)
    system = lm.calls[0].messages[0]["content"]
    assert all(function.signature in system and " ".join(function.doc.split()) in system for function in FUNCTIONS)
    assert "llm_query(prompt, model=None)" in system


async def test_where_there_are_no_children_the_prompt_says_that_rlm_query_is_a_plain_call():
    lm = ScriptedLM([final("'x'")])
    await arlm.run("q", context="c", model=lm)
    system = lm.calls[0].messages[0]["content"]
    assert "`rlm_query`, `rlm_query_batched`: the same here, with a plain call" in system
    assert "REPL of its own" not in system


async def test_an_empty_answer_is_asked_for_again_and_accepted_when_insisted():
    lm = ScriptedLM([final("''"), final("''")])
    assert (await arlm.run("q", context="c", model=lm)).answer == ""
    assert "is empty" in user_messages(lm)[1]


async def test_sub_calls_reach_the_sub_model_with_exactly_the_prompt():
    root, sub = ScriptedLM([final("llm_query('as {given}\\n')")]), ScriptedLM(["the reply"], model="scripted/sub")
    result = await arlm.run("q", context="c", model=root, sub_model=sub)
    assert result.answer == "the reply"
    assert sub.calls[0].messages == [{"role": "user", "content": "as {given}\n"}]
    assert {name: usage.calls for name, usage in result.usage.models.items()} == {"scripted/model": 1, "scripted/sub": 1}


async def test_a_named_model_is_used_and_an_unknown_name_is_an_error_in_its_place():
    small = ScriptedLM(sub="small says hi", model="scripted/small")
    code = "a = llm_query('x', model='small')\nb = llm_query('x', model='large')\nc = rlm_query('x')"
    lm = ScriptedLM([cell(code), final("[a, b, b.failed, c]")], sub="root says hi")
    result = await arlm.run("q", context="c", model=lm, models={"small": small}, output_type=list)
    assert result.answer[0] == "small says hi"
    assert result.answer[1].startswith("Error: ")
    assert "'large'" in result.answer[1]
    assert "small" in result.answer[1]
    assert result.answer[2:] == [True, "root says hi"]


async def test_failed_sub_calls_are_data_and_are_counted_under_the_output():
    def sub(messages: list[arlm.Message]) -> str:
        if "bad" in messages[0]["content"]:
            raise ValueError("no good")
        return "ok"

    lm = ScriptedLM([cell("r = llm_query_batched(['a', 'bad', 'c'])"), final("[str(x) for x in r]")], sub=sub)
    result = await arlm.run("q", context="c", model=lm, output_type=list)
    assert result.answer == ["ok", "Error: ValueError: no good", "ok"]
    assert "[1 of 3 sub-calls failed: ValueError: no good]" in user_messages(lm)[1]
    assert result.usage.models["scripted/model"].failed == 1


async def test_a_sub_model_that_returns_no_text_is_a_failed_call():
    empty = arlm.Completion(text="", finish_reason="length")
    lm = ScriptedLM([final("llm_query('x')")], sub=empty)
    assert "output limit" in (await arlm.run("q", context="c", model=lm)).answer


async def test_an_output_type_is_checked_and_the_model_told_what_is_wrong():
    class Count(pydantic.BaseModel):
        n: int

    lm = ScriptedLM([final("{'n': 'many'}"), final("{'n': 3}")])
    result = await arlm.run("q", context="c", model=lm, output_type=Count)
    assert result.answer == Count(n=3)
    assert "was not accepted" in user_messages(lm)[1]
    assert '"integer"' in user_messages(lm)[0]


async def test_containers_become_json_text_where_text_is_wanted():
    lm = ScriptedLM([final("{'a': ['ü', 1]}")])
    assert json.loads((await arlm.run("q", context="c", model=lm)).answer) == {"a": ["ü", 1]}


async def test_an_error_in_the_root_model_is_raised_bare():
    class Broken(Exception):
        pass

    with pytest.raises(Broken):
        await arlm.run("q", context="c", model=ScriptedLM([Broken("x")]))


async def test_an_empty_prompt_and_an_empty_context_are_refused_before_anything_starts():
    lm = ScriptedLM([])
    with pytest.raises(arlm.ConfigError, match="prompt is empty"):
        await arlm.run("  ", context="c", model=lm)
    for empty in ("", b"", [], {}):
        with pytest.raises(arlm.ConfigError, match="context is empty"):
            await arlm.run("q", context=empty, model=lm)
    assert lm.calls == []


async def test_an_unknown_environment_and_an_unknown_option_of_one_say_what_there_is():
    lm = ScriptedLM([])
    with pytest.raises(arlm.ConfigError, match="'process'"):
        await arlm.run("q", context="c", model=lm, environment="proces")
    with pytest.raises(arlm.ConfigError, match="did you mean 'transport'"):
        await arlm.run("q", context="c", model=lm, environment_options={"transprt": "tcp"})


async def test_runs_at_once_do_not_mix():
    async def one(number: int) -> str:
        lm = ScriptedLM([cell("x = context"), final("llm_query(x)")], sub=echo)
        return (await arlm.run("q", context=f"text {number}", model=lm)).answer

    assert await asyncio.gather(*map(one, range(40))) == [f"TEXT {number}" for number in range(40)]


# -- limits, each inside one cell's batch -----------------------------------------------------------------------------

BATCH = "r = llm_query_batched([f'q{i}' for i in range(20)])\nfailed = sum(x.failed for x in r)\nprint(failed, 'failed')"


async def test_max_calls_holds_to_the_call_and_the_last_call_answers():
    lm = ScriptedLM([cell(BATCH), "best guess"], sub="ok")
    result = await arlm.run("q", context="c", model=lm, max_calls=8)
    assert (result.answer, result.stop_reason) == ("best guess", "max_calls")
    assert result.usage.total.calls == len(lm.calls) == 8
    assert "14 failed" in user_messages(lm)[-1]
    assert "max_calls" in user_messages(lm)[-1]


async def test_max_calls_of_one_goes_straight_to_the_last_answer():
    lm = ScriptedLM(["a guess"])
    result = await arlm.run("q", context="c", model=lm, max_calls=1)
    assert (result.answer, result.stop_reason, len(lm.calls)) == ("a guess", "max_calls", 1)


def priced(text: str, *, output: int = 50) -> Any:
    """A reply that says what it used, as a provider would: four characters a token, a cent for a thousand."""

    def reply(messages: list[arlm.Message]) -> arlm.Completion:
        sent = sum(len(message["content"]) for message in messages) // 4
        return arlm.Completion(text=text, usage=arlm.TokenUsage(input_tokens=sent, output_tokens=output, cost_usd=(sent + output) * 1e-5))

    return reply


async def test_max_total_tokens_holds_inside_one_batch():
    lm = ScriptedLM([priced(cell(BATCH)), priced("best guess")], sub=priced("ok", output=400))
    result = await arlm.run("q", context="c", model=lm, max_total_tokens=9_000, sub_sampling={"max_tokens": 400})
    assert (result.answer, result.stop_reason) == ("best guess", "max_total_tokens")
    total = result.usage.total
    assert 4_000 < (total.input_tokens or 0) + (total.output_tokens or 0) <= 9_000
    assert 5 < len(lm.sub_calls) < 20


async def test_max_cost_usd_holds_inside_one_batch(monkeypatch):
    from arlm.clients import prices

    monkeypatch.setattr(prices, "is_priced", lambda _model: True)
    monkeypatch.setattr(
        prices, "price", lambda _model, usage: usage.cost_usd or ((usage.input_tokens or 0) + (usage.output_tokens or 0)) * 1e-5
    )
    lm = ScriptedLM([priced(cell(BATCH)), priced("best guess")], sub=priced("ok", output=400))
    result = await arlm.run("q", context="c", model=lm, max_cost_usd=0.09, sub_sampling={"max_tokens": 400})
    assert (result.answer, result.stop_reason) == ("best guess", "max_cost_usd")
    assert result.cost_usd is not None
    assert 0.04 < result.cost_usd <= 0.09
    assert 5 < len(lm.sub_calls) < 20


async def test_a_cost_limit_with_an_unknown_price_is_refused_at_the_start():
    lm = ScriptedLM([])
    with pytest.raises(arlm.ConfigError, match="price of scripted/model is unknown"):
        await arlm.run("q", context="c", model=lm, max_cost_usd=1.0)
    assert lm.calls == []


async def test_on_limit_raise_gives_the_typed_error_with_the_partial_result():
    lm = ScriptedLM([cell(BATCH)], sub="ok")
    with pytest.raises(arlm.CallLimit) as caught:
        await arlm.run("q", context="c", model=lm, max_calls=8, on_limit="raise")
    error = caught.value
    assert (error.limit, error.used, error.allowed) == ("max_calls", 7, 8)
    assert error.partial is not None
    assert error.partial.usage.total.calls == 7
    assert error.partial.trajectory()["turns"][0]["cells"][0]["calls"] == 20


async def test_an_answer_set_after_a_limit_refused_calls_is_taken_and_names_the_limit():
    lm = ScriptedLM([cell(BATCH + "\nanswer.update(content=f'{failed} failed', ready=True)")], sub="ok")
    result = await arlm.run("q", context="c", model=lm, max_calls=8)
    assert (result.answer, result.stop_reason) == ("14 failed", "max_calls")


async def test_a_cell_that_calls_for_ever_ends_when_a_limit_refuses_it():
    lm = ScriptedLM([cell("while True:\n    llm_query('again')"), "enough"], sub="ok")
    result = await arlm.run("q", context="c", model=lm, max_calls=10)
    assert (result.answer, result.stop_reason) == ("enough", "max_calls")
    assert "a limit of the run" in user_messages(lm)[-1]


async def test_out_of_iterations_one_more_call_answers():
    lm = ScriptedLM([cell("print('seen')"), cell("2"), "from what I saw"])
    result = await arlm.run("q", context="c", model=lm, max_iterations=2)
    assert (result.answer, result.stop_reason, result.iterations) == ("from what I saw", "iterations", 2)
    assert len(lm.calls) == 3


async def test_a_last_answer_of_the_wrong_type_is_the_limit_with_the_partial_result():
    lm = ScriptedLM([cell("1"), "not a number"])
    with pytest.raises(arlm.LimitError) as caught:
        await arlm.run("q", context="c", model=lm, max_iterations=1, output_type=int)
    assert caught.value.limit == "max_iterations"
    assert caught.value.partial is not None
    assert caught.value.partial.answer == "not a number"


async def test_the_timeout_ends_a_hanging_sub_call_and_is_a_timeout_error():
    async def hang(_messages: list[arlm.Message]) -> str:
        await asyncio.sleep(60)
        return "never"

    lm = ScriptedLM([cell("llm_query('x')")], sub=hang)
    with pytest.raises(TimeoutError) as caught:
        await arlm.run("q", context="c", model=lm, timeout=0.5)
    assert isinstance(caught.value, arlm.RunTimeout)
    assert caught.value.limit == "timeout"
    assert caught.value.partial is not None
    assert caught.value.partial.usage.total.cancelled == 1
    assert lm.in_flight == 0


async def test_max_errors_counts_failed_iterations_in_a_row():
    lm = ScriptedLM([cell("1/0"), cell("1"), cell("1/0"), cell("1/0")])
    with pytest.raises(arlm.ErrorLimit) as caught:
        await arlm.run("q", context="c", model=lm, max_errors=2)
    assert caught.value.used == 2
    assert len(lm.calls) == 4


async def test_a_model_that_answers_nothing_three_times_is_an_error_that_says_what_to_do():
    empty = arlm.Completion(text="", finish_reason="length")
    with pytest.raises(arlm.ProviderError, match=r"scripted/model answered nothing 3 times.*max_tokens"):
        await arlm.run("q", context="c", model=ScriptedLM([empty] * 3))


async def test_the_turn_message_says_what_is_left():
    lm = ScriptedLM([priced(cell("llm_query('x')")), priced(final("'x'"))], sub=priced("ok"))
    await arlm.run("q", context="c", model=lm, max_calls=50, max_total_tokens=100_000, timeout=100)
    line = user_messages(lm)[1].splitlines()[-1]
    assert "Turn 2 of 30" in line
    assert "47 model calls" in line
    assert " tokens" in line
    assert " s." in line
    assert "Sub-calls so far: 1" in line


async def test_retries_are_calls():
    def flaky(tries: list[int]) -> Any:
        def sub(_messages: list[arlm.Message]) -> str:
            tries.append(1)
            if len(tries) < 3:
                raise arlm.RateLimited("slow down", provider="scripted", retry_after=0.0)
            return "ok"

        return sub

    lm = ScriptedLM([final("llm_query('x')")], sub=flaky([]))
    events: list[Any] = []
    result = await arlm.run("q", context="c", model=lm, on_event=events.append)
    assert result.answer == "ok"
    assert result.usage.total.calls == 4
    assert result.usage.total.failed == 2
    assert [event.type for event in events].count("call_retried") == 2


# -- cells that go wrong ----------------------------------------------------------------------------------------------


async def test_a_stopped_cell_is_told_and_the_run_goes_on():
    lm = ScriptedLM([cell("kept = 1\nwhile True: pass"), final("str(kept)")])
    result = await arlm.run("q", context="c", model=lm, cell_timeout=0.3)
    assert result.answer == "1"
    assert "cell_timeout of 0.3 s" in user_messages(lm)[1]


async def test_a_worker_that_exits_is_replaced_and_the_loss_is_said_by_name():
    lm = ScriptedLM([cell("mine = 1"), cell("import os; os._exit(3)"), final("context")])
    result = await arlm.run("q", context="still here", model=lm)
    assert result.answer == "still here"
    assert "exited with status 3" in user_messages(lm)[2]
    assert "Lost: mine" in user_messages(lm)[2]


# -- stream, sync, RLM ------------------------------------------------------------------------------------------------


async def test_a_stream_gives_all_events_and_then_the_result():
    lm = ScriptedLM([cell("print(llm_query('x'))"), final("'done'")], sub="hi")
    async with arlm.stream("q", context="c", model=lm) as run:
        with pytest.raises(RuntimeError, match="not over"):
            _ = run.result
        types = [event.type async for event in run if event.type != "cell_output"]
        assert run.result.answer == "done"
    assert types[0] == "run_started"
    assert types[-1] == "run_ended"
    assert types.count("subcall_started") == types.count("subcall_ended") == 1
    assert types.index("cell_started") < types.index("subcall_started") < types.index("subcall_ended") < types.index("cell_ended")


async def test_leaving_a_stream_early_ends_the_run_there_and_then():
    async def hang(_messages: list[arlm.Message]) -> str:
        await asyncio.sleep(60)
        return "never"

    lm = ScriptedLM([cell("llm_query('x')")], sub=hang)
    async with arlm.stream("q", context="c", model=lm) as run:
        async for event in run:
            if event.type == "subcall_started":
                break
    assert lm.in_flight == 0


async def test_an_error_inside_a_stream_block_leaves_it_bare():
    lm = ScriptedLM([cell("1")] * 3)

    async def use() -> None:
        async with arlm.stream("q", context="c", model=lm) as run:
            async for _event in run:
                raise KeyError("mine")

    with pytest.raises(KeyError):
        await use()


async def test_a_stream_raises_what_the_run_raised():
    async with arlm.stream("q", context="c", model=ScriptedLM([arlm.AuthError("wrong key")])) as run:
        with pytest.raises(arlm.AuthError):
            async for _event in run:
                pass
        with pytest.raises(arlm.AuthError):
            _ = run.result


def test_run_sync_twice_in_a_row():
    for number in range(2):
        lm = ScriptedLM([final("context")])
        assert arlm.run_sync("q", context=f"c{number}", model=lm).answer == f"c{number}"


async def test_run_sync_inside_a_running_loop():
    assert arlm.run_sync("q", context="c", model=ScriptedLM([final("context")])).answer == "c"


async def test_an_rlm_is_a_language_model():
    rlm = arlm.RLM(model=ScriptedLM([final("context")]))
    assert isinstance(rlm, arlm.BaseLM)
    assert (await rlm.acompletion("the text")).text == "the text"


async def test_an_rlm_serves_runs_at_once_and_keeps_its_options():
    rlm = arlm.RLM(model=ScriptedLM([final("context")] * 5), max_iterations=3)
    results = await asyncio.gather(*(rlm.run("q", context=str(number)) for number in range(5)))
    assert sorted(result.answer for result in results) == list("01234")


async def test_on_event_may_be_async_and_its_errors_are_not_the_runs(caplog):
    seen: list[str] = []

    async def on_event(event: Any) -> None:
        await asyncio.sleep(0)
        seen.append(event.type)
        raise ValueError("mine")

    await arlm.run("q", context="c", model=ScriptedLM([final("'x'")]), on_event=on_event)
    assert seen[0] == "run_started"
    assert seen[-1] == "run_ended"
    assert "on_event failed" in caplog.text


# -- cancellation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
async def test_a_cancelled_run_ends_its_calls_and_its_worker(times):
    started = asyncio.Event()

    async def hang(_messages: list[arlm.Message]) -> str:
        started.set()
        await asyncio.sleep(60)
        return "never"

    lm = ScriptedLM([cell("llm_query('x')")], sub=hang)
    task = asyncio.ensure_future(arlm.run("q", context="c", model=lm))
    await started.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert lm.in_flight == 0


async def test_usage_to_dict_and_the_trajectory_are_plain_json():
    lm = ScriptedLM([cell("llm_query('x')"), final("'x'")], sub="hi")
    result = await arlm.run("q", context="c", model=lm)
    assert json.loads(json.dumps(result.usage.to_dict()))["total"]["calls"] == 3
    trajectory = json.loads(json.dumps(result.trajectory()))
    assert trajectory["turns"][0]["cells"][0]["code"] == "llm_query('x')"
    assert trajectory["stop_reason"] == "answered"
    assert result.cost_usd is None
