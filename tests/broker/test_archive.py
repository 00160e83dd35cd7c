"""The archive that sandboxes are given: what is in it, and that a bare Python runs it."""

import functools
import hashlib
import io
import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from arlm.broker.streams import SUPERVISOR
from arlm.environments import archive as module
from arlm.environments.archive import NAME, PACKAGES, archive
from arlm.errors import ConfigError
from broker_host import begin, call, open_host, run_broker, told

MOST_BYTES = 800_000  # each sandbox is sent so many; 610,000 when this was written
FRESH = "import hashlib; from arlm.environments.archive import archive; print(hashlib.sha256(archive()).hexdigest())"
WATCHED = """
import atexit, json, runpy, sys
before = set(sys.modules)
def tell():
    files = {name: getattr(it, "__file__", None) or "" for name, it in sys.modules.items() if name not in before}
    open(sys.argv[0] + ".modules", "w").write(json.dumps(files))
atexit.register(tell)
sys.argv[0] = sys.argv[1]
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@functools.cache
def interpreter(version: str) -> str | None:
    """A Python of this version, by its own path: `python3.N` on PATH, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for candidate in (shutil.which(f"python{version}"), *sorted(map(str, pyenv.glob(f"{version}.*/bin/python{version}")))):
        if candidate:
            done = subprocess.run([candidate, "-I", "-c", "import sys; print(sys.executable)"], capture_output=True, text=True, check=False)
            if done.returncode == 0:  # else a shim for a version that is not switched on
                return done.stdout.strip()
    return None


def found(version: str) -> str:
    if (python := interpreter(version)) is None:
        pytest.skip(f"no Python {version} is installed")
    return python


def entries() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive())) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_it_is_small():
    assert 300_000 < len(archive()) < MOST_BYTES


def test_the_same_files_give_the_same_bytes_in_any_process():
    digest = hashlib.sha256(archive()).hexdigest()
    for seed in ("1", "2"):
        fresh = subprocess.run(
            [sys.executable, "-c", FRESH], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        assert fresh.stdout.strip() == digest
    assert archive.__wrapped__() == archive()


def test_it_holds_source_code_and_nothing_of_the_machine_that_made_it():
    places = {*map(os.path.realpath, [*site.getsitepackages(), sys.prefix, Path.home(), Path(__file__).parents[2]])} - {
        "/",
        "/usr",
        "/root",
    }
    for name, data in entries().items():
        assert name.endswith(".py")
        assert not re.search(r"(^|/)(tests|_pytest|__pycache__)/", name)
        assert not any(place.encode() in data for place in places), name
    with zipfile.ZipFile(io.BytesIO(archive())) as opened:
        assert {entry.date_time for entry in opened.infolist()} == {module.DATE}
        assert opened.comment == b""


def test_it_has_every_package_that_the_broker_needs():
    assert {name for name in PACKAGES if any(re.match(rf"{name}(/|\.py$)", entry) for entry in entries())} == {*PACKAGES}


def test_a_package_that_is_missing_is_said_with_what_to_install(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("no_such_package",))
    with pytest.raises(ConfigError, match=r"no_such_package.*pip install 'arlm\[broker\]'"):
        archive.__wrapped__()


async def exchange(program) -> str:
    """A word with the supervisor, a call answered, a stranger refused; returns the version of Python."""
    async with open_host(program) as host:
        await host.meet()
        version = (await host.hear(SUPERVISOR))["python"]
        await host.open_door()
        assert (await host.enqueue(b"{}", "wrong"))[0] == 401
        assert (await host.enqueue(b"{}"))[0] == 400
        await host.tell(2, {"bye": "no more"})
        assert await host.enqueue(call("x")) == (503, b'{"error": {"type": "Refused", "message": "no more"}}')
        return version


@pytest.mark.parametrize("flags", [("-I",), ("-I", "-S")], ids=" ".join)
@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13", "3.14"])
async def test_a_bare_python_runs_it(tmp_path, version, flags):
    with run_broker(tmp_path, python=found(version), flags=flags) as program:
        assert (await exchange(program)).startswith(version)
    assert program.process.returncode == 0


@pytest.mark.parametrize("version", ["3.8", "3.9"])
def test_an_older_python_is_refused_in_words(tmp_path, version):
    with begin(tmp_path, python=found(version), error=subprocess.PIPE) as process:
        said, why = process.communicate(told(tmp_path))
    assert (process.returncode, said) == (1, b"")
    assert why.startswith(b"arlm's broker needs Python 3.10 or later, and ")
    assert why.count(b"\n") == 1


async def test_it_takes_nothing_from_the_packages_of_the_python_that_runs_it(tmp_path):
    """Which here has all of them, and more that they would import."""
    with run_broker(tmp_path, flags=("-I", "-c", WATCHED)) as program:
        await exchange(program)
    own = str(tmp_path / NAME)
    library = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
    files = json.loads((tmp_path / f"{NAME}.modules").read_text())
    assert {"starlette", "uvicorn", "h11", "anyio", "arlm.broker.app"} <= files.keys()
    for name, file in files.items():
        assert not file or file.startswith(own) or (file.startswith(library) and "site-packages" not in file), (name, file)
