"""The engine the Docker tests run on, tested itself: it answers, its image runs Python, and nothing stays of it."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import httpx
import psutil
import pytest

from docker_engine import Engine, PrivateEngine, engine_url, run_script
from docker_image import NAME, REQUIRED_TOOLS, client, ensure_image

CLOSED = {"NetworkMode": "none", "ReadonlyRootfs": True, "CapDrop": ["ALL"], "SecurityOpt": ["no-new-privileges"]}
FRAME = struct.Struct(">BxxxI")  # stream and length, before each piece of a container's output; Docker's API, "attach"


def run(url: str, image: str, *command: str, **host: object) -> tuple[int, str]:
    """A container's exit status and output. It has no network, writes nothing, and is nobody; it is gone afterwards."""
    with client(url) as engine:
        identity = start(engine, image, *command, **host)
        try:
            status = engine.post(f"/containers/{identity}/wait").raise_for_status().json()["StatusCode"]
            output = engine.get(f"/containers/{identity}/logs", params={"stdout": True, "stderr": True}).raise_for_status().content
        finally:
            engine.delete(f"/containers/{identity}", params={"force": True}).raise_for_status()
    return status, b"".join(pieces(output)).decode()


def start(engine: httpx.Client, image: str, *command: str, **host: object) -> str:
    settings = {"Image": image, "Cmd": command, "User": "65534:65534", "StopTimeout": 0, "HostConfig": {**CLOSED, **host}}
    created = engine.post("/containers/create", json=settings)
    assert created.is_success, created.text
    identity = created.json()["Id"]
    started = engine.post(f"/containers/{identity}/start")
    if started.is_error:
        engine.delete(f"/containers/{identity}", params={"force": True})
    assert started.is_success, started.text
    return identity


def pieces(output: bytes) -> Iterable[bytes]:
    while output:
        _, length = FRAME.unpack_from(output)
        yield output[FRAME.size : FRAME.size + length]
        output = output[FRAME.size + length :]


def state(url: str, identity: str) -> dict[str, object]:
    with client(url) as engine:
        return engine.get(f"/containers/{identity}/json").raise_for_status().json()["State"]


def has_image(url: str, image: str) -> bool:
    with client(url) as engine:
        return engine.get(f"/images/{image}/json").is_success


@pytest.fixture
def built(engine: Engine) -> Engine:
    """The engine, where its image was made here and is not one of somebody's choice."""
    if not engine.image.startswith(NAME):
        pytest.skip(f"{engine.image} was not made by the tests")
    return engine


PROBE = """
import ctypes, json, multiprocessing, os, sqlite3, ssl, sys
multiprocessing.Lock()
try:
    open("/x", "w")
    written = True
except OSError:
    written = False
print(json.dumps({"version": sys.version, "user": [os.getuid(), os.getgid()], "written": written, "home": os.listdir("/root"),
                  "interfaces": os.listdir("/sys/class/net"), "compiled": os.path.exists(json.__cached__)}))
"""


def test_the_image_runs_this_python_without_network_or_root_or_files_it_can_write(built: Engine) -> None:
    status, output = run(built.url, built.image, "python3", "-I", "-c", PROBE)
    assert status == 0, output
    facts = json.loads(output)
    assert facts["version"] == sys.version
    assert facts["user"] == [65534, 65534]
    assert facts["interfaces"] == ["lo"]
    assert not facts["written"]
    assert facts["compiled"]  # nobody can write it later


def test_the_image_has_a_shell_and_the_tools_that_cells_of_the_tests_call(built: Engine) -> None:
    script = " && ".join(f"command -v {tool}" for tool in REQUIRED_TOOLS) + " && ls / | cat && echo done"
    status, output = run(built.url, built.image, "sh", "-c", script)
    assert (status, output.splitlines()[-1]) == (0, "done"), output


def test_an_image_can_have_python_by_one_name_only(built: Engine) -> None:
    image = ensure_image(built.url, names=("python",))
    assert image != built.image
    assert run(built.url, image, "sh", "-c", "command -v python3 || python -I -c 'print(1 + 1)'") == (0, "2\n")


def test_the_image_runs_under_gvisor(built: Engine, runsc: str) -> None:
    status, output = run(built.url, built.image, "python3", "-I", "-c", PROBE, Runtime=runsc)
    assert status == 0, output
    assert json.loads(output)["version"] == sys.version
    _, kernel = run(built.url, built.image, "cat", "/proc/version", Runtime=runsc)
    assert kernel.strip() != Path("/proc/version").read_text().strip()


def test_a_stopped_engine_has_ended_its_containers_and_starts_again_with_its_images(private_engine: PrivateEngine) -> None:
    with client(private_engine.url) as asked:
        identity = start(asked, private_engine.image, "sleep", "600")
    process = psutil.Process(state(private_engine.url, identity)["Pid"])
    private_engine.stop()
    assert gone(process)
    with pytest.raises(FileNotFoundError), client(private_engine.url):
        pass
    private_engine.start()
    assert has_image(private_engine.url, private_engine.image)
    assert run(private_engine.url, private_engine.image, "echo", "back") == (0, "back\n")
    assert not state(private_engine.url, identity)["Running"]


def test_containers_outlive_a_killed_engine_until_it_starts_again(private_engine: PrivateEngine) -> None:
    with client(private_engine.url) as asked:
        identity = start(asked, private_engine.image, "python3", "-c", "import signal; signal.sigwait([signal.SIGTERM])")
    process = psutil.Process(state(private_engine.url, identity)["Pid"])
    private_engine.kill()
    private_engine.kill()  # nothing happens to whoever has its number now
    assert process.is_running()
    private_engine.start()
    private_engine.start()  # and nothing to one that runs
    assert gone(process)
    assert has_image(private_engine.url, private_engine.image)
    assert not state(private_engine.url, identity)["Running"]
    assert run(private_engine.url, private_engine.image, "echo", "back") == (0, "back\n")


def gone(process: psutil.Process) -> bool:
    """Ended; whether init has reaped it yet is init's affair."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def kill_the_engine(engine: PrivateEngine) -> None:
    engine.kill()


def leave_it_running(engine: PrivateEngine) -> None:
    assert has_image(engine.url, engine.image)


@pytest.mark.parametrize("before", [leave_it_running, kill_the_engine])
def test_nothing_is_left_of_an_engine_and_its_containers(engine_folder: Path, before: Callable[[PrivateEngine], None]) -> None:
    run_script("start", engine_folder)
    engine = PrivateEngine(folder=engine_folder, image=ensure_image(engine_url(engine_folder)))
    with client(engine.url) as asked:
        runtimes = asked.get("/info").json()["Runtimes"].keys() & {"runc", "runsc"}
        for runtime in runtimes:
            start(asked, engine.image, "sleep", "600", Runtime=runtime)
    group = control_group(int((engine_folder / "docker.pid").read_text()))
    held = members(group)
    assert {"dockerd", "containerd", "sleep"} <= {it.name() for it in held}
    before(engine)
    run_script("stop", engine_folder)
    assert [it for it in held if not gone(it)] == []
    assert folders(group) == []
    assert str(engine_folder) not in Path("/proc/self/mountinfo").read_text()
    assert not engine_folder.exists()


def control_group(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text().splitlines()[0].rpartition(":")[2].split("/")[1]


def folders(group: str) -> list[Path]:
    top = Path("/sys/fs/cgroup")
    return [*top.glob(group), *top.glob(f"*/{group}")]


def members(group: str) -> list[psutil.Process]:
    files = [file for folder in folders(group) for file in folder.rglob("cgroup.procs")]
    return [psutil.Process(pid) for pid in {int(it) for file in files for it in file.read_text().split()}]


def test_a_folder_that_holds_something_else_is_neither_used_nor_removed(engine_folder: Path) -> None:
    (engine_folder / "letters").touch()
    for verb in ("start", "stop"):
        with pytest.raises(RuntimeError, match="holds something else"):
            run_script(verb, engine_folder)
    assert [it.name for it in engine_folder.iterdir()] == ["letters"]
    (engine_folder / "letters").unlink()


def test_a_folder_too_deep_for_sockets_is_refused_with_a_reason(engine_folder: Path) -> None:
    with pytest.raises(RuntimeError, match="too long by"):
        run_script("start", engine_folder / ("deep" * 20))


ASKING = """
    def test_engine(engine): pass
    def test_runsc(runsc): pass
"""


@pytest.mark.parametrize(("required", "outcomes"), [("", {"skipped": 2}), ("required", {"errors": 2})])
def test_without_an_engine_tests_are_skipped_unless_it_is_required(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, required: str, outcomes: dict[str, int]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{pytester.path}/none.sock")
    monkeypatch.setenv("ARLM_TEST_DOCKER", required)
    pytester.makepyfile(ASKING)
    result = pytester.runpytest_inprocess("-p", "docker_engine", "-p", "no:asyncio", "-rs", "-W", "ignore::pytest.PytestUnknownMarkWarning")
    result.assert_outcomes(**outcomes)
    result.stdout.fnmatch_lines([f"*no Docker engine: unix://{pytester.path}/none.sock: *No such file*"])


def test_the_script_says_how_it_is_used() -> None:
    script = Path(__file__).parent.parent / ".ci" / "engine"
    answer = subprocess.run([script, "restart"], capture_output=True, text=True, check=False)
    assert answer.returncode != 0
    assert "usage: .ci/engine start|stop DIR" in answer.stderr
