"""Cases about calling models from cells: one, many, from threads and loops, failures, cancellation."""

# ruff: noqa: D103 - the name of a case is its claim

from __future__ import annotations

from typing import TYPE_CHECKING

from .case import Cases

if TYPE_CHECKING:
    from .bench import Bench

CASES = Cases()
case = CASES.case


@case()
async def a_call_returns_a_str(bench: Bench) -> None:
    assert (
        await bench.out("reply = llm_query('hello')\nreply, isinstance(reply, str), reply.failed, reply + '!'")
        == "('hello', True, False, 'hello!')\n"
    )
    assert await bench.out("rlm_query('deep')") == "'deep'\n"


@case()
async def a_reply_may_be_awaited(bench: Bench) -> None:
    assert await bench.out("await llm_query('hello')") == "'hello'\n"
    assert await bench.out("await llm_query_batched(['a', 'b'])") == "['a', 'b']\n"
    assert await bench.out("import asyncio\nasync def main(): return await rlm_query('inside')\nasyncio.run(main())") == "'inside'\n"


@case()
async def arguments_bind_as_in_python(bench: Bench) -> None:
    assert await bench.out("llm_query('x', 'big'), llm_query(model='big', prompt='y')") == "('big: x', 'big: y')\n"
    await bench.fails("llm_query()", "TypeError: llm_query()")
    await bench.fails("llm_query('x', temperature=1)", "TypeError: llm_query()")
    await bench.fails("await llm_query_async()", "TypeError")
    assert bench.script.prompts == ["x", "y"]


@case()
async def a_json_function_returns_the_value_itself(bench: Bench) -> None:
    assert await bench.out("add(1, 2), add([1], [None]), add('a', 'b'), add(left=1.5, right=2)") == "(3, [1, None], 'ab', 3.5)\n"


@case()
async def an_argument_that_cannot_be_sent_is_a_type_error(bench: Bench) -> None:
    await bench.fails("llm_query({1, 2})", "TypeError: llm_query()")
    await bench.fails("llm_query(object())", "TypeError: llm_query()")
    await bench.fails("loop = []\nloop.append(loop)\nadd(loop, 1)", "TypeError: add()")
    await bench.fails("llm_query_batched('not a list')", "TypeError: llm_query_batched()")
    await bench.fails("llm_query_batched(['x', 5])", "TypeError: llm_query_batched(): prompts[1]")
    assert bench.script.prompts == []
    assert await bench.out("llm_query('goes on')") == "'goes on'\n"


@case()
async def an_error_of_the_host_is_raised_by_its_name(bench: Bench) -> None:
    await bench.fails("refuse('KeyError', 'no such key')", "KeyError: 'no such key'")
    await bench.fails("refuse('CallLimit', 'max_calls reached')", "CallLimit: max_calls reached")
    await bench.fails("refuse('SystemExit', 'not an Exception')", "SystemExit")
    await bench.fails("refuse('no identifier', 'text')", "RuntimeError: text")
    assert await bench.out("try: refuse('CallLimit', 'x')\nexcept RuntimeError as error: print('caught', error)") == "caught x\n"


@case()
async def an_unknown_function_of_the_host_is_an_error_and_the_session_goes_on(bench: Bench) -> None:
    await bench.fails("no_such_thing()", "LookupError: unknown function 'no_such_thing'")
    assert await bench.out("llm_query('goes on')") == "'goes on'\n"


@case()
async def a_failed_call_is_a_str_that_says_so(bench: Bench) -> None:
    assert (
        await bench.out("reply = llm_query('fail')\nreply, reply.failed, isinstance(reply, str), reply.startswith('Error: ')")
        == "('Error: fail', True, True, True)\n"
    )
    assert await bench.out("reply = await llm_query_async('fail')\nreply, reply.failed") == "('Error: fail', True)\n"


@case()
async def a_failed_item_leaves_its_siblings_alone(bench: Bench) -> None:
    assert await bench.out("replies = llm_query_batched(['a', 'fail b', 'c'])\nreplies, [reply.failed for reply in replies]") == (
        "(['a', 'Error: fail b', 'c'], [False, True, False])\n"
    )
    assert await bench.out("[reply.failed for reply in rlm_query_batched(('a', 'fail'))]") == "[False, True]\n"


@case()
async def an_empty_batch_asks_nothing(bench: Bench) -> None:
    assert await bench.out("llm_query_batched([])") == "[]\n"
    assert bench.script.prompts == []


@case()
async def a_batch_of_five_thousand_keeps_its_order(bench: Bench) -> None:
    assert (
        await bench.out("replies = llm_query_batched([f'item {n}' for n in range(5_000)])\nreplies == [f'item {n}' for n in range(5_000)]")
        == "True\n"
    )
    assert len(bench.script.prompts) == 5_000


@case()
async def a_batch_takes_any_iterable_of_str(bench: Bench) -> None:
    assert await bench.out("llm_query_batched(f'{n}' for n in range(3)), llm_query_batched({'k': 1})") == "(['0', '1', '2'], ['k'])\n"


@case()
async def a_batch_is_asked_at_once(bench: Bench) -> None:
    async with bench.running("llm_query_batched([f'hold {n}' for n in range(50)])[49]") as cell:
        await bench.script.until(lambda: bench.script.in_flight == 50)
        bench.script.release.set()
    assert cell.result().output == "'hold 49'\n"


@case()
async def a_batch_of_many_megabytes_keeps_its_order(bench: Bench) -> None:
    code = "items = [f'{n} ' + 'x' * 500_000 for n in range(16)]\nllm_query_batched(items) == items"
    assert await bench.out(code) == "True\n"


@case()
async def async_calls_overlap(bench: Bench) -> None:
    async with bench.running("import asyncio\nawait asyncio.gather(*[llm_query_async(f'hold {n}') for n in range(20)])") as cell:
        await bench.script.until(lambda: bench.script.in_flight == 20)
        bench.script.release.set()
    assert cell.result().output == repr([f"hold {n}" for n in range(20)]) + "\n"


@case()
async def async_calls_work_in_asyncio_run(bench: Bench) -> None:
    code = (
        "import asyncio\nasync def main(): return await asyncio.gather(*[llm_query_async(str(n)) for n in range(5)])\nasyncio.run(main())"
    )
    assert await bench.out(code) == "['0', '1', '2', '3', '4']\n"


@case()
async def async_calls_work_in_the_loop_of_any_thread(bench: Bench) -> None:
    code = """
import asyncio, threading
found = []
async def main(n): found.append(await rlm_query_async(f'{n}'))
threads = [threading.Thread(target=lambda n=n: asyncio.run(main(n))) for n in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
sorted(found)
"""
    assert await bench.out(code) == "['0', '1', '2', '3']\n"


@case()
async def an_async_call_that_times_out_in_the_cell_is_cancelled(bench: Bench) -> None:
    code = "import asyncio\ntry: await asyncio.wait_for(llm_query_async('hang'), 0.05)\nexcept asyncio.TimeoutError: print('gave up')"
    assert await bench.out(code) == "gave up\n"
    await bench.script.until(lambda: bench.script.cancelled == ["hang"])


@case()
async def a_task_left_waiting_for_a_call_goes_on_in_the_next_await_cell(bench: Bench) -> None:
    await bench.out("import asyncio\ntask = asyncio.create_task(llm_query_async('hold'))\nawait asyncio.sleep(0)")
    await bench.script.until(lambda: bench.script.in_flight == 1)
    bench.script.release.set()
    assert await bench.out("await task") == "'hold'\n"


@case()
async def calls_from_threads_work_and_overlap(bench: Bench) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool: replies = list(pool.map(lambda n: llm_query(f'hold {n}'), range(8)))
replies
"""
    async with bench.running(code) as cell:
        await bench.script.until(lambda: bench.script.in_flight == 8)
        bench.script.release.set()
    assert cell.result().output == repr([f"hold {n}" for n in range(8)]) + "\n"


@case()
async def a_call_from_a_thread_may_outlive_its_cell(bench: Bench) -> None:
    await bench.out(
        "import threading\nfound = []\nthread = threading.Thread(target=lambda: found.append(llm_query('hold')))\nthread.start()"
    )
    await bench.script.until(lambda: bench.script.in_flight == 1)
    bench.script.release.set()
    assert await bench.out("thread.join(); found") == "['hold']\n"


@case()
async def replies_may_come_in_any_order(bench: Bench) -> None:
    code = (
        "import asyncio\nslow = asyncio.create_task(llm_query_async('hold'))\n"
        "quick = [await llm_query_async(f'{n}') for n in range(3)]\nprint(quick, slow.done())\n"
        "await slow"
    )
    async with bench.running(code) as cell:
        await bench.until_streamed("['0', '1', '2'] False\n")
        bench.script.release.set()
    assert cell.result().output == "['0', '1', '2'] False\n'hold'\n"


@case()
async def three_hundred_calls_in_a_row_work(bench: Bench) -> None:
    assert await bench.out("all(llm_query(f'{n}') == f'{n}' for n in range(300))") == "True\n"


@case()
async def a_call_in_a_forked_process_is_an_error_there(bench: Bench) -> None:
    code = (
        "import os\nif os.fork() == 0:\n    try: llm_query('x')\n"
        "    except RuntimeError as error: print('child:', error)\n    os._exit(0)\n_ = os.wait()"
    )
    output = await bench.out(code)
    assert output.startswith("child: llm_query: a forked process has no connection")
    assert bench.script.prompts == []
    assert await bench.out("llm_query('goes on')") == "'goes on'\n"


@case()
async def two_repls_of_a_place_do_not_see_each_other(bench: Bench) -> None:
    other = bench.another()
    try:
        await bench.out("mine = 1\nopen('note', 'w').close()")
        result = await other.run_cell("import os\n'mine' in globals(), os.path.exists('note'), llm_query('x')", 1)
        assert result.output == "(False, False, 'x')\n"
        assert await bench.out("mine, llm_query('y')") == "(1, 'y')\n"
    finally:
        await other.close()
