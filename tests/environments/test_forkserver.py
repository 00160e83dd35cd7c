"""The fork server: one for each loop, handed on when idle, ended with the process, deaf to nonsense."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from arlm.environments import control, forkserver
from arlm.environments.control import Control
from arlm.environments.forkserver import current
from arlm.errors import SandboxError
from arlm.guest import processes, wire
from arlm.testing.conformance import Bench, alive_here


async def pid_of_current() -> int:
    return (await current()).process.pid


@pytest.fixture
def nothing_parked() -> None:
    forkserver.stop_parked()


async def test_a_loop_has_one_fork_server() -> None:
    assert len(set(await asyncio.gather(*(pid_of_current() for _ in range(10))))) == 1


@pytest.mark.usefixtures("nothing_parked")
def test_an_idle_fork_server_is_handed_to_the_next_loop() -> None:
    first = asyncio.run(pid_of_current())
    assert forkserver.parked_pids() == {first}
    assert len(forkserver.parked_fds()) == 1
    assert asyncio.run(pid_of_current()) == first
    forkserver.stop_parked()
    assert not alive_here(first)
    assert forkserver.parked_pids() == forkserver.parked_fds() == set()


@pytest.mark.usefixtures("nothing_parked")
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="counts descriptors in /proc")
def test_handing_it_on_many_times_costs_it_no_descriptor() -> None:
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{asyncio.run(pid_of_current())}/fd"))

    first = descriptors()
    assert [descriptors() for _ in range(5)] == [first] * 5


@pytest.mark.usefixtures("nothing_parked")
def test_a_parked_fork_server_that_died_is_replaced() -> None:
    first = asyncio.run(pid_of_current())
    os.kill(first, 9)
    while alive_here(first):
        os.sched_yield()
    assert asyncio.run(pid_of_current()) != first


@pytest.mark.usefixtures("nothing_parked")
def test_loops_at_the_same_time_have_their_own() -> None:
    async def outer() -> tuple[int, int]:
        return await pid_of_current(), await asyncio.to_thread(asyncio.run, pid_of_current())

    first, second = asyncio.run(outer())
    assert first != second
    assert len(forkserver.parked_pids()) == 1
    forkserver.stop_parked()
    assert not any(map(alive_here, (first, second)))


@pytest.mark.usefixtures("nothing_parked")
def test_a_process_that_forks_leaves_the_parked_one_to_its_parent() -> None:
    first = asyncio.run(pid_of_current())
    child = os.fork()
    if child == 0:
        os._exit(0 if forkserver.parked_pids() == set() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert asyncio.run(pid_of_current()) == first


def test_it_ends_with_the_process() -> None:
    code = (
        "import asyncio\nfrom arlm.environments.forkserver import current\n"
        "async def main(): print((await current()).process.pid, flush=True)\nasyncio.run(main())"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert not alive_here(pid)


async def test_a_python_that_does_not_start_is_a_sandbox_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forkserver, "command", lambda: ["/nonexistent/python"])
    with pytest.raises(SandboxError, match="could not be started"):
        forkserver.ForkServer.start()
    monkeypatch.setattr(forkserver, "command", lambda: ["false"])
    server = forkserver.ForkServer.start()
    with pytest.raises(SandboxError, match="ended while starting"):
        await server.attach()
    assert server.process.returncode == 1


async def test_a_supervisor_that_does_not_answer_is_a_sandbox_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "START_SECONDS", 0.05)
    monkeypatch.setattr(forkserver, "STOP_SECONDS", 0.05)
    monkeypatch.setattr(forkserver, "command", lambda: ["sleep", "600"])
    server = forkserver.ForkServer.start()
    with pytest.raises(SandboxError, match="did not answer within"):
        await server.attach()
    assert server.process.returncode == -9


def test_it_gets_nothing_of_the_hosts_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a secret")
    assert "a secret" not in str(forkserver.clean_environment())
    assert set(forkserver.clean_environment()) <= {"PATH", "LANG", *forkserver.KEPT_VARIABLES}


class SilentTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: bytes) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True


NONSENSE = {
    "a status that is no number": {"note": "exited", "worker": "WORKER", "status": "x", "output": ""},
    "no status": {"note": "exited", "worker": "WORKER"},
    "another note": {"note": "something", "worker": "WORKER"},
    "no bytes": {"note": "relay", "worker": "WORKER", "data": "\U0001f600"},
    "no JSON": None,
}


@pytest.mark.parametrize("note", NONSENSE.values(), ids=NONSENSE)
async def test_a_supervisor_that_breaks_the_wire_is_lost_with_its_workers(note: wire.Message | None, bench: Bench) -> None:
    control = Control()
    protocol = control.protocol(lambda: None)
    greeting = asyncio.ensure_future(control.greet(SilentTransport()))
    await asyncio.sleep(0)
    protocol.data_received(b"".join(wire.encode({"hello": wire.VERSION})))
    await greeting
    worker = control.worker(bench.handler.connection())
    frames = wire.encode({**note, "worker": worker.name}) if note else [wire.frame(b"{")]
    protocol.data_received(b"".join(frames))
    assert worker.exited.result().status is None
    assert control.peer.lost
    assert control.idle


async def test_notes_about_workers_that_are_gone_are_ignored() -> None:
    server = await current()
    for worker in ("w999999", 5, None, ["x"]):
        server._on_note({"note": "exited", "worker": worker, "status": 0, "output": ""})
    assert server.alive


async def test_a_worker_name_used_twice_is_an_error(bench: Bench) -> None:
    server = await current()
    first = server.worker()
    args = {"token": "x", "dir": str(bench.scratch / "x"), "address": {"unix": str(bench.scratch / "h")}, "memory_limit": None}
    await server.spawn(first, args)
    second = server.worker()
    second.name = first.name
    with pytest.raises(SandboxError, match="there is a worker"):
        await server.spawn(second, args)
    await first.kill()


def test_the_supervisor_refuses_another_version(tmp_path: Path) -> None:
    hello = b"".join(wire.encode({"hello": wire.VERSION + 1}))
    done = subprocess.run(forkserver.command(), input=hello, capture_output=True, check=False, cwd=tmp_path)
    (answer,) = wire.Decoder().feed(done.stdout)
    assert f"version {wire.VERSION} of the wire, not {wire.VERSION + 1}" in answer["bye"]


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, wire.frame(b"{"), wire.frame(b"[]")], ids=["nothing", "noise", "no JSON", "no object"])
def test_the_supervisor_ends_when_its_host_talks_nonsense(data: bytes) -> None:
    assert subprocess.run(forkserver.command(), input=data, capture_output=True, check=False, timeout=30).stderr == b""


@pytest.mark.usefixtures("nothing_parked")
@pytest.mark.skipif(sys.platform != "linux", reason="asks another process for its limits")
async def test_a_supervisor_may_have_more_descriptors_than_its_host() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        pid = await pid_of_current()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    assert allowed == (processes.MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, processes.MAX_DESCRIPTORS))
