"""A pytest plugin: a Docker engine for tests, with a small image that needs no registry.

`engine` is the one that is there: of DOCKER_HOST, else of the usual socket. `private_engine` is one of the test's own, which it may stop,
kill and start again. `runsc` is the name of gVisor's runtime. Where one of them is missing, the test is skipped and says so; it fails
where ARLM_TEST_DOCKER, for gVisor ARLM_TEST_RUNSC, is "required", as in CI.
"""

import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import httpx
import pytest

from docker_image import client, ensure_image

USUAL_SOCKET = "unix:///var/run/docker.sock"
SHORT_FOLDER = "/tmp"  # engines make Unix sockets far below theirs; TMPDIR may be too long for that
SCRIPT = Path(__file__).parent.parent / ".ci" / "engine"
SCRIPT_S = 90.0  # longer than any wait of the script's own
END_S = 30.0  # an engine gives its containers 10 s, unless their StopTimeout says less
MACHINES = {"x86_64": {"x86_64", "amd64"}, "aarch64": {"aarch64", "arm64"}}  # an engine's word for it, and Python's


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An engine that answers, an image it has, and the names of its runtimes."""

    url: str
    image: str
    runtimes: frozenset[str]


class NoEngine(Exception):
    """There is none, or none that these tests can use; the message says why."""


def find_engine(url: str) -> Engine:
    """The engine at `url`. ARLM_TEST_IMAGE names an image it has, for one that cannot run this machine's Python."""
    try:
        with client(url) as asked:
            facts = asked.get("/info").raise_for_status().json()
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise NoEngine(f"{url}: {error}") from None
    image = os.environ.get("ARLM_TEST_IMAGE")
    if image is None:
        machines = MACHINES.get(facts["Architecture"], {facts["Architecture"]})
        if sys.platform != "linux" or facts["OSType"] != "linux" or platform.machine() not in machines:
            raise NoEngine(f"{url} cannot run this machine's Python; ARLM_TEST_IMAGE may name an image with one")
        image = ensure_image(url)
    return Engine(url=url, image=image, runtimes=frozenset(facts["Runtimes"]))


def absent(reason: str, variable: str = "ARLM_TEST_DOCKER") -> NoReturn:
    if os.environ.get(variable) == "required":
        pytest.fail(f"{reason} ({variable}=required)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The engine that is there, shared by all tests: what a test starts there, it removes."""
    try:
        return find_engine(os.environ.get("DOCKER_HOST") or USUAL_SOCKET)
    except NoEngine as error:
        absent(f"no Docker engine: {error}")


@pytest.fixture(scope="session")
def runsc(engine: Engine) -> str:
    """The name of gVisor's runtime."""
    if "runsc" not in engine.runtimes:
        absent(f"the Docker engine at {engine.url} has no runtime runsc", "ARLM_TEST_RUNSC")
    return "runsc"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateEngine:
    """An engine that a test may stop, kill and start again. Its images and containers stay; all its calls wait until it is done."""

    folder: Path
    image: str

    @property
    def url(self) -> str:
        return engine_url(self.folder)

    def start(self) -> None:
        """Nothing where it runs. Containers that outlived a killed engine are ended by it, as by any engine without live-restore."""
        run_script("start", self.folder)

    def stop(self) -> None:
        """As its machine's shutdown would: it ends its containers. Nothing where it does not run."""
        self.end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: containers run on. Nothing where it does not run."""
        self.end(signal.SIGKILL)

    def end(self, how: signal.Signals) -> None:
        pid_file = self.folder / "docker.pid"
        try:
            process = os.pidfd_open(int(pid_file.read_text()))
        except (FileNotFoundError, ProcessLookupError):
            return
        try:
            signal.pidfd_send_signal(process, how)
            if not select.select([process], [], [], END_S)[0]:
                raise TimeoutError(f"dockerd did not end within {END_S} s of {how.name}")
        finally:
            os.close(process)
        pid_file.unlink(missing_ok=True)  # of a killed one: its number may be another process's soon


def engine_url(folder: Path) -> str:
    return f"unix://{folder}/docker.sock"


def run_script(verb: str, folder: Path) -> None:
    """The engine's process is no child of this one: the script has ended before it is used."""
    answer = subprocess.run([SCRIPT, verb, folder], capture_output=True, text=True, timeout=SCRIPT_S, check=False)
    if answer.returncode:
        raise RuntimeError(f"{SCRIPT.name} {verb} failed: {answer.stderr.strip()}")


@pytest.fixture
def engine_folder() -> Iterator[Path]:
    """A folder for `.ci/engine`, with nothing in it; whatever runs there afterwards is ended."""
    if sys.platform != "linux" or os.geteuid() or not shutil.which("dockerd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"):
        absent("a private Docker engine needs Linux, root and dockerd")
    folder = Path(tempfile.mkdtemp(prefix="ae-", dir=SHORT_FOLDER))
    yield folder
    run_script("stop", folder)


@pytest.fixture
def private_engine(engine_folder: Path) -> PrivateEngine:
    """An engine of the test's own, running."""
    run_script("start", engine_folder)
    return PrivateEngine(folder=engine_folder, image=ensure_image(engine_url(engine_folder)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"engine", "engine_folder"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("docker")
