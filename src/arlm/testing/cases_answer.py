"""Cases about the answer protocol and the reserved names."""

# ruff: noqa: D103 - the name of a case is its claim

from __future__ import annotations

from typing import TYPE_CHECKING

from .case import Cases

if TYPE_CHECKING:
    from .bench import Bench

CASES = Cases()
case = CASES.case


@case()
async def setting_content_and_ready_gives_the_answer(bench: Bench) -> None:
    result = await bench.cell("answer['content'] = 'forty-two'\nanswer['ready'] = True")
    assert (result.answer_ready, result.answer) == (True, "forty-two")


@case()
async def an_answer_may_be_prepared_over_several_cells(bench: Bench) -> None:
    result = await bench.cell("answer['content'] = 'draft'")
    assert (result.answer_ready, result.answer) == (False, None)
    result = await bench.cell("answer['content'] += ' and more'")
    assert not result.answer_ready
    result = await bench.cell("answer['ready'] = True")
    assert (result.answer_ready, result.answer) == (True, "draft and more")


@case()
async def an_answer_may_be_set_by_update(bench: Bench) -> None:
    result = await bench.cell("answer.update({'content': 'by update', 'ready': True})")
    assert (result.answer_ready, result.answer) == (True, "by update")
    result = await bench.cell("answer.update(content='again', ready=True)")
    assert (result.answer_ready, result.answer) == (True, "again")


@case()
async def an_answer_may_be_set_by_a_new_dict(bench: Bench) -> None:
    result = await bench.cell("answer = {'content': 'rebound', 'ready': True}")
    assert (result.answer_ready, result.answer) == (True, "rebound")
    assert await bench.out("answer['content']") == "'rebound'\n"


@case()
async def an_answer_may_be_set_in_a_function_and_a_thread(bench: Bench) -> None:
    code = (
        "import threading\ndef finish(): answer.update(content='from a thread', ready=True)\n"
        "thread = threading.Thread(target=finish)\nthread.start(); thread.join()"
    )
    result = await bench.cell(code)
    assert (result.answer_ready, result.answer) == (True, "from a thread")


@case()
async def an_answer_may_be_set_after_await(bench: Bench) -> None:
    result = await bench.cell("answer['content'] = await llm_query_async('asked')\nanswer['ready'] = True")
    assert (result.answer_ready, result.answer) == (True, "asked")


@case()
async def an_answer_that_is_plain_data_keeps_its_type(bench: Bench) -> None:
    result = await bench.cell("answer.update(content={'rows': [1, 2.5, None, True, 'x']}, ready=True)")
    assert result.answer == {"rows": [1, 2.5, None, True, "x"]}


@case()
async def an_answer_that_json_cannot_carry_becomes_text(bench: Bench) -> None:
    for made, text in (("{1, }", "{1}"), ("{1: 2}", "{1: 2}"), ("range(3)", "range(0, 3)"), ("b'x'", "b'x'")):
        result = await bench.cell(f"answer.update(content={made}, ready=True)")
        assert (result.answer_ready, result.answer) == (True, text)
    result = await bench.cell("loop = []\nloop.append(loop)\nanswer.update(content=loop, ready=True)")
    assert result.answer_ready
    assert isinstance(result.answer, str)


@case()
async def every_code_point_of_an_answer_arrives(bench: Bench) -> None:
    text = "\0\r\n\t\"'\\é\u2028\ud83d\ude00\U0001f600\ude00\ud83d"
    result = await bench.cell(f"answer.update(content={text!a}, ready=True)")
    assert result.answer == text


@case()
async def replacing_answer_by_something_else_gives_a_note(bench: Bench) -> None:
    result = await bench.cell("answer = 'forty-two'")
    assert (result.answer_ready, result.error) == (False, None)
    assert "`answer` was replaced" in result.output
    result = await bench.cell("answer['content'] = 'set'; answer['ready'] = True")
    assert (result.answer_ready, result.answer) == (True, "set")


@case()
async def an_answer_is_not_taken_from_a_cell_that_raises(bench: Bench) -> None:
    result = await bench.fails("answer.update(content='too early', ready=True)\n1 / 0", "ZeroDivisionError")
    assert not result.answer_ready
    assert "the answer was not taken" in result.output
    result = await bench.cell("print(answer['content'])")
    assert (result.answer_ready, result.output) == (False, "too early\n")


@case()
async def an_answer_is_not_taken_from_a_rebound_dict_in_a_cell_that_raises(bench: Bench) -> None:
    result = await bench.fails("answer = {'content': 'too early', 'ready': True}\n1 / 0", "ZeroDivisionError")
    assert not result.answer_ready
    assert not (await bench.cell("'next'")).answer_ready


@case()
async def ready_is_taken_once(bench: Bench) -> None:
    assert (await bench.cell("answer.update(content='once', ready=True)")).answer_ready
    assert not (await bench.cell("'next'")).answer_ready


@case()
async def sys_exit_ends_the_cell_with_its_answer_and_not_the_session(bench: Bench) -> None:
    result = await bench.cell("import sys\nkept = 1\nsys.exit(4)\nkept = 2")
    assert result.error is None
    assert "sys.exit" in result.output
    assert await bench.out("kept") == "1\n"


@case()
async def sys_exit_inside_await_ends_the_cell_and_not_the_session(bench: Bench) -> None:
    result = await bench.cell("import asyncio, sys\nasync def leave(): sys.exit('bye')\nkept = 1\nawait leave()")
    assert result.stopped is None
    assert "bye" in result.output
    assert await bench.out("await asyncio.sleep(0, kept)") == "1\n"


@case()
async def reserved_names_are_restored_after_overwriting(bench: Bench) -> None:
    await bench.context("the text")
    await bench.out("llm_query = answer = context = context_0 = SHOW_VARS = add = None")
    assert (
        await bench.out("context, context_0, llm_query('x'), type(answer).__name__, add(1, 2)")
        == "('the text', 'the text', 'x', 'dict', 3)\n"
    )


@case()
async def reserved_names_are_restored_after_del(bench: Bench) -> None:
    await bench.context("the text")
    await bench.out("del llm_query, answer, context, context_0, SHOW_VARS, history")
    assert (
        await bench.out("context, context_0, llm_query('x'), type(answer).__name__, history")
        == "('the text', 'the text', 'x', 'dict', [])\n"
    )


@case()
async def reserved_names_are_restored_after_an_error(bench: Bench) -> None:
    await bench.fails("llm_query = 5\n1 / 0", "ZeroDivisionError")
    await bench.cell("import sys\nllm_query = 5\nsys.exit()")
    assert await bench.out("llm_query('x')") == "'x'\n"


@case()
async def clearing_the_namespace_is_survived(bench: Bench) -> None:
    await bench.context("the text")
    await bench.cell("x = 1\nglobals().clear()")
    assert await bench.out("print(context, llm_query('y'), 'x' in globals())") == "the text y False\n"


@case()
async def show_vars_names_variables_types_and_sizes(bench: Bench) -> None:
    assert await bench.out("print(SHOW_VARS())") == "no variables yet\n"
    await bench.out("rows = [1, 2, 3]\ntext = 'x' * 1234\nnumber = 5")
    output = await bench.out("print(SHOW_VARS())")
    assert output.splitlines() == ["rows: list, 3 long", "text: str, 1,234 long", "number: int"]


@case()
async def functions_show_their_signature_and_doc(bench: Bench) -> None:
    assert await bench.out(
        "import inspect\nstr(inspect.signature(llm_query)), llm_query.__name__, inspect.iscoroutinefunction(llm_query_async)"
    ) == ("('(prompt, model=None)', 'llm_query', True)\n")
    assert "llm_query, as the conformance script answers it." in await bench.out("help(llm_query)")
