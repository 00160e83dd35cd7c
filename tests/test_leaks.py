"""The leak check, tested by running tests that leak."""

import os
from pathlib import Path

import pytest

INI = """
    [tool.pytest.ini_options]
    asyncio_mode = "auto"
    asyncio_default_fixture_loop_scope = "function"
    addopts = ["--strict-markers"]
    filterwarnings = ["error"]
"""

LEAKY = """
    import asyncio, os, socket, subprocess, sys, tempfile, threading

    kept = []

    def test_thread():
        kept.append(threading.Event())
        threading.Thread(target=kept[-1].wait, args=(60,), daemon=True, name="forgotten").start()

    def test_process():
        kept.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))

    def test_zombie():
        reader, writer = os.pipe()
        pid = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {}, file_actions=[(os.POSIX_SPAWN_CLOSE, reader)])
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)

    def test_socket():
        kept.append(socket.create_server(("127.0.0.1", 0)))

    def test_pipe():
        os.pipe()

    def test_file():
        os.close(tempfile.mkstemp(prefix="arlm-")[0])

    async def test_task():
        kept.append(asyncio.create_task(asyncio.sleep(60), name="unfinished"))
"""

TIDY = """
    import asyncio, socket, subprocess, sys, tempfile, threading
    import pytest, pytest_asyncio

    def test_everything_closed(tmp_path):
        with socket.create_server(("127.0.0.1", 0)), tempfile.TemporaryDirectory(prefix="arlm-"):
            subprocess.run([sys.executable, "-c", ""], check=True)

    def test_a_thread_that_is_about_to_end():
        threading.Timer(0.1, int).start()

    async def test_a_task_that_is_about_to_end():
        asyncio.get_running_loop().unrelated = asyncio.create_task(asyncio.sleep(0.1))

    async def test_the_executor_of_the_loop():
        await asyncio.to_thread(int)

    @pytest_asyncio.fixture
    async def service():
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        task = asyncio.create_task(server.serve_forever())
        yield server.sockets[0].getsockname()
        task.cancel()
        server.close()
        await server.wait_closed()

    async def test_what_an_async_fixture_runs(service):
        reader, writer = await asyncio.open_connection(*service)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    @pytest.fixture(scope="module")
    def shared():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield listener

    def test_what_a_module_fixture_holds(shared):
        assert shared.getsockname()

    async def test_what_a_module_fixture_still_holds(shared):
        assert shared.getsockname()
"""

PARKED = """
    import os, subprocess, sys, types, tempfile

    def test_what_the_fork_server_has_parked_may_stay():
        server = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        home = tempfile.mkdtemp(prefix="arlm-")
        sys.modules["arlm.environments.forkserver"] = types.SimpleNamespace(
            parked_pids=lambda: {server.pid}, parked_fds=lambda: {server.stdin.fileno()}, parked_paths=lambda: {home}
        )
"""

EXEMPT = """
    import os, pytest

    @pytest.mark.may_leak("the pipe is what is being tested")
    def test_with_a_reason():
        os.pipe()

    @pytest.mark.may_leak()
    def test_without_a_reason():
        os.pipe()
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Run a test file in a pytest of its own, under the plugin, with a short patience."""

    def run(source: str) -> pytest.RunResult:
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        monkeypatch.setenv("PYTHONPATH", os.fspath(Path(__file__).parent))
        pytester.makeconftest("import leaks\nleaks.SETTLE_S = 0.25")
        pytester.makepyprojecttoml(INI)
        pytester.makepyfile(source)
        return pytester.runpytest_subprocess("-p", "pytest_asyncio.plugin", "-p", "leaks", "-rP")

    return run


def test_each_kind_of_leak_fails_its_own_test_by_name(run):
    result = run(LEAKY)
    result.assert_outcomes(passed=7, errors=7)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_thread*", "*thread 'forgotten'"])
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_process*", "*process * (sleeping): *input()"])
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_zombie*", "*process * (zombie): *"])
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_socket*", "*descriptor *: socket:*127.0.0.1* -> - LISTEN"])
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_pipe*", "*descriptor *: pipe:*", "*descriptor *: pipe:*"])
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_file*", "*file */arlm-*"])
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_task*", "*<Task pending name='unfinished'*"])


def test_what_is_closed_or_shared_or_about_to_end_is_no_leak(run):
    run(TIDY).assert_outcomes(passed=7)


def test_what_the_fork_server_has_parked_is_no_leak(run):
    run(PARKED).assert_outcomes(passed=1)


def test_an_exemption_needs_a_reason(run):
    result = run(EXEMPT)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*may_leak needs a reason*"])


def test_the_session_has_a_temporary_directory_of_its_own(run, tmp_path):
    result = run("""
        import os, tempfile

        def test_where(tmp_path):
            print("OWN", tempfile.gettempdir())
            assert os.environ["TMPDIR"] == tempfile.gettempdir()
            assert not tmp_path.is_relative_to(tempfile.gettempdir())
            open(tempfile.gettempdir() + "/arlm-left", "w").close()
    """)
    own = next(line.split()[1] for line in result.outlines if line.startswith("OWN"))
    assert not Path(own).exists()
