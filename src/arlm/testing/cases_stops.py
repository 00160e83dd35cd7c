"""Cases about stopping a cell: interrupt, grace, kill, and what the clock counts."""

# ruff: noqa: D103 - the name of a case is its claim

from __future__ import annotations

from typing import TYPE_CHECKING

from .case import Cases

if TYPE_CHECKING:
    from .bench import Bench

CASES = Cases()
case = CASES.case

SHORT = 1.0  # seconds: what stops a cell here; far above what an honest cell takes, on a loaded machine too


async def _stopped_by_interrupt(bench: Bench, code: str) -> None:
    await bench.out("kept = 1")
    result = await bench.cell(code)
    assert result.stopped == "timeout", result
    assert result.lost is None, result.lost
    assert result.error is not None
    assert result.error.startswith(f"CellStopped: the cell was stopped: cell_timeout of {SHORT:g} s"), result.error
    assert "CellStopped" in result.output
    assert await bench.out("kept, llm_query('goes on')") == "(1, 'goes on')\n"


async def _killed(bench: Bench, code: str) -> None:
    await bench.context("the text")
    await bench.out("precious = 1")
    result = await bench.cell(code)
    assert result.stopped == "timeout", result
    assert result.lost is not None
    assert "precious" in result.lost
    assert result.error is not None
    assert "ended by force" in result.error
    assert await bench.out("'precious' in globals(), context, llm_query('goes on')") == "(False, 'the text', 'goes on')\n"


@case(cell_timeout=SHORT)
async def a_busy_loop_is_stopped(bench: Bench) -> None:
    await _stopped_by_interrupt(bench, "while True: pass")


@case(cell_timeout=SHORT)
async def a_busy_loop_after_an_await_is_stopped(bench: Bench) -> None:
    await _stopped_by_interrupt(bench, "import asyncio\nawait asyncio.sleep(0)\nwhile True: pass")
    assert await bench.out("await asyncio.sleep(0, 'the loop lives')") == "'the loop lives'\n"


@case(cell_timeout=SHORT)
async def a_busy_loop_in_a_task_is_stopped(bench: Bench) -> None:
    await _stopped_by_interrupt(
        bench,
        (
            "import asyncio\nasync def spin():\n    await asyncio.sleep(0)\n    while True: pass\n"
            "await asyncio.gather(spin(), asyncio.sleep(600))"
        ),
    )
    assert await bench.out("await asyncio.sleep(0, 'the loop lives')") == "'the loop lives'\n"


@case(cell_timeout=SHORT)
async def a_busy_loop_inside_asyncio_run_is_stopped(bench: Bench) -> None:
    await _stopped_by_interrupt(
        bench, "import asyncio\nasync def main():\n    await asyncio.sleep(0)\n    while True: pass\nasyncio.run(main())"
    )
    assert await bench.out("asyncio.run(asyncio.sleep(0, 'runs again'))") == "'runs again'\n"


@case(cell_timeout=SHORT)
async def an_await_without_end_is_stopped(bench: Bench) -> None:
    await _stopped_by_interrupt(bench, "import asyncio\nawait asyncio.sleep(600)")
    await _stopped_by_interrupt(bench, "asyncio.run(asyncio.sleep(600))")


@case(cell_timeout=SHORT)
async def a_sleep_is_stopped(bench: Bench) -> None:
    await _stopped_by_interrupt(bench, "import time\ntime.sleep(600)")


@case(cell_timeout=SHORT)
async def waiting_for_a_subprocess_is_stopped(bench: Bench) -> None:
    await _stopped_by_interrupt(bench, "import subprocess\nsubprocess.run(['sleep', '600'])")


@case(cell_timeout=SHORT)
async def waiting_for_a_lock_or_thread_is_stopped(bench: Bench) -> None:
    await _stopped_by_interrupt(bench, "import threading\nthreading.Event().wait()")


@case(cell_timeout=SHORT)
async def a_loop_that_catches_exceptions_is_stopped(bench: Bench) -> None:
    await _stopped_by_interrupt(bench, "import time\nwhile True:\n    try: time.sleep(600)\n    except Exception: pass")


@case(cell_timeout=SHORT)
async def a_stopped_cell_runs_its_finally_blocks(bench: Bench) -> None:
    await bench.cell("import time\ntry: time.sleep(600)\nfinally: closed = True")
    assert await bench.out("closed") == "True\n"


@case(cell_timeout=SHORT)
async def a_stopped_cell_is_not_interrupted_again_in_its_finally_blocks(bench: Bench) -> None:
    slow = "until = time.monotonic() + 0.3\n    while time.monotonic() < until: pass\n    closed = True"
    begun = "begun = True  # Python 3.11 does not find the handlers of a try that begins with the loop"
    await bench.cell(f"import time\ntry:\n    {begun}\n    while True: pass\nfinally:\n    {slow}")
    assert await bench.out("closed") == "True\n"


@case(cell_timeout=SHORT)
async def a_stopped_cell_keeps_what_it_printed_and_assigned(bench: Bench) -> None:
    result = await bench.cell("print('begun')\nmade = 5\nwhile True: pass")
    assert result.output.startswith("begun\n")
    assert "while True: pass" in result.output
    assert result.variables == {"made": "int"}


@case(cell_timeout=SHORT)
async def a_stopped_cell_gives_no_answer(bench: Bench) -> None:
    result = await bench.cell("answer.update(content='too early', ready=True)\nwhile True: pass")
    assert (result.stopped, result.answer_ready) == ("timeout", False)


@case(cell_timeout=SHORT)
async def an_endless_print_is_stopped(bench: Bench) -> None:
    result = await bench.cell("while True: print('x' * 1000)")
    assert result.stopped == "timeout"
    assert len(result.output) < 21_000
    assert result.output_chars > 20_000
    assert await bench.out("print('goes on')") == "goes on\n"


@case(cell_timeout=SHORT)
async def a_regular_expression_without_end_is_killed_or_stopped(bench: Bench) -> None:
    result = await bench.cell("import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')")
    assert result.stopped == "timeout"
    assert await bench.out("'goes on'") == "'goes on'\n"


@case(cell_timeout=SHORT)
async def a_loop_in_c_is_killed(bench: Bench) -> None:
    await _killed(bench, "import itertools\nsum(itertools.repeat(0))")


@case(cell_timeout=SHORT)
async def a_loop_that_swallows_everything_is_killed(bench: Bench) -> None:
    await _killed(bench, "import time\nwhile True:\n    try:\n        while True: time.sleep(0.001)\n    except BaseException: pass")


@case(cell_timeout=SHORT)
async def a_cell_that_blocks_the_signal_is_killed(bench: Bench) -> None:
    await _killed(bench, "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))\nwhile True: pass")


@case(cell_timeout=SHORT)
async def a_killed_cell_keeps_what_it_printed(bench: Bench) -> None:
    result = await bench.cell("import itertools\nprint('begun')\nsum(itertools.repeat(0))")
    assert result.stopped == "timeout"
    assert result.output.startswith("begun\n")


@case(cell_timeout=SHORT)
async def processes_of_a_killed_cell_are_dead(bench: Bench) -> None:
    code = (
        "import subprocess, itertools\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "print(child.pid, flush=True)\nsum(itertools.repeat(0))"
    )
    result = await bench.cell(code)
    assert result.stopped == "timeout"
    await bench.gone(int(result.output.split()[0]))


@case(cell_timeout=SHORT)
async def waiting_for_a_call_does_not_count(bench: Bench) -> None:
    import asyncio

    async with bench.running("llm_query('hold'), llm_query('another')") as cell:
        await bench.script.until(lambda: bench.script.in_flight == 1)
        await asyncio.sleep(2 * SHORT)
        bench.script.release.set()
    assert cell.result().output == "('hold', 'another')\n"
    assert cell.result().stopped is None


@case(cell_timeout=SHORT)
async def the_clock_runs_again_after_a_call(bench: Bench) -> None:
    result = await bench.cell("llm_query('x')\nwhile True: pass")
    assert result.stopped == "timeout"
    assert await bench.out("'goes on'") == "'goes on'\n"


@case(cell_timeout=SHORT, slow=True)
async def computing_beside_a_call_that_hangs_is_stopped_and_the_call_cancelled(bench: Bench) -> None:
    result = await bench.cell("import threading\nthreading.Thread(target=llm_query, args=['hang'], daemon=True).start()\nwhile True: pass")
    assert result.stopped == "timeout"
    await bench.script.until(lambda: bench.script.cancelled == ["hang"])
    assert "'goes on'\n" in await bench.out("llm_query('goes on')")  # the thread's error may stand before it, or after


@case()
async def a_limit_of_the_run_ends_the_cell(bench: Bench) -> None:
    async with bench.running("print('begun')\nllm_query('hold')\nwhile True: pass") as cell:
        await bench.script.until(lambda: bench.script.in_flight == 1)
        bench.repl.end_cell_soon()
        bench.script.release.set()
    assert cell.result().stopped == "limit"
    assert "a limit of the run" in (cell.result().error or "")
    assert await bench.out("llm_query('goes on')") == "'goes on'\n"


@case()
async def closing_the_repl_in_a_cell_cancels_its_calls(bench: Bench) -> None:
    async with bench.running("import asyncio\nawait asyncio.gather(llm_query_async('hang a'), llm_query_async('hang b'))") as cell:
        await bench.script.until(lambda: bench.script.in_flight == 2)
        await bench.repl.close()
    assert cell.result().stopped == "exited"
    assert sorted(bench.script.cancelled) == ["hang a", "hang b"]
