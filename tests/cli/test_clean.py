"""`arlm clean`: what dead runs left goes, what the living hold stays, and who cannot be asked is told."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from arlm.cli import app, clean
from arlm.environments.owner import owner
from arlm.guest import cgroups
from arlm.plugins import load
from commandline import ARLM, Done, arlm, clean_environment, start

STOP_S = 10.0
# A shed keeps things: files that are named by a number and hold their owner's label.
PLUGIN = """
import asyncio, os
from pathlib import Path
from arlm import ConfigError, SandboxError
from arlm.environments import Environment
from arlm.environments.owner import is_dead

class Bare(Environment):
    def open(self, handler, scratch):
        raise NotImplementedError

class Shed(Bare):
    async def sweep(self, *, everything=False):
        things = sorted(Path(os.environ["SHED"]).iterdir())
        gone = [it for it in things if everything or is_dead(it.read_text(), same_machine=True)]
        for thing in gone:
            thing.unlink()
        return [f"thing {it.name}" for it in gone]

class Keyless(Bare):
    async def sweep(self, *, everything=False):
        raise ConfigError("it needs a key: set KEYLESS_KEY")

class Down(Bare):
    async def sweep(self, *, everything=False):
        raise SandboxError("no engine answers at /run/down.sock;\\nstart it")

class Broken(Bare):
    async def sweep(self, *, everything=False):
        return 1 / 0

class Stuck(Bare):
    async def sweep(self, *, everything=False):
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            Path(os.environ["SHED"], "closed").touch()
"""
KINDS = ("Bare", "Shed", "Keyless", "Down", "Broken", "Stuck")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A temporary folder with a short name, which is therefore the one that runs use."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def shed(tmp_path: Path) -> Path:
    """Where the third party's environment keeps things: one of the living, one of the dead, one of nobody."""
    shed = tmp_path / "shed"
    shed.mkdir()
    with subprocess.Popen(["true"]) as dead:
        pass
    parts = owner().split(".")
    (shed / "1").write_text(owner())
    (shed / "2").write_text(".".join([*parts[:4], str(dead.pid), parts[5]]))
    (shed / "3").write_text("whose?")
    return shed


@pytest.fixture
def variables(tmp_path: Path, folder: Path, shed: Path) -> dict[str, str]:
    """Of a process to which somebody's package adds environments, and which has no container engine."""
    info = tmp_path / "path" / "theirs-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    points = "\n".join(f"{kind.lower()} = their_environments:{kind}" for kind in KINDS if kind != "Stuck")
    (info / "entry_points.txt").write_text(f"[arlm.environments]\n{points}\nmissing = their_nothing:It\n")
    (tmp_path / "path" / "their_environments.py").write_text(PLUGIN)
    return {"PYTHONPATH": str(info.parent), "TMPDIR": str(folder), "SHED": str(shed), "DOCKER_HOST": f"unix://{tmp_path}/none.sock"}


@pytest.fixture
def with_stuck(tmp_path: Path, variables: dict[str, str]) -> dict[str, str]:
    """The same with one that never comes to an end."""
    points = tmp_path / "path" / "theirs-1.0.dist-info" / "entry_points.txt"
    points.write_text(f"{points.read_text()}stuck = their_environments:Stuck\n")
    return variables


def left(shed: Path) -> list[str]:
    return sorted(os.listdir(shed))


# -- temporary folders -------------------------------------------------------------------------------------------------

HOLDER = """
import asyncio, sys
from arlm.scratch import open_scratch

async def main():
    async with open_scratch("contexts") as path:
        (path / "contexts" / "context.0").write_text("c")
        print(path, flush=True)
        sys.stdin.read()

asyncio.run(main())
"""


@pytest.fixture
def host(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A host with a folder there."""
    command = [sys.executable, "-c", HOLDER]
    variables = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


async def test_a_killed_hosts_folder_goes_and_a_living_hosts_stays(
    folder: Path, host: subprocess.Popen[str], variables: dict[str, str]
) -> None:
    assert host.stdout is not None
    path = host.stdout.readline().strip()
    done = await arlm("clean", **variables)
    assert (done.code, os.listdir(folder)) == (0, [os.path.basename(path)])
    assert path not in done.out
    host.kill()
    host.wait()
    done = await arlm("clean", **variables)
    assert done.code == 0
    assert f"temporary folders: removed {path}" in done.out.splitlines()
    assert os.listdir(folder) == []


async def test_all_takes_no_living_hosts_folder(host: subprocess.Popen[str], variables: dict[str, str]) -> None:
    assert host.stdout is not None
    path = host.stdout.readline().strip()
    done = await arlm("clean", "--all", "--yes", "--json", **variables)
    assert json.loads(done.out)["removed"]["temporary folders"] == []
    assert os.path.exists(os.path.join(path, "contexts", "context.0"))


async def test_folders_that_runs_with_a_deep_temporary_folder_made_elsewhere_are_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("deep" * 20)))
    monkeypatch.setattr("arlm.scratch.sweep", lambda parent: looked.append(parent) or [])
    assert clean._folders() == []
    assert sorted(looked) == sorted(["/tmp", str(tmp_path / ("deep" * 20))])


def test_processes_that_a_killed_supervisor_left_in_a_group_are_killed_and_the_group_goes() -> None:
    places = cgroups.roots()
    if "pids" not in places:
        pytest.skip("no control groups can be made here")
    with subprocess.Popen(["true"]) as supervisor:
        pass
    prefix, _, _, number = cgroups.name(7).rsplit("-", 3)
    made = cgroups.prepare(f"{prefix}-{supervisor.pid}-1-{number}", {"pids": 10}, {"pids": places["pids"]})
    with subprocess.Popen(["sleep", "1000"]) as orphan:
        Path(made["pids"], "cgroup.procs").write_text(str(orphan.pid))
        assert made["pids"] in clean._groups()
        assert orphan.wait() == -signal.SIGKILL
    assert not os.path.exists(made["pids"])


# -- environments ------------------------------------------------------------------------------------------------------


async def test_what_the_dead_left_in_an_environment_goes_and_the_rest_stays(shed: Path, variables: dict[str, str]) -> None:
    done = await arlm("clean", **variables)
    assert done.code == 0
    assert [line for line in done.out.splitlines() if line.startswith("shed")] == ["shed: removed thing 2"]
    assert "arlm: shed: looking for what is left" in done.err.splitlines()
    assert left(shed) == ["1", "3"]
    done = await arlm("clean", **variables)
    assert (done.code, "shed" in done.out) == (0, False)


async def test_who_cannot_be_asked_is_a_line_and_no_failure(variables: dict[str, str]) -> None:
    done = await arlm("clean", **variables)
    lines = done.err.splitlines()
    assert done.code == 0
    assert "arlm: keyless: it needs a key: set KEYLESS_KEY" in lines
    assert "arlm: down: no engine answers at /run/down.sock; start it" in lines
    assert "arlm: broken: ZeroDivisionError: division by zero" in lines
    assert any(line.startswith("arlm: missing: the environment 'missing' (from theirs) could not be loaded") for line in lines)
    assert not [line for line in lines if "bare" in line or "process" in line or "Traceback" in line]


@pytest.mark.parametrize(("name", "code"), [("keyless", 2), ("down", 5), ("broken", 5), ("missing", 2)])
async def test_who_was_named_and_cannot_be_asked_is_a_failure(name: str, code: int, shed: Path, variables: dict[str, str]) -> None:
    done = await arlm("clean", "--environment", "shed", "-e", name, **variables)
    assert (done.code, done.out) == (code, "shed: removed thing 2\n")
    assert f"arlm: {name}: " in done.err
    assert left(shed) == ["1", "3"]


async def test_only_those_named_are_asked(folder: Path, shed: Path, variables: dict[str, str]) -> None:
    orphan = tempfile.mkdtemp(prefix=clean.scratch.PREFIX, dir=folder)
    done = await arlm("clean", "-e", "bare", "--environment", "local", **variables)
    assert (done.code, done.out) == (0, "nothing was left where it could be asked\n")
    assert [line.partition(": it keeps nothing")[0] for line in done.err.splitlines()] == ["arlm: bare", "arlm: local"]
    assert (left(shed), os.path.isdir(orphan)) == (["1", "2", "3"], True)
    done = await arlm("clean", "-e", "shed", "-e", "shed", **variables)
    assert (done.code, done.out, done.err) == (0, "shed: removed thing 2\n", "arlm: shed: looking for what is left\n")
    done = await arlm("clean", "-e", "shed", **variables)
    assert (done.code, done.out) == (0, "nothing was left\n")


async def test_an_unknown_environment_is_refused_with_what_there_is_and_nothing_is_removed(shed: Path, variables: dict[str, str]) -> None:
    done = await arlm("clean", "-e", "shed", "-e", "shad", "--json", **variables)
    error = json.loads(done.out)["error"]
    assert (done.code, error["exit_code"], error["type"]) == (2, 2, "ConfigError")
    assert error["message"].startswith("unknown environment 'shad'; did you mean 'shed'?; there is: bare, broken, ")
    assert left(shed) == ["1", "2", "3"]


async def test_json_is_one_object_with_removed_and_skipped(folder: Path, variables: dict[str, str]) -> None:
    orphan = tempfile.mkdtemp(prefix=clean.scratch.PREFIX, dir=folder)
    done = await arlm("clean", "--json", **variables)
    told = json.loads(done.out)
    assert list(told) == ["removed", "skipped"]
    assert told["removed"]["temporary folders"] == [orphan]
    assert told["removed"]["shed"] == ["thing 2"]
    assert "control groups" in told["removed"]
    assert told["skipped"]["keyless"] == "it needs a key: set KEYLESS_KEY"
    assert {"down", "broken", "missing"} <= set(told["skipped"])
    assert not {"bare", "local", "process"} & (set(told["removed"]) | set(told["skipped"]))


# -- everything --------------------------------------------------------------------------------------------------------


async def test_all_without_a_terminal_needs_yes(shed: Path, variables: dict[str, str]) -> None:
    done = await arlm("clean", "--all", "-e", "shed", given=b"y\n", **variables)
    assert (done.code, done.out) == (2, "")
    assert "add --yes" in done.err
    assert left(shed) == ["1", "2", "3"]
    done = await arlm("clean", "--all", "--yes", "-e", "shed", **variables)
    assert (done.code, done.out.splitlines()) == (0, [f"shed: removed thing {number}" for number in "123"])
    assert left(shed) == []


async def test_all_with_a_closed_standard_input_needs_yes_too(shed: Path, variables: dict[str, str]) -> None:
    command = ["sh", "-c", 'exec "$@" <&-', "sh", ARLM, "clean", "--all", "-e", "shed"]
    done = subprocess.run(command, env=clean_environment(**variables), capture_output=True, text=True, check=False)
    assert (done.returncode, left(shed)) == (2, ["1", "2", "3"])
    assert "add --yes" in done.stderr


@pytest.mark.parametrize(
    ("typed", "code", "stays"),
    [(b"y\n", 0, []), (b"YES\n", 0, []), (b"n\n", 130, ["1", "2", "3"]), (b"\n", 130, ["1", "2", "3"]), (b"\x04", 130, ["1", "2", "3"])],
)
async def test_on_a_terminal_all_asks_first(typed: bytes, code: int, stays: list[str], shed: Path, variables: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    try:
        process = await start("clean", "--all", "-e", "shed", stdin=theirs, **variables)
        os.write(ours, typed)
        out, err = await process.communicate()
    finally:
        os.close(ours)
        os.close(theirs)
    assert (process.returncode, left(shed)) == (code, stays)
    assert err.decode().startswith(clean.QUESTION)
    assert out.decode().splitlines() == ([] if code else [f"shed: removed thing {number}" for number in "123"])


# -- time and signals --------------------------------------------------------------------------------------------------


async def test_ctrl_c_ends_it_and_the_environments_own_clean_up_is_waited_for(shed: Path, with_stuck: dict[str, str]) -> None:
    process = await start("clean", "-e", "stuck", quick=True, **with_stuck)
    assert process.stderr is not None
    assert await process.stderr.readline() == b"arlm: stuck: looking for what is left\n"
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(STOP_S):
        out, err = await process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"arlm: interrupted\n")
    assert left(shed) == ["1", "2", "3", "closed"]


def test_one_that_does_not_end_is_given_up_and_keeps_nobody_else(
    shed: Path, with_stuck: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clean, "SWEEP_S", 1.0)
    done = inside("clean", "-e", "stuck", "-e", "shed", variables=with_stuck, monkeypatch=monkeypatch, capsys=capsys)
    assert (done.code, done.out) == (5, "shed: removed thing 2\n")
    assert "arlm: stuck: not done within 1 s; what it had removed by then stays removed" in done.err.splitlines()
    assert left(shed) == ["1", "3", "closed"]


def inside(*words: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Done:
    """The command line in this process, with somebody's package on the path."""
    monkeypatch.syspath_prepend(variables["PYTHONPATH"])
    monkeypatch.setenv("SHED", variables["SHED"])
    load.cache_clear()
    try:
        code = app.invoke(list(words))
    finally:
        load.cache_clear()
        sys.modules.pop("their_environments", None)
    caught = capsys.readouterr()
    return Done(code=code, out=caught.out, err=caught.err)


def test_the_shell_completes_an_environments_name() -> None:
    variables = clean_environment(_ARLM_COMPLETE="complete_bash", COMP_WORDS="arlm clean -e pro", COMP_CWORD="3")
    done = subprocess.run([ARLM], capture_output=True, text=True, env=variables, check=False)
    assert done.stdout.split() == ["process"]
