"""What a container is made of, as the engine and the kernel say; who reaches its socket; and what exhausts it."""

import asyncio
import gc
import json
import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arlm.environments.control import Control
from arlm.environments.docker import DISK_BYTES, PIDS, DockerREPL
from arlm.environments.docker_container import EMPTY, LABEL, Plan
from arlm.environments.owner import owner
from arlm.environments.supervised import SupervisedPlace
from arlm.guest import wire
from arlm.guest.confine import grade
from arlm.testing.bench import Bench, Subject, open_bench
from arlm.testing.escapes import attempt_in
from arlm.testing.payloads_container import BESIDE, OUT
from docker_engine import Engine
from docker_image import client
from docker_proxy import over_tcp
from held import held
from unprivileged import Person, may_change_user, unprivileged

pytestmark = pytest.mark.docker

CANARY = "canary-0123456789abcdef0123456789abcdef"
MIB = 1024 * 1024
STRANGER = 54321  # a user whom nothing belongs to
USER = (65534, 65534) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
NOTHING = (None, [], {}, "", False, 0)


@asynccontextmanager
async def a_bench(engine: Engine, *, cell_timeout: float = 20.0, **options: Any) -> AsyncIterator[Bench]:
    made_of = {"image": engine.image, "engine": engine.url, **options}
    async with open_bench(Subject(name="docker", environment=lambda: DockerREPL(**made_of)), cell_timeout=cell_timeout) as bench:
        yield bench


@pytest.fixture
def unconfined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers as they are where the kernel can confine nothing: only the container holds."""
    monkeypatch.setattr(Plan, "doors", lambda self: None)


def asked_of(engine: Engine, path: str) -> dict[str, Any]:
    with client(engine.url) as asked:
        return asked.get(path).raise_for_status().json()


def inspected(engine: Engine) -> dict[str, Any]:
    """What the engine says of the one container that this process has."""
    with client(engine.url) as asked:
        (found,) = asked.get("/containers/json", params={"filters": json.dumps({"label": [f"{LABEL}={owner()}"]})}).json()
    return asked_of(engine, f"/containers/{found['Id']}/json")


@pytest.fixture
async def facts(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[dict[str, Any]]:
    for name in ("OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "ARLM_SECRET"):
        monkeypatch.setenv(name, CANARY)
    async with held(a_bench(engine)) as bench:
        await bench.context(CANARY)
        await bench.cell(f"x = {CANARY!r}")
        yield inspected(engine)


async def test_the_engine_says_that_all_is_closed(facts: dict[str, Any]) -> None:
    host = facts["HostConfig"]
    said = {
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "PidsLimit": PIDS,
        "ShmSize": 64 * MIB,
        "IpcMode": "private",
        "LogConfig": {"Type": "none", "Config": {}},
        "RestartPolicy": {"Name": "", "MaximumRetryCount": 0},
        "Ulimits": [{"Name": "core", "Hard": 0, "Soft": 0}],
    }
    assert {name: host[name] for name in said} == said
    assert host["Memory"] == host["MemorySwap"] > 0
    assert host["NanoCpus"] > 0
    assert {"/proc/kcore", "/proc/keys", "/sys/firmware"} <= set(host["MaskedPaths"])
    assert {"/proc/sys", "/proc/sysrq-trigger", "/proc/irq"} <= set(host["ReadonlyPaths"])


async def test_the_engine_says_that_nothing_was_opened(facts: dict[str, Any]) -> None:
    doors = [
        *(
            "Privileged",
            "CapAdd",
            "Binds",
            "PortBindings",
            "PublishAllPorts",
            "Devices",
            "DeviceRequests",
            "DeviceCgroupRules",
            "VolumesFrom",
        ),
        *("ExtraHosts", "Links", "GroupAdd", "PidMode", "UTSMode", "UsernsMode", "CgroupParent", "OomKillDisable", "Sysctls", "AutoRemove"),
    ]
    assert {name: facts["HostConfig"].get(name) for name in doors if facts["HostConfig"].get(name) not in NOTHING} == {}


async def test_nothing_is_mounted_but_what_code_reads_and_one_folder_of_limited_size(facts: dict[str, Any]) -> None:
    mounts = {it["Destination"]: (it["Type"], it["RW"]) for it in facts["Mounts"]}
    assert mounts == dict.fromkeys(("/arlm/guest", "/arlm/contexts", "/arlm/socket"), ("bind", False))
    assert facts["HostConfig"]["Tmpfs"] == {
        "/work": f"rw,exec,nosuid,nodev,size={DISK_BYTES},mode=0700,uid={USER[0]},gid={USER[1]}",
        "/tmp": EMPTY,
    }


async def test_processes_are_nobody_s_and_have_the_image_s_environment(facts: dict[str, Any], engine: Engine) -> None:
    assert facts["Config"]["User"] == f"{USER[0]}:{USER[1]}"
    assert facts["Config"]["Env"] == asked_of(engine, f"/images/{engine.image}/json")["Config"]["Env"]
    assert facts["Config"]["Tty"] is False
    assert facts["NetworkSettings"]["Ports"] in NOTHING
    assert list(facts["NetworkSettings"]["Networks"]) == ["none"]


async def test_nothing_secret_is_in_what_the_engine_knows(facts: dict[str, Any]) -> None:
    assert CANARY not in json.dumps(facts)
    assert set(facts["Config"]["Labels"]) == {LABEL, "arlm.run", "arlm.version"}


STATUS = "print([line.strip() for line in open('/proc/{}/status')])"


async def test_the_kernel_says_that_no_process_inside_can_gain_anything(engine: Engine, unconfined: None) -> None:
    async with a_bench(engine) as bench:
        for pid in ("self", "1"):
            lines = [
                line.partition(":\t")
                for line in json.loads((await bench.out(STATUS.format(pid))).replace("'", '"').replace("\\t", "\t"), strict=False)
            ]
            said = {name: value for name, _, value in lines}
            assert {said[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
            assert (said["NoNewPrivs"], said["Seccomp"]) == ("1", "2")
            assert said["Uid"].split() == [str(USER[0])] * 4
            assert set(said["Groups"].split()) <= {str(USER[1])}


WRITABLE = """
import os
found = set()
for folder, below, _ in os.walk("/"):
    if folder in ("/proc", "/sys"):
        below.clear()
        continue
    try:
        os.mkdir(folder + "/arlm-was-here")
    except OSError:
        continue
    os.rmdir(folder + "/arlm-was-here")
    found.add(folder)
print(sorted(found))
"""


async def test_nothing_can_be_written_but_the_work_folder_and_shared_memory(engine: Engine, unconfined: None) -> None:
    async with a_bench(engine) as bench:
        assert await bench.out(WRITABLE) == "['/dev/shm', '/work', '/work/w1']\n"


async def test_nothing_of_the_volume_can_be_written_where_files_are_uploaded(engine: Engine, unconfined: None) -> None:
    async with over_tcp(engine.url) as url, a_bench(replace(engine, url=url)) as bench:
        await bench.context("the context")
        assert await bench.out(WRITABLE) == "['/dev/shm', '/work', '/work/w1']\n"
        await bench.fails("open('/arlm/contexts/1', 'r+')", "PermissionError")


# -- the socket on this machine ---------------------------------------------------------------------------------------

CONNECT = "import socket, sys\nsocket.socket(socket.AF_UNIX).connect(sys.argv[1])"


@pytest.fixture(scope="module")
def somebody() -> Iterator[Person]:
    if os.geteuid() != 0 or not may_change_user():
        pytest.skip("only root can become another user")
    with unprivileged() as person:
        yield person


async def test_the_container_s_user_alone_may_use_the_socket(engine: Engine) -> None:
    async with a_bench(engine) as bench:
        (folder,) = (Path(it["Source"]) for it in inspected(engine)["Mounts"] if it["Destination"] == "/arlm/socket")
        for path, mode in ((folder, 0o700), (folder / "h", 0o600)):
            status = path.lstat()
            assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (mode, *USER)
        assert stat.S_IMODE(bench.scratch.stat().st_mode) == 0o700
        assert bench.scratch.stat().st_uid == os.geteuid()


@pytest.mark.parametrize("uid", [STRANGER, USER[0]])
async def test_no_other_user_of_this_machine_reaches_the_socket(engine: Engine, somebody: Person, uid: int) -> None:
    async with a_bench(engine):
        (folder,) = (it["Source"] for it in inspected(engine)["Mounts"] if it["Destination"] == "/arlm/socket")
        one = replace(somebody, uid=uid, home=Path("/"))
        assert "PermissionError" in one.run("-I", "-c", CONNECT, f"{folder}/h").stderr


# -- what exhausts it -------------------------------------------------------------------------------------------------

FILL = """
try:
    with open("fill", "wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))
except OSError as error:
    import errno, os
    print(errno.errorcode[error.errno], os.stat("fill").st_size)
"""


async def test_a_full_disk_is_an_error_in_the_cell_and_nobody_else_s(engine: Engine) -> None:
    async with a_bench(engine, disk=8 * MIB) as bench:
        word, size = (await bench.out(FILL)).split()
        assert word == "ENOSPC"
        assert 4 * MIB < int(size) <= 8 * MIB
        assert (await bench.another().run_cell("print('it goes on')", 1)).output == "it goes on\n"
        await bench.out("os.unlink('fill')")
        assert (await bench.out(FILL)).split() == [word, str(size)]


BOMB = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"


async def test_a_fork_bomb_ends_with_its_cell_and_a_neighbour_lives_on(engine: Engine) -> None:
    async with a_bench(engine, pids=100, cell_timeout=1.0) as bench:
        neighbour = bench.another()
        await neighbour.run_cell("kept = 'still there'", 1)
        assert (await bench.cell(BOMB)).stopped is not None
        assert (await neighbour.run_cell("print(kept)", 2)).output == "still there\n"
        assert await bench.out("import subprocess\nprint(subprocess.run(['true']).returncode)") == "0\n"


@pytest.mark.parametrize("transport", ["unix", "stdio"])
async def test_a_fork_bomb_that_is_alone_in_its_container_ends_with_it_or_before(engine: Engine, transport: str) -> None:
    async with a_bench(engine, pids=200, cell_timeout=1.0, transport=transport) as bench:
        await bench.context("the context")
        await bench.out("x = 1")
        ended = await bench.cell(BOMB)
        assert (ended.stopped, ended.lost) == ("timeout", ("x",))
        assert await bench.out("print(context)") == "the context\n"


async def test_a_worker_with_too_many_processes_is_ended_for_that_reason(engine: Engine) -> None:
    async with a_bench(engine) as bench:
        assert isinstance(bench.place, SupervisedPlace)
        bench.place._processes = 10  # instead of 512
        cell = await bench.cell("import subprocess\nfor _ in range(30):\n    subprocess.Popen(['sleep', '60'])\nwhile True:\n    pass")
        assert "processes" in (cell.error or "")
        assert "memory" not in (cell.error or "")


async def test_a_memory_bomb_ends_itself_and_a_neighbour_lives_on(engine: Engine) -> None:
    async with a_bench(engine, memory=192 * MIB) as bench:
        neighbour = bench.another()
        await neighbour.run_cell("kept = 'still there'", 1)
        cell = await bench.cell("taken = []\nwhile True:\n    taken.append(b'x' * (8 << 20))")
        assert cell.stopped == "exited" or str(cell.error).startswith("MemoryError")
        assert (await neighbour.run_cell("print(kept)", 2)).output == "still there\n"
        assert await bench.out("print(1)") == "1\n"


# -- what the image brings --------------------------------------------------------------------------------------------

SPOIL = "cp /bin/id /bin/become-root && chmod 4755 /bin/become-root && mkdir /data && chmod 777 /data"


@pytest.fixture(scope="module")
def spoiled(engine: Engine) -> Iterator[str]:
    """An image with a set-user-id program and a volume that all may write to."""
    image = "arlm-test-spoiled:latest"
    with client(engine.url) as asked:
        made = asked.post(
            "/containers/create",
            json={"Image": engine.image, "User": "0:0", "Cmd": ["sh", "-c", SPOIL], "HostConfig": {"NetworkMode": "none"}},
        )
        identity = made.raise_for_status().json()["Id"]
        try:
            asked.post(f"/containers/{identity}/start").raise_for_status()
            assert asked.post(f"/containers/{identity}/wait").json()["StatusCode"] == 0
            repository, _, tag = image.partition(":")
            wanted = {"container": identity, "repo": repository, "tag": tag, "changes": "VOLUME /data\nCMD []"}
            asked.post("/commit", params=wanted, json={}).raise_for_status()
        finally:
            asked.delete(f"/containers/{identity}", params={"force": True, "v": True}).raise_for_status()
        yield image
        asked.delete(f"/images/{image}", params={"force": True}).raise_for_status()


(SET_USER_ID,) = (escape for escape in OUT if escape.name == "run_set_user_id_programs")


async def test_a_set_user_id_program_of_the_image_gains_nothing(engine: Engine, spoiled: str, unconfined: None) -> None:
    async def seen(proof: str) -> bool:
        return False

    async with a_bench(engine, image=spoiled) as bench:
        assert await attempt_in(bench.repl, SET_USER_ID, {}, canary=CANARY, seen=seen) is None
    body = (
        "import sys\ndef payload(t):\n"
        + "\n".join(f"    {line}" for line in SET_USER_ID.code.splitlines())
        + "\nsys.exit(7 * bool(payload({})))"
    )
    with client(engine.url) as asked:  # as any container runs it, it works
        given = {"Image": spoiled, "User": "65534:65534", "Cmd": ["python3", "-I", "-c", body], "HostConfig": {"NetworkMode": "none"}}
        identity = asked.post("/containers/create", json=given).raise_for_status().json()["Id"]
        try:
            asked.post(f"/containers/{identity}/start").raise_for_status()
            assert asked.post(f"/containers/{identity}/wait").json()["StatusCode"] == 7
        finally:
            asked.delete(f"/containers/{identity}", params={"force": True, "v": True}).raise_for_status()


@pytest.mark.skipif(not grade()["files"], reason="this kernel has no Landlock (see `arlm doctor`)")
async def test_a_confined_cell_cannot_write_to_a_volume_of_the_image(engine: Engine, spoiled: str) -> None:
    async with a_bench(engine, image=spoiled) as bench:
        await bench.fails("open('/data/x', 'w')", "OSError")


async def test_a_volume_of_the_image_is_no_way_to_the_engine_s_disk(engine: Engine, spoiled: str, unconfined: None) -> None:
    async with a_bench(engine, image=spoiled) as bench:
        assert (await bench.cell("open('/data/x', 'w')")).error is not None


# -- what workers are forked from -------------------------------------------------------------------------------------

(OWN_MEMORY,) = (escape for escape in BESIDE if escape.name == "find_a_neighbour_s_words_in_one_s_own_memory")


@pytest.mark.parametrize("transport", ["unix", "stdio"])
async def test_a_worker_s_memory_has_nothing_of_what_its_siblings_said(engine: Engine, transport: str) -> None:
    async def seen(proof: str) -> bool:
        return False

    async with a_bench(engine, transport=transport) as bench:
        await bench.cell(f"print({CANARY!r} * 100_000)")
        assert await attempt_in(bench.another(), OWN_MEMORY, {}, canary=CANARY, seen=seen) is None


async def test_shared_memory_is_what_the_workers_of_a_container_share(engine: Engine) -> None:
    async with a_bench(engine) as bench:
        await bench.cell("import os\nos.close(os.open('/dev/shm/x', os.O_CREAT | os.O_WRONLY, 0o600))\nopen('mine', 'w').close()")
        folder = (await bench.out("import os\nprint(os.getcwd())")).strip()
        other = bench.another()
        assert (await other.run_cell("print(open('/dev/shm/x').read() == '')", 1)).output == "True\n"
        assert str((await other.run_cell(f"open('{folder}/mine')", 2)).error).startswith("PermissionError")


# -- a supervisor that lies, or says nothing --------------------------------------------------------------------------

FROZEN_SECONDS = 25.0  # more than a timeout of one second, its grace, and the time in which a supervisor shows that it lives


async def test_the_cell_of_a_container_that_stands_still_ends_after_its_timeout(engine: Engine) -> None:
    async with a_bench(engine, cell_timeout=1.0) as bench:
        await bench.out("print(1)")
        identity = inspected(engine)["Id"]
        async with bench.running("print('it runs')\nwhile True:\n    pass") as cell:
            await bench.until_streamed("it runs")
            with client(engine.url) as asked:
                asked.post(f"/containers/{identity}/pause").raise_for_status()
                ended, _ = await asyncio.wait({cell}, timeout=FROZEN_SECONDS)
                asked.post(f"/containers/{identity}/unpause")  # not there any more, where it was replaced
        assert ended


@pytest.mark.parametrize("transport", ["unix", "stdio"])
async def test_a_supervisor_that_kills_nobody_does_not_hold_up_who_leaves(
    engine: Engine, transport: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Control, "alive_seconds", 1000.0)
    async with a_bench(engine, transport=transport) as bench:
        await bench.out("1")
        with client(engine.url) as asked:
            asked.post(f"/containers/{inspected(engine)['Id']}/pause").raise_for_status()
    assert [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


class Unheard:
    """A transport that takes what is written."""

    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def get_write_buffer_size(self) -> int:
        return 0


async def greeted() -> tuple[Control, asyncio.Protocol]:
    control = Control()
    protocol = control.protocol(lambda: None)
    greeting = asyncio.ensure_future(control.greet(Unheard()))
    await asyncio.sleep(0)
    protocol.data_received(b"".join(wire.encode({"hello": wire.VERSION})))
    await greeting
    return control, protocol


@pytest.mark.parametrize("lie", ["a text", [1], {"seconds": None}])
async def test_a_supervisor_that_lies_of_cpu_time_is_not_believed(lie: object) -> None:
    control, protocol = await greeted()
    asking = asyncio.ensure_future(control.worker().cpu_seconds())
    await asyncio.sleep(0)
    protocol.data_received(b"".join(wire.encode({"id": 1, "ok": lie})))
    assert await asking == 0.0


async def test_nobody_is_told_of_a_nursery_that_fails_after_whoever_waited_was_cancelled() -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    control = (await greeted())[0]
    waiting = asyncio.ensure_future(control.nurse())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert control._nursing is not None
    control.lost("its container was removed")
    await asyncio.wait({control._nursing})
    del control, waiting
    gc.collect()
    assert complaints == []
