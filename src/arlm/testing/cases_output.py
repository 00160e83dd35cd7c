"""Cases about what a cell prints: order, lateness, size, streams that a cell breaks."""

# ruff: noqa: D103 - the name of a case is its claim

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING

from .case import Cases

if TYPE_CHECKING:
    from .bench import Bench

CASES = Cases()
case = CASES.case

CUT = 20_000  # characters of a cell's output that are kept


@case()
async def python_and_descriptor_output_stand_in_order(bench: Bench) -> None:
    code = "import os, sys\nprint('a')\nos.write(1, b'b\\n')\nprint('c', file=sys.stderr)\nos.write(2, b'd\\n')\nprint('e')"
    assert await bench.out(code) == "a\nb\nc\nd\ne\n"


@case()
async def output_of_subprocesses_stands_in_order(bench: Bench) -> None:
    code = (
        "import os, subprocess\nprint('a')\nos.system('echo b; echo c >&2')\nprint('d')\nsubprocess.run(['sh', '-c', 'echo e'])\nprint('f')"
    )
    assert await bench.out(code) == "a\nb\nc\nd\ne\nf\n"


@case()
async def output_without_a_newline_is_not_held_back(bench: Bench) -> None:
    assert await bench.out("print('no newline', end='')") == "no newline"
    assert await bench.out("import sys\nsys.stdout.write('x'); sys.stderr.write('y')\nNone") in ("xy", "yx")


@case()
async def output_after_the_cells_end_shows_in_the_next(bench: Bench) -> None:
    await bench.out(
        "import threading\ngo, done = threading.Event(), threading.Event()\n"
        "def late():\n    go.wait()\n    print('late')\n    done.set()\nthreading.Thread(target=late, daemon=True).start()"
    )
    assert await bench.out("go.set(); done.wait()\nprint('now')") == "late\nnow\n"


@case()
async def output_of_a_process_left_running_shows_in_the_next(bench: Bench) -> None:
    assert await bench.out("import subprocess\nleft = subprocess.Popen(['sh', '-c', 'read line; echo late'], stdin=subprocess.PIPE)") == ""
    assert await bench.out("_ = left.communicate(b'go\\n')\nprint('now')") == "late\nnow\n"


@case()
async def large_output_is_cut_with_its_true_length(bench: Bench) -> None:
    result = await bench.cell("for n in range(100_000): print(f'{n:09}')")
    assert result.output_chars == 1_000_000
    assert result.output.startswith("000000000\n000000001\n")
    assert result.output.endswith("000099999\n")
    assert f"of {1_000_000:,} characters" in result.output
    assert CUT <= len(result.output) <= CUT + 200


@case()
async def output_just_below_the_cut_is_whole(bench: Bench) -> None:
    result = await bench.cell(f"print('x' * {CUT - 1})")
    assert result.output == "x" * (CUT - 1) + "\n"
    assert result.output_chars == CUT
    result = await bench.cell(f"print('x' * {CUT})")
    assert result.output_chars == CUT + 1
    assert "characters" in result.output


@case()
async def a_traceback_after_large_output_is_seen(bench: Bench) -> None:
    result = await bench.fails("print('x' * 1_000_000)\n1 / 0", "ZeroDivisionError")
    assert result.output.rstrip().endswith("ZeroDivisionError: division by zero")


@case()
async def characters_are_counted_not_bytes(bench: Bench) -> None:
    result = await bench.cell("print('\U0001f600é' * 5)")
    assert (result.output, result.output_chars) == ("\U0001f600é" * 5 + "\n", 11)


@case()
async def bytes_that_are_no_text_do_no_harm(bench: Bench) -> None:
    output = await bench.out("import os\n_ = os.write(1, b'a\\xff\\xfe\\0b\\r\\n')\nprint('\\ud800')")
    assert output.startswith("a")
    assert "\0b\r\n" in output
    assert await bench.out("print('goes on')") == "goes on\n"


@case(slow=True)
async def two_hundred_megabytes_of_output_do_not_grow_the_host(bench: Bench) -> None:
    before = _peak_bytes()
    result = await bench.cell("line = 'x' * 9_999\nfor _ in range(20_000): print(line)")
    assert result.output_chars == 200_000_000
    assert len(result.output) <= CUT + 200
    assert _peak_bytes() - before < 50_000_000


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@case()
async def output_arrives_while_the_cell_runs(bench: Bench) -> None:
    async with bench.running("print('early')\nllm_query('hold')\nprint('late')") as cell:
        await bench.until_streamed("early\n")
        assert not cell.done()
        bench.script.release.set()
    assert cell.result().output == "early\nlate\n"


@case()
async def a_stream_that_the_cell_replaced_is_restored(bench: Bench) -> None:
    assert (
        await bench.out(
            "import io, sys\nsys.stdout = io.StringIO()\nsys.stderr = io.StringIO()\nsys.stdin = None\nprint('into the buffer')"
        )
        == ""
    )
    assert await bench.out("print('seen'); print('this too', file=sys.stderr); sys.stdin.read()") == "seen\nthis too\n''\n"


@case()
async def a_stream_that_the_cell_closed_is_restored(bench: Bench) -> None:
    await bench.out("import sys\nprint('before')\nsys.stdout.close()\nsys.stderr.close()\nsys.stdin.close()")
    assert await bench.out("print('seen'); print('this too', file=sys.stderr)") == "seen\nthis too\n"


@case()
async def descriptors_that_the_cell_closed_are_restored(bench: Bench) -> None:
    await bench.cell("import os\nos.close(0); os.close(1); os.close(2)")
    assert await bench.out("print('seen'); os.system('echo this too')\nNone") == "seen\nthis too\n"


@case()
async def descriptors_that_the_cell_redirected_are_restored(bench: Bench) -> None:
    await bench.out(
        "import os\nnull = os.open(os.devnull, os.O_WRONLY)\nos.dup2(null, 1); os.dup2(null, 2)\nos.system('echo unseen')\nNone"
    )
    assert await bench.out("print('seen'); os.system('echo this too')\nNone") == "seen\nthis too\n"


@case()
async def an_error_is_reported_though_the_streams_are_gone(bench: Bench) -> None:
    for breaking in ("sys.stdout = sys.stderr = None", "sys.stdout.close(); sys.stderr.close()", "sys.stderr = object()"):
        result = await bench.fails(f"import sys\nkept = 1\n{breaking}\n1 / 0", "ZeroDivisionError")
        assert "1 / 0" in result.output, breaking
        assert result.variables == {"kept": "int", "sys": "module"}, breaking


@case()
async def a_stream_that_raises_does_not_end_the_session(bench: Bench) -> None:
    code = (
        "import sys\nclass Bad:\n    closed = False\n"
        "    def write(self, text): raise LookupError('no')\n"
        "    def flush(self): raise LookupError('no')\nsys.stdout = Bad()"
    )
    await bench.cell(code)
    assert await bench.out("print('seen')") == "seen\n"


@case()
async def redirect_stdout_catches_what_is_printed_in_it(bench: Bench) -> None:
    code = (
        "import contextlib, io\nbuffer = io.StringIO()\n"
        "with contextlib.redirect_stdout(buffer): print('caught')\nprint(buffer.getvalue().upper())"
    )
    assert await bench.out(code) == "CAUGHT\n\n"


@case()
async def input_raises_eof(bench: Bench) -> None:
    await bench.fails("input('name? ')", "EOFError")
    assert await bench.out("import sys\nsys.stdin.read()") == "''\n"
