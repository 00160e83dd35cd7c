"""Tools: the user's own functions and values in the REPL."""

import asyncio
import threading
from typing import Any

import pytest

import arlm
from arlm.testing.scripted import ScriptedLM


def final(expression: str) -> str:
    return f"```repl\nanswer['content'] = {expression}\nanswer['ready'] = True\n```"


async def result_of(code: str, **options: Any) -> Any:
    """What an expression gives in a cell."""
    return (await arlm.run("q", context="c", model=ScriptedLM([final(code)]), output_type=Any, **options)).answer


def add(a: int, b: int = 1) -> int:
    """Adds two numbers."""
    return a + b


async def test_a_sync_tool_takes_positional_and_keyword_arguments():
    assert await result_of("[add(1), add(1, 2), add(a=3, b=4)]", tools={"add": add}) == [2, 3, 7]


async def test_an_async_tool_is_a_plain_function_in_the_cell():
    async def fetch(name: str) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"name": name, "found": True, "odd": "\ud83d\ude00"}

    assert await result_of("fetch('x')", tools=[fetch]) == {"name": "x", "found": True, "odd": "\ud83d\ude00"}


async def test_the_prompt_shows_signature_and_docstring_and_a_description_goes_over_it():
    lm = ScriptedLM([final("1")])
    tools = {"add": add, "other": {"tool": add, "description": "Something else."}, "table": [1, 2]}
    await arlm.run("q", context="c", model=lm, tools=tools)
    system = lm.calls[0].messages[0]["content"]
    assert "`add(a: int, b: int = 1) -> int`: Adds two numbers." in system
    assert "`other(a: int, b: int = 1) -> int`: Something else." in system
    assert "`table`: a list of 2 items (int)" in system


async def test_the_docstring_can_be_read_in_the_cell():
    assert "Adds two numbers." in await result_of("add.__doc__", tools=[add])


async def test_values_arrive_unchanged_and_are_put_back_after_each_cell():
    big = {"text": "ü\r\n\0" * 100_000, "list": [1, None, 2.5, {"a": []}], "empty": []}
    lm = ScriptedLM(["```repl\ndata_before = data\ndata = None\n```", final("data == data_before and data")])
    result = await arlm.run("q", context="c", model=lm, tools={"data": big, "raw": b"\x00\xff", "none": []}, output_type=dict)
    assert result.answer == big
    assert await result_of("[raw == b'\\x00\\xff', none]", tools={"raw": b"\x00\xff", "none": []}) == [True, []]


async def test_a_tools_exception_raises_in_the_cell_under_its_own_name():
    class NoSuchCustomer(Exception):
        pass

    def look_up(name: str) -> str:
        raise NoSuchCustomer(f"{name} is unknown") if name == "x" else KeyError(name)

    code = (
        "seen = []\n"
        "for name in ('x', 'y'):\n"
        "    try:\n        look_up(name)\n"
        "    except Exception as error:\n        seen.append([type(error).__name__, str(error), isinstance(error, KeyError)])\n"
    )
    lm = ScriptedLM([f"```repl\n{code}\n```", final("seen")])
    answer = (await arlm.run("q", context="c", model=lm, tools=[look_up], output_type=list)).answer
    assert answer[0] == ["NoSuchCustomer", "x is unknown", False]
    assert answer[1][0] == "KeyError"
    assert answer[1][2] is True


@pytest.mark.parametrize("call", ["add()", "add(1, 2, 3)", "add(1, c=2)", "add({1, 2})", "add({1: 2})"])
async def test_wrong_arguments_are_a_type_error_in_the_cell(call):
    lm = ScriptedLM([f"```repl\n{call}\n```", final("'x'")])
    await arlm.run("q", context="c", model=lm, tools=[add])
    assert "TypeError: " in lm.calls[1].messages[3]["content"]


async def test_a_result_that_is_not_json_is_a_clear_error():
    lm = ScriptedLM(["```repl\nbroken()\n```", final("'x'")])
    await arlm.run("q", context="c", model=lm, tools={"broken": lambda: {1, 2}})
    assert "the result of broken() is a set" in lm.calls[1].messages[3]["content"]


async def test_calls_from_threads_run_side_by_side():
    inside = threading.Barrier(3, timeout=20)

    def meet(number: int) -> int:
        inside.wait()
        return number

    code = "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(3) as pool: r = list(pool.map(meet, range(3)))"
    lm = ScriptedLM([f"```repl\n{code}\n```", final("r")])
    assert (await arlm.run("q", context="c", model=lm, tools=[meet], output_type=list)).answer == [0, 1, 2]


async def test_a_tool_past_its_timeout_is_a_timeout_error_in_the_cell():
    async def slow() -> None:
        await asyncio.sleep(60)

    lm = ScriptedLM(["```repl\nslow()\n```", final("'x'")])
    await arlm.run("q", context="c", model=lm, tools={"slow": arlm.Tool(tool=slow, timeout=0.05)})
    assert "TimeoutError: slow() gave no result within 0.05 s" in lm.calls[1].messages[3]["content"]


async def test_cancelling_the_run_cancels_an_async_tool():
    state = {"began": asyncio.Event(), "cancelled": False}

    async def hang() -> None:
        state["began"].set()
        try:
            await asyncio.sleep(60)
        finally:
            state["cancelled"] = True

    task = asyncio.ensure_future(arlm.run("q", context="c", model=ScriptedLM(["```repl\nhang()\n```"]), tools=[hang]))
    await state["began"].wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert state["cancelled"] is True


async def test_a_tool_that_calls_sys_exit_does_not_end_the_host():
    def leave() -> None:
        raise SystemExit(3)

    lm = ScriptedLM(["```repl\nleave()\n```", final("'still here'")])
    assert (await arlm.run("q", context="c", model=lm, tools=[leave])).answer == "still here"


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ({"context": 1}, "'context' is a name of the REPL itself"),
        ({"llm_query": add}, "'llm_query' is a name of the REPL itself"),
        ({"not a name": 1}, "cannot be a name"),
        ({"class": 1}, "cannot be a name"),
        ({"x": {1, 2}}, r"tools\['x'\] is a set"),
        ([3], "has no name"),
        ([add, add], "two functions are called 'add'"),
        ({"x": arlm.Tool(tool=add, timeout=0)}, "timeout of 'x'"),
    ],
)
async def test_what_cannot_be_a_tool_is_refused_before_anything_starts(tools, message):
    lm = ScriptedLM([])
    with pytest.raises(arlm.ConfigError, match=message):
        await arlm.run("q", context="c", model=lm, tools=tools)
    assert lm.calls == []


async def test_tool_calls_are_events_and_cost_no_lm_call():
    events: list[Any] = []
    lm = ScriptedLM([final("add(1)")])
    result = await arlm.run("q", context="c", model=lm, tools=[add], on_event=events.append)
    (called,) = [event for event in events if event.type == "tool_called"]
    assert (called.name, called.arguments, called.error) == ("add", '{"args":[1],"kwargs":{}}', None)
    assert result.usage.total.calls == 1
