"""Cases about values: prompts, replies and contexts arrive unchanged to the last code point."""

# ruff: noqa: D103 - the name of a case is its claim

from __future__ import annotations

from typing import TYPE_CHECKING

from .case import Cases

if TYPE_CHECKING:
    from .bench import Bench

CASES = Cases()
case = CASES.case

# Quotes and escapes, NUL, both line ends, a Unicode line separator, an emoji, its two surrogate halves side by side (which must not become
# it), both halves alone and in the wrong order, the last code point, a byte order mark.
ODD = "'\"\\\0\a\r\n\r\t\u2028\u0085é\U0001f600\ud83d\ude00 \ud83d \ude00 \ude00\ud83d\U0010ffff\ufeff{}%s"


@case()
async def every_code_point_of_a_prompt_and_its_reply_arrives(bench: Bench) -> None:
    assert (
        await bench.out(f"odd = {ODD!a}\nllm_query(odd) == odd, llm_query_batched([odd, odd]) == [odd, odd], add(odd, odd) == odd + odd")
        == "(True, True, True)\n"
    )
    assert bench.script.prompts == [ODD] * 3


@case()
async def a_prompt_of_many_megabytes_arrives_whole(bench: Bench) -> None:
    code = f"big = ({ODD!a} + 'x' * 99) * 20_000\nlen(big), llm_query(big) == big, (await llm_query_async(big)) == big"
    size = (len(ODD) + 99) * 20_000
    assert await bench.out(code) == f"({size}, True, True)\n"
    assert bench.script.prompts[0] == (ODD + "x" * 99) * 20_000


@case()
async def a_split_surrogate_pair_survives_the_cut_between_fragments(bench: Bench) -> None:
    text = "\ud83d\ude00" * 600_001
    assert await bench.out("text = 'y' + '\\ud83d\\ude00' * 600_001\nllm_query(text) == text") == "True\n"
    assert bench.script.prompts == ["y" + text]


@case()
async def a_prompt_too_large_to_send_is_an_error_and_the_session_goes_on(bench: Bench) -> None:
    await bench.fails("llm_query('x' * 150_000_000)", "TooLarge")
    assert await bench.out("llm_query('goes on')") == "'goes on'\n"


@case()
async def large_numbers_and_floats_arrive(bench: Bench) -> None:
    assert (
        await bench.out("add(2**200, 1) == 2**200 + 1, add(1e308, 0), add(0.1, 0.2) == 0.1 + 0.2, add(float('inf'), 1)")
        == "(True, 1e+308, True, inf)\n"
    )


@case()
async def a_text_context_is_unchanged(bench: Bench) -> None:
    await bench.context(ODD * 3)
    assert await bench.out(f"context == {ODD!a} * 3, type(context).__name__, context is context_0") == "(True, 'str', True)\n"


@case()
async def a_bytes_context_is_unchanged(bench: Bench) -> None:
    await bench.context(bytes(range(256)) * 3)
    assert await bench.out("context == bytes(range(256)) * 3, type(context).__name__") == "(True, 'bytes')\n"


@case()
async def a_list_context_is_unchanged(bench: Bench) -> None:
    value = [ODD, 1, -2.5, True, None, [], {"k": [ODD]}, "", 2**70]
    await bench.context(value)
    assert await bench.out(f"context == {value!a}, type(context).__name__, type(context[3]).__name__") == "(True, 'list', 'bool')\n"


@case()
async def a_dict_context_is_unchanged_and_in_order(bench: Bench) -> None:
    value = {"z": 1, ODD: ODD, "": {}, "a": [None]}
    await bench.context(value)
    assert await bench.out(f"context == {value!a}, list(context) == {list(value)!a}") == "(True, True)\n"


@case()
async def a_number_and_a_bool_are_contexts(bench: Bench) -> None:
    for value in (5, 2.5, False):
        await bench.context(value)
        assert await bench.out("context") == f"{value!r}\n"


@case()
async def a_path_context_is_the_files_text(bench: Bench) -> None:
    text = "line\r\nnext\n\0\ufeffé\U0001f600\r"
    path = bench.scratch / "given.txt"
    path.write_bytes(text.encode())
    await bench.context(path)
    assert await bench.out(f"context == {text!a}") == "True\n"


@case()
async def several_paths_are_a_dict_of_path_to_text(bench: Bench) -> None:
    paths = [bench.scratch / "a.txt", bench.scratch / "b.txt"]
    for path in paths:
        path.write_bytes(f"text of {path.name}\r\n".encode())
    await bench.context(paths)
    expected = {str(path): f"text of {path.name}\r\n" for path in paths}
    assert await bench.out(f"context == {expected!r}") == "True\n"


@case()
async def contexts_are_numbered_and_the_newest_is_context(bench: Bench) -> None:
    await bench.context("first")
    await bench.context(["second"])
    assert await bench.out("context, context_0, context_1, context is context_1") == "(['second'], 'first', ['second'], True)\n"


@case()
async def a_context_of_many_megabytes_arrives_whole(bench: Bench) -> None:
    unit = "x" * 1_000 + "\U0001f600\ud83d\r\n"
    await bench.context(unit * 20_000)
    assert await bench.out(f"len(context), context == {unit!a} * 20_000") == f"({len(unit) * 20_000}, True)\n"


@case()
async def a_second_repl_reads_the_same_context(bench: Bench) -> None:
    await bench.context("shared")
    other = bench.another()
    try:
        for context in bench.contexts:
            await other.load(context)
        assert (await other.run_cell("context", 1)).output == "'shared'\n"
    finally:
        await other.close()


@case()
async def deeply_nested_values_arrive(bench: Bench) -> None:
    await bench.context([[[[["deep"]]]]])
    code = "value = 'deep'\nfor _ in range(200): value = [value]\nresult = add([value], [])\nresult == [value], context"
    assert await bench.out(code) == "(True, [[[[['deep']]]]])\n"


@case()
async def a_value_nested_too_deeply_is_an_error_and_the_session_goes_on(bench: Bench) -> None:
    await bench.fails("value = 'deep'\nfor _ in range(100_000): value = [value]\nadd(value, [])", "")
    assert await bench.out("llm_query('goes on')") == "'goes on'\n"
