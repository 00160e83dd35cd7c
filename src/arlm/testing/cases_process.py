"""Cases about the process around the cells: its surroundings, its limits, forks, what outlives a cell."""

# ruff: noqa: D103 - the name of a case is its claim

from __future__ import annotations

from typing import TYPE_CHECKING

from .case import Cases

if TYPE_CHECKING:
    from .bench import Bench

CASES = Cases()
case = CASES.case

GB = 1024**3

# A process with a session of its own, forked twice, that no longer knows us: prints its id and sleeps.
DETACHED = """
import os, time
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        os.write(writer, str(os.getpid()).encode())
        os.close(writer)
        time.sleep(600)
    os._exit(0)
os.wait()
print(os.read(reader, 100).decode())
"""


@case()
async def the_environment_holds_nothing_of_the_host(bench: Bench) -> None:
    import os

    names = (await bench.out("import os\nprint(*sorted(os.environ), sep='\\n')")).split()
    assert set(names) <= {"PATH", "HOME", "TMPDIR", "LANG", "PWD", "HOSTNAME", "LC_CTYPE"}
    secret = "a-secret-of-the-host"  # noqa: S105 - a word to look for
    os.environ["ARLM_CONFORMANCE_SECRET"] = secret
    try:
        other = bench.another()
        try:
            result = await other.run_cell("import os, subprocess\nsubprocess.run(['env']); print(dict(os.environ))", 1)
        finally:
            await other.close()
    finally:
        del os.environ["ARLM_CONFORMANCE_SECRET"]
    assert result.output
    assert secret not in result.output


@case()
async def the_command_line_and_stdin_hold_nothing(bench: Bench) -> None:
    assert await bench.out("import sys\nsys.argv, sys.stdin.read()") == "([''], '')\n"


@case()
async def the_working_directory_is_private_and_writable(bench: Bench) -> None:
    code = (
        "import os, tempfile\nopen('mine', 'w').write('x')\n"
        "[name for name in os.listdir() if name[0] != '.'], os.stat('.').st_mode & 0o077, "
        "tempfile.gettempdir() == os.getcwd() == os.environ['HOME']"
    )
    assert await bench.out(code) == "(['mine'], 0, True)\n"


@case()
async def a_cell_may_change_directory(bench: Bench) -> None:
    await bench.out("import os\nhome = os.getcwd()\nos.mkdir('below'); os.chdir('below')")
    assert await bench.out("os.path.relpath(os.getcwd(), home)") == "'below'\n"


@case(memory_limit=GB)
async def an_allocation_above_the_memory_limit_is_a_memory_error(bench: Bench) -> None:
    await bench.fails("kept = 1\nbig = bytearray(3 * 1024**3)", "MemoryError")
    await bench.fails("rows = []\nwhile True: rows.append(' ' * 100_000_000)", "MemoryError")
    assert await bench.out("rows = None\nkept, llm_query('goes on')") == "(1, 'goes on')\n"


@case(memory_limit=GB)
async def the_memory_limit_leaves_what_it_promises(bench: Bench) -> None:
    assert await bench.out("len(bytearray(900 * 1024**2))") == f"{900 * 1024**2}\n"


@case()
async def a_process_that_forks_in_a_cell_goes_on_alone(bench: Bench) -> None:
    assert (
        await bench.out("import os\npid = os.fork()\nif pid == 0: print('child')\nelse: os.waitpid(pid, 0); print('parent')")
        == "child\nparent\n"
    )
    assert await bench.out("pid > 0, llm_query('goes on')") == "(True, 'goes on')\n"


@case()
async def a_forked_child_that_raises_or_exits_ends_alone(bench: Bench) -> None:
    output = await bench.out("import os\nif os.fork() == 0: raise ValueError('in the child')\nos.wait()\nprint('parent')")
    assert "ValueError: in the child" in output
    assert output.endswith("parent\n")
    assert await bench.out("import sys\nif os.fork() == 0: sys.exit(3)\nos.waitstatus_to_exitcode(os.wait()[1]) in (0, 3)") == "True\n"


@case()
async def multiprocessing_works(bench: Bench) -> None:
    code = (
        "import multiprocessing\ncontext_ = multiprocessing.get_context('fork')\n"
        "def square(n): return n * n\n"
        "with context_.Pool(2) as pool: print(pool.map(square, range(4)))"
    )
    assert await bench.out(code) == "[0, 1, 4, 9]\n"


@case()
async def a_process_that_detached_itself_dies_with_the_repl(bench: Bench) -> None:
    pid = int(await bench.out(DETACHED))
    assert bench.subject.alive is None or bench.subject.alive(pid)
    await bench.repl.close()
    await bench.gone(pid)


@case()
async def a_process_that_detached_itself_dies_with_its_worker(bench: Bench) -> None:
    pid = int(await bench.out(DETACHED))
    result = await bench.cell("os._exit(0)")
    assert result.stopped == "exited"
    await bench.gone(pid)
    assert await bench.out("'goes on'") == "'goes on'\n"


@case()
async def a_process_that_forks_without_end_dies_with_the_repl(bench: Bench) -> None:
    code = (
        "import os, time\nif os.fork() == 0:\n    for _ in range(50):\n"
        "        if os.fork() == 0: os.setsid()\n        else: time.sleep(600)\n"
        "    time.sleep(600)\nos.getpid()"
    )
    pid = int(await bench.out(code))
    await bench.repl.close()
    await bench.gone(pid)
