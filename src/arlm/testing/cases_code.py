"""Cases about Python code in cells: state, expressions, await, imports, errors."""

# ruff: noqa: D103 - the name of a case is its claim

from __future__ import annotations

from typing import TYPE_CHECKING

from .case import Cases

if TYPE_CHECKING:
    from .bench import Bench

CASES = Cases()
case = CASES.case


@case()
async def state_lives_from_cell_to_cell(bench: Bench) -> None:
    assert await bench.out("x = [1]\ndef double(n): return n * 2") == ""
    assert await bench.out("x.append(double(x[0]))") == ""
    assert await bench.out("print(x)") == "[1, 2]\n"


@case()
async def a_cell_that_raises_keeps_what_it_had_assigned(bench: Bench) -> None:
    await bench.fails("kept = 7\n1 / 0\nnever = 8", "ZeroDivisionError: division by zero")
    assert await bench.out("kept, 'never' in globals()") == "(7, False)\n"


@case()
async def the_last_expression_is_echoed(bench: Bench) -> None:
    assert await bench.out("'text'") == "'text'\n"
    assert await bench.out("a = 2\na + 1") == "3\n"
    assert await bench.out("1; 2") == "2\n"
    assert await bench.out("a = 3") == ""
    assert await bench.out("for i in range(3): i") == ""


@case()
async def none_is_not_echoed(bench: Bench) -> None:
    assert await bench.out("None") == ""
    assert await bench.out("print('once')") == "once\n"


@case()
async def an_await_cell_echoes_too(bench: Bench) -> None:
    assert await bench.out("import asyncio\nawait asyncio.sleep(0, 'value')") == "'value'\n"
    assert await bench.out("await asyncio.sleep(0)") == ""
    assert await bench.out("x = await asyncio.sleep(0, 5)\nx * 2") == "10\n"


@case()
async def a_long_string_is_echoed_in_part_with_its_length(bench: Bench) -> None:
    output = await bench.out("'x' * 1_000_000")
    assert "str of 1,000,000" in output
    assert len(output) < 30_000


@case()
async def an_echo_whose_repr_raises_is_an_error_of_the_cell(bench: Bench) -> None:
    await bench.fails("class Bad:\n    def __repr__(self): raise ValueError('no repr')\nBad()", "ValueError: no repr")
    assert await bench.out("'goes on'") == "'goes on'\n"


@case()
async def an_empty_cell_does_nothing(bench: Bench) -> None:
    assert await bench.out("") == ""
    assert await bench.out("# only a comment\n") == ""


@case()
async def await_works_at_the_top_level(bench: Bench) -> None:
    code = (
        "import asyncio\nparts = await asyncio.gather(*[asyncio.sleep(0, n) for n in range(3)])\n"
        "async with asyncio.Lock(): pass\nprint(parts)"
    )
    assert await bench.out(code) == "[0, 1, 2]\n"


@case()
async def await_cells_share_one_loop(bench: Bench) -> None:
    await bench.out(
        "import asyncio\nloop = asyncio.get_running_loop()\nqueue = asyncio.Queue()\n"
        "task = asyncio.create_task(queue.get())\nawait asyncio.sleep(0)"
    )
    assert await bench.out("queue.put_nowait('later')\nprint(await task, asyncio.get_running_loop() is loop)") == "later True\n"


@case()
async def the_loop_survives_an_await_cell_that_raises(bench: Bench) -> None:
    await bench.out("import asyncio\nloop = asyncio.get_running_loop()\nawait asyncio.sleep(0)")
    await bench.fails("await asyncio.sleep(0)\nraise KeyError('gone')", "KeyError: 'gone'")
    assert await bench.out("await asyncio.sleep(0)\nloop is asyncio.get_running_loop()") == "True\n"


@case()
async def asyncio_run_works_inside_a_cell(bench: Bench) -> None:
    code = "import asyncio\nasync def main():\n    await asyncio.sleep(0)\n    return 'ran'\nasyncio.run(main())"
    assert await bench.out(code) == "'ran'\n"
    assert await bench.out(code) == "'ran'\n"


@case()
async def asyncio_run_works_after_an_await_cell(bench: Bench) -> None:
    await bench.out("import asyncio\nawait asyncio.sleep(0)")
    assert await bench.out("asyncio.run(asyncio.sleep(0, 'ran'))") == "'ran'\n"
    assert await bench.out("await asyncio.sleep(0, 'awaited')") == "'awaited'\n"


@case()
async def a_cell_without_await_has_no_running_loop(bench: Bench) -> None:
    await bench.out("import asyncio\nawait asyncio.sleep(0)")
    await bench.fails("asyncio.get_running_loop()", "RuntimeError: no running event loop")


@case()
async def a_traceback_shows_the_source_lines_and_only_them(bench: Bench) -> None:
    await bench.out("def inner(n):\n    return 10 // n\n\ndef outer(n):\n    return inner(n)")
    result = await bench.fails("value = 0\nouter(value)", "ZeroDivisionError")
    assert result.output.startswith("Traceback (most recent call last):\n")
    for line in ("outer(value)", "return inner(n)", "return 10 // n", "in inner", "in outer", "line 2"):
        assert line in result.output, line
    assert result.output.count('  File "') == 3
    assert result.output.rstrip().endswith("ZeroDivisionError: integer division or modulo by zero")


@case()
async def a_traceback_of_an_await_cell_has_no_frames_of_ours(bench: Bench) -> None:
    result = await bench.fails(
        "import asyncio\nasync def broken():\n    raise ValueError('in here')\nawait broken()", "ValueError: in here"
    )
    assert "await broken()" in result.output
    assert result.output.count('  File "<cell 1>"') == result.output.count('  File "') == 2


@case()
async def a_traceback_shows_causes_and_groups(bench: Bench) -> None:
    result = await bench.fails(
        "try:\n    {}['key']\nexcept KeyError as error:\n    raise ValueError('outside') from error", "ValueError: outside"
    )
    assert result.output.index("KeyError: 'key'") < result.output.index("direct cause") < result.output.index("ValueError: outside")
    assert result.output.count('  File "') == 2


@case()
async def the_traceback_stands_after_what_was_printed(bench: Bench) -> None:
    result = await bench.fails("print('first', end='')\n1 / 0", "ZeroDivisionError")
    assert result.output.startswith("first")
    assert result.output.index("first") < result.output.index("Traceback")


@case()
async def a_syntax_error_names_its_line(bench: Bench) -> None:
    result = await bench.fails("x = 1\ndef f(:\n    pass", "SyntaxError")
    assert "line 2" in result.output
    assert "def f(:" in result.output
    assert await bench.out("'x' in globals()") == "False\n"


@case()
async def source_that_cannot_be_compiled_is_an_error_of_the_cell(bench: Bench) -> None:
    for code in ("'\ud800'", "x = '\0'", "(" * 5000, "if True:\n\tx = 1\n        y = 2", "return 5", "x = 1 +"):
        result = await bench.cell(code)
        assert result.error is not None, code
        assert result.stopped is None, code
    assert await bench.out("'goes on'") == "'goes on'\n"


@case()
async def an_exception_that_cannot_be_printed_does_not_end_the_session(bench: Bench) -> None:
    code = "class Bad(Exception):\n    def __str__(self): raise RuntimeError('no text')\nkept = 1\nraise Bad()"
    result = await bench.cell(code)
    assert result.error is not None
    assert "Bad" in result.error
    assert await bench.out("kept") == "1\n"


@case()
async def recursion_without_end_is_an_error_of_the_cell(bench: Bench) -> None:
    await bench.fails("def f(): return f()\nf()", "RecursionError")
    assert await bench.out("'goes on'") == "'goes on'\n"


@case()
async def keyboard_interrupt_and_generator_exit_are_errors_of_the_cell(bench: Bench) -> None:
    await bench.fails("raise KeyboardInterrupt", "KeyboardInterrupt")
    await bench.fails("raise GeneratorExit", "GeneratorExit")
    await bench.fails("import asyncio\nawait asyncio.sleep(0)\nraise asyncio.CancelledError", "asyncio.exceptions.CancelledError")
    assert await bench.out("await asyncio.sleep(0, 'goes on')") == "'goes on'\n"


@case()
async def classes_dataclasses_and_pickle_work_in_main(bench: Bench) -> None:
    await bench.out(
        "import dataclasses, pickle\n@dataclasses.dataclass\nclass Point:\n    x: int\n"
        "    y: 'int' = 2\nclass Child(Point):\n    def size(self): return super().__repr__()"
    )
    assert await bench.out("pickle.loads(pickle.dumps(Point(1)))") == "Point(x=1, y=2)\n"
    assert await bench.out("print(Child(3).size(), Point.__module__, __name__)") == "Child(x=3, y=2) __main__ __main__\n"
    assert await bench.out("import typing\ntyping.get_type_hints(Point)['y'] is int") == "True\n"


@case()
async def comprehensions_closures_and_generators_see_the_namespace(bench: Bench) -> None:
    assert await bench.out("k = 3\n[k * n for n in range(2)], sum(k for _ in range(2)), (lambda: k)()") == "([0, 3], 6, 3)\n"


@case()
async def every_builtin_and_import_works(bench: Bench) -> None:
    code = (
        "import re, json, math, collections, urllib.parse, sqlite3\n"
        "eval('1 + 1'), exec('y = 5'), y, open.__name__, __import__('os').sep, callable(compile)"
    )
    assert await bench.out(code) == "(2, None, 5, 'open', '/', True)\n"


@case()
async def a_module_written_into_the_working_directory_can_be_imported(bench: Bench) -> None:
    await bench.out("with open('my_module.py', 'w') as file: file.write('def f(): return \"from a file\"')")
    assert await bench.out("import my_module\nmy_module.f()") == "'from a file'\n"


@case()
async def the_underscore_future_and_decorators_are_left_to_the_code(bench: Bench) -> None:
    assert (
        await bench.out("from __future__ import annotations\nimport functools\n@functools.lru_cache\ndef f(n: Missing): return n\nf(4)")
        == "4\n"
    )


@case()
async def the_report_lists_the_variables_and_their_types(bench: Bench) -> None:
    result = await bench.cell("rows = [1]\nname = 'n'\n_private = 1\nimport re\ndef f(): pass")
    assert result.variables == {"rows": "list", "name": "str", "re": "module", "f": "function"}
    result = await bench.cell("del rows\nname = 5")
    assert result.variables == {"name": "int", "re": "module", "f": "function"}


@case()
async def the_variables_are_listed_after_an_error_too(bench: Bench) -> None:
    result = await bench.fails("made = ()\n1 / 0", "ZeroDivisionError")
    assert result.variables == {"made": "tuple"}


@case()
async def a_namespace_of_many_names_is_reported_in_part(bench: Bench) -> None:
    result = await bench.cell("globals().update({f'v{n}': n for n in range(5000)}); globals()[5] = 'a key that is no name'")
    assert result.error is None
    assert 100 <= len(result.variables) <= 1000
