"""Cases about a worker that ends in a cell: what is kept, what is said to be lost, how the session goes on."""

# ruff: noqa: D103 - the name of a case is its claim

from __future__ import annotations

from typing import TYPE_CHECKING

from .case import Cases

if TYPE_CHECKING:
    from .bench import Bench

CASES = Cases()
case = CASES.case


async def _ends(bench: Bench, code: str, *why: str) -> None:
    """The cell must end its worker; afterwards the session has a fresh one, with its contexts."""
    await bench.context("the text")
    await bench.out("precious, other = 1, 2")
    result = await bench.cell(code)
    assert result.stopped == "exited", result
    assert result.error is not None
    assert "the REPL ended in this cell" in result.error
    for word in why:
        assert word in result.error, result.error
    assert result.lost is not None
    assert {"precious", "other"} <= set(result.lost)
    assert await bench.out("'precious' in globals(), context, context_0, llm_query('goes on'), answer['ready']") == (
        "(False, 'the text', 'the text', 'goes on', False)\n"
    )


@case()
async def os_exit_names_the_status_and_what_was_lost(bench: Bench) -> None:
    await _ends(bench, "import os\nos._exit(3)", "exited with status 3")


@case()
async def output_before_os_exit_is_kept(bench: Bench) -> None:
    result = await bench.cell("import os\nos.write(2, b'before ')\nprint('the end', end='')\nos._exit(0)")
    assert result.stopped == "exited"
    assert result.output == "before the end"


@case()
async def os_exit_in_a_thread_and_from_an_import_ends_the_worker(bench: Bench) -> None:
    result = await bench.cell(
        "import threading\nfrom os import _exit\nprint('before')\nthreading.Thread(target=_exit, args=[5]).start()\nwhile True: pass"
    )
    assert (result.stopped, result.output) == ("exited", "before\n")
    assert "status 5" in (result.error or "")
    assert await bench.out("'goes on'") == "'goes on'\n"


@case()
async def a_segmentation_fault_ends_only_the_worker(bench: Bench) -> None:
    await _ends(bench, "import ctypes\nctypes.string_at(0)", "signal 11")


@case()
async def output_before_a_segmentation_fault_is_kept(bench: Bench) -> None:
    for pause in (0, 0.001, 0.01, 0.03, 0.07):
        result = await bench.cell(
            f"import ctypes, time\nprint('first')\ntime.sleep({pause})\nprint('second')\ntime.sleep({pause})\nctypes.string_at(0)"
        )
        assert result.stopped == "exited"
        assert result.output == "first\nsecond\n", (pause, result.output)


@case()
async def a_worker_that_kills_itself_is_replaced(bench: Bench) -> None:
    await _ends(bench, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "signal 9")
    await _ends(bench, "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)", "signal 15")
    await _ends(bench, "import os\nos.abort()", "signal 6")


@case()
async def a_worker_that_closes_every_descriptor_is_replaced(bench: Bench) -> None:
    await _ends(bench, "import os\nos.closerange(0, 256)")


@case()
async def a_worker_that_breaks_the_wire_is_replaced(bench: Bench) -> None:
    code = """
import os, socket, stat
for number in range(3, 64):
    try:
        if stat.S_ISSOCK(os.fstat(number).st_mode): os.write(number, b'\\xff' * 64)
    except OSError: pass
while True: pass
"""
    await _ends(bench, code, "longer than")


@case()
async def a_worker_that_dies_between_cells_is_replaced(bench: Bench) -> None:
    await bench.context("the text")
    end = "def end():\n    llm_query('hold')\n    os._exit(0)"
    await bench.out(f"import os, threading\n{end}\nthreading.Thread(target=end, daemon=True).start()")
    bench.script.release.set()
    for _ in range(100):
        result = await bench.cell("import time\ntime.sleep(0.02)\ncontext")
        if result.stopped is None and "threading" not in result.variables:
            break
    assert result.output == "'the text'\n"


@case()
async def a_session_goes_on_after_many_deaths(bench: Bench) -> None:
    await bench.context("the text")
    for _ in range(5):
        assert (await bench.cell("import os\nos._exit(1)")).stopped == "exited"
    assert await bench.out("context") == "'the text'\n"


@case()
async def a_death_cancels_the_calls_of_the_worker(bench: Bench) -> None:
    code = "import os, threading\nthreading.Thread(target=llm_query, args=['hang'], daemon=True).start()\nllm_query('hold')\nos._exit(0)"
    async with bench.running(code) as cell:
        await bench.script.until(lambda: bench.script.in_flight == 2)
        bench.script.release.set()
    assert cell.result().stopped == "exited"
    await bench.script.until(lambda: bench.script.cancelled == ["hang"])


@case()
async def a_death_leaves_other_repls_of_the_place_alone(bench: Bench) -> None:
    other = bench.another()
    try:
        await other.run_cell("mine = 1", 1)
        assert (await bench.cell("import os\nos._exit(1)")).stopped == "exited"
        assert (await other.run_cell("mine, llm_query('x')", 2)).output == "(1, 'x')\n"
    finally:
        await other.close()


@case()
async def the_answer_of_a_dead_worker_is_gone_and_can_be_set_again(bench: Bench) -> None:
    await bench.cell("answer['content'] = 'draft'\nimport os\nos._exit(0)")
    assert await bench.out("answer") == "{'content': '', 'ready': False}\n"
    assert (await bench.cell("answer.update(content='x', ready=True)")).answer == "x"
