import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

import docker_image
from arlm.cli import containers, doctor, engine_parts
from arlm.cli.findings import Finding
from arlm.environments.docker import IMAGE
from arlm.environments.docker_engine import Engine
from arlm.environments.owner import owner
from commandline import arlm
from docker_proxy import over_tcp
from unprivileged import nobody

PASSWORD = "very-secret-word"
NO_IMAGE = "arlm-test-nobody-has-this:none"
# All is imported while this Python can still be read; then the rights go.
AS_NOBODY = """
import asyncio, dataclasses, json, os, sys
from arlm.cli import containers
asyncio.run(containers.look("unix:///nowhere"))
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
print(json.dumps([dataclasses.asdict(it) for it in asyncio.run(containers.look(sys.argv[1]))]))
"""


async def reported(url: str) -> dict[str, dict[str, Any]]:
    """What `arlm doctor --json` says of Docker, by name."""
    done = await arlm("doctor", "--json", DOCKER_HOST=url)
    assert (done.code, done.err) == (0, ""), done.err
    return {it["name"]: it for it in json.loads(done.out)["findings"] if it["area"] == "Docker"}


async def looked(url: str, image: str = NO_IMAGE) -> dict[str, Finding]:
    return {it.name: it for it in await containers.look(url, image)}


@asynccontextmanager
async def answering(folder: Path, reply: bytes) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A socket that takes a request and says `reply`, or nothing at all where that is empty; and whether one came."""
    asked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        writer.write(reply)
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(serve, folder / "s")
    async with server:
        yield f"unix://{folder}/s", asked


async def test_an_engine_is_shown_as_it_says_it_is(engine):
    with docker_image.client(engine.url) as asked:
        version, info = asked.get("/version").json(), asked.get("/info").json()
        there = asked.get(f"/images/{IMAGE}/json").is_success
    found = await reported(engine.url)
    facts = found["engine"]["facts"]
    assert (facts["version"], facts["api"], facts["url"]) == (version["Version"], version["ApiVersion"], engine.url)
    assert found["machine"]["facts"]["storage"] == info["Driver"]
    assert found["machine"]["facts"]["cgroup_version"] == info["CgroupVersion"]
    runtimes = found["runtimes"]["facts"]
    assert {runtimes["default"], *runtimes["others"]} == {it for it in engine.runtimes if not it.startswith("io.containerd.")}
    limits = {name: found[name]["facts"]["limited"] for name in ("memory", "swap", "processes", "CPUs")}
    assert limits == {"memory": info["MemoryLimit"], "swap": info["SwapLimit"], "processes": info["PidsLimit"], "CPUs": info["CpuCfsQuota"]}
    assert found["image"]["facts"] == {"image": IMAGE, "there": there}
    assert ("container" in found) == there
    assert found["containers"]["facts"]["grade"] in ("full", "walls", "partial")


async def test_where_the_image_is_there_a_container_is_tried_and_is_gone_again(engine):
    found = await looked(engine.url, engine.image)
    assert found["container"].status == "ok", found["container"].text
    assert "its container is gone after the run" in found["container"].text
    assert 0 < cast("float", found["container"].facts["first_cell_s"]) <= cast("float", found["container"].facts["total_s"])
    with docker_image.client(engine.url) as asked:
        filters = json.dumps({"label": [f"arlm.owner={owner()}"]})
        assert asked.get("/containers/json", params={"all": "1", "filters": filters}).json() == []


async def test_the_road_of_an_engine_behind_tcp_is_its_streams(engine):
    async with over_tcp(engine.url) as url:
        found = await looked(url, engine.image)
    assert found["road"].facts == {"transport": "stdio", "files": "uploaded", "why": "the engine is not on this machine"}
    assert found["container"].status == "ok", found["container"].text


async def test_what_is_not_there_is_not_pulled_and_no_container_is_tried(engine):
    found = await looked(engine.url)
    assert found["image"].text.startswith(f"{NO_IMAGE} will be pulled at first use")
    assert "container" not in found


async def test_a_container_that_takes_too_long_is_given_up_and_said(engine, monkeypatch):
    monkeypatch.setattr(containers, "CONTAINER_S", 0.0)
    found = await looked(engine.url, engine.image)
    assert (found["container"].status, found["container"].text) == ("failed", "no cell ran in a container within 0 s")


async def test_without_an_engine_the_doctor_says_so_and_is_content(tmp_path):
    found = await reported(f"unix://{tmp_path}/none")
    assert list(found) == ["engine"]
    assert found["engine"]["status"] == "missing"
    assert found["engine"]["facts"] == {"found": False, "grade": "none"}
    assert "start it, or set DOCKER_HOST" in found["engine"]["text"]
    assert f"{tmp_path}/none" in found["engine"]["text"]


async def test_an_engine_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "ENGINE_S", 0.5)
    async with answering(tmp_path, b"") as (url, asked):
        [found] = await containers.look(url)
        assert asked.is_set()
    assert (found.name, found.status) == ("engine", "missing")
    assert found.text.startswith(f"{url} did not answer within 0.5 s: see whether `docker info` does")


async def test_something_else_that_answers_is_no_engine_and_cannot_tell_a_terminal_what_to_do(tmp_path):
    page = b"\x1b[2Jgo\naway"
    async with answering(tmp_path, b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s" % (len(page), page)) as (url, _):
        [found] = await containers.look(url)
    assert (found.name, found.status) == ("engine", "failed")
    assert found.text.startswith(f"{url} is no Docker engine that lets this user in")
    assert "\\x1b[2Jgo away" in found.text


async def test_what_answers_with_other_json_is_no_engine(tmp_path):
    async with answering(tmp_path, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]") as (url, _):
        [found] = await containers.look(url)
    assert found.status == "failed"
    assert "is no Docker engine" in found.text


async def test_somebody_without_permission_is_told_of_the_group(tmp_path):
    socket = tmp_path / "s"
    async with await asyncio.start_unix_server(lambda _reader, writer: writer.close(), socket):
        os.chmod(socket, 0)
        command = [sys.executable, "-c", AS_NOBODY, f"unix://{socket}", str(nobody())]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout)
    assert (found["name"], found["status"]) == ("engine", "missing")
    assert "this user may not use the Docker engine: add them to the group `docker`" in found["text"]


async def test_without_aiodocker_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiodocker", None)
    [found] = await containers.look()
    assert found.status == "missing"
    assert "pip install 'arlm[docker]'" in found.text


def test_aiodocker_is_a_part_that_may_be_missing(monkeypatch):
    assert {it.name: it.status for it in doctor.parts()}["aiodocker"] == "ok"
    monkeypatch.setattr(doctor, "installed_version", lambda part: None if part == "aiodocker" else "1.0")
    part = next(it for it in doctor.parts() if it.name == "aiodocker")
    assert (part.status, part.text) == ("missing", "not installed; docker needs it: pip install 'arlm[docker]'")


@pytest.mark.parametrize("kind", ["tcp", "bogus"])
async def test_no_credentials_of_an_engines_address_are_shown(kind):
    done = await arlm("doctor", "--json", DOCKER_HOST=f"{kind}://name:{PASSWORD}@127.0.0.1:9")
    assert done.code == 0
    assert PASSWORD not in done.out + done.err
    assert f"{kind}://127.0.0.1:9" in done.out


def test_an_engines_address_is_shown_without_credentials_where_it_answers():
    found = said(url=f"tcp://name:{PASSWORD}@far.example:2375")
    assert found["engine"].facts["url"] == "tcp://far.example:2375"
    assert PASSWORD not in found["engine"].text


LIMITS = ("MemoryLimit", "SwapLimit", "PidsLimit", "CpuCfsQuota")
SECCOMP = "name=seccomp,profile=builtin"


def made_up(url: str = "unix:///var/run/docker.sock", **info: Any) -> Engine:
    """An engine on this machine that keeps everything, but for what is said."""
    usual: dict[str, Any] = {
        "ServerVersion": "28.1.1",
        "OSType": "linux",
        "OperatingSystem": "Some Linux",
        "KernelVersion": os.uname().release,
        "Name": os.uname().nodename,
        "Architecture": "x86_64",
        "NCPU": 8,
        "MemTotal": 16 * 1024**3,
        "Driver": "overlay2",
        "CgroupVersion": "2",
        "CgroupDriver": "systemd",
        "DefaultRuntime": "runc",
        "Runtimes": {"io.containerd.runc.v2": {"path": "runc"}, "runc": {"path": "runc"}},
        "SecurityOptions": ["name=apparmor", SECCOMP, "name=cgroupns"],
        "Warnings": None,
        **dict.fromkeys(LIMITS, True),
    }
    return Engine(docker=cast("Any", None), url=url, info={**usual, **info})


def said(url: str = "unix:///var/run/docker.sock", **info: Any) -> dict[str, Finding]:
    engine = made_up(url, **info)
    return {it.name: it for it in (*engine_parts.findings_of(engine, "1.49"), engine_parts.grade_of(engine))}


def test_an_engine_that_keeps_everything_is_full():
    found = said()
    assert {it.status for it in found.values()} == {"ok", "info"}
    assert found["containers"].facts == {"grade": "full", "not_limited": [], "own_kernel": False}
    assert found["engine"].text.startswith("28.1.1, API 1.49, ")
    assert found["machine"].text == (
        f"Some Linux, kernel {os.uname().release} on x86_64, 8 CPUs, 16.0 GiB; storage overlay2; control groups of version 2 (systemd)"
    )
    assert found["runtimes"].text == "runc by default"
    assert found["AppArmor, SELinux"].facts == {"there": ["AppArmor"]}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere an engine is always in a virtual machine")
def test_an_engine_on_this_kernel_gets_a_mounted_socket():
    assert said()["engine"].facts["here"] is True
    assert said()["road"].text.startswith("frames over a mounted Unix socket, contexts mounted, not copied:")
    assert said(DefaultRuntime="kata")["road"].facts == {
        "transport": "stdio",
        "files": "mounted",
        "why": "the runtime kata has a kernel of its own, and sees this machine's files",
    }
    assert "it is not known that the runtime odd sees this machine's files" in said(DefaultRuntime="odd")["road"].text


@pytest.mark.parametrize(
    ("key", "name", "advice"),
    [
        ("MemoryLimit", "memory", "cgroup_enable=memory"),
        ("SwapLimit", "swap", "swapaccount=1"),
        ("PidsLimit", "processes", "CONFIG_CGROUP_PIDS"),
        ("CpuCfsQuota", "CPUs", "CONFIG_CFS_BANDWIDTH"),
    ],
)
def test_a_limit_that_is_not_kept_is_named_with_what_to_do(key, name, advice):
    found = said(**{key: False})
    assert (found[name].status, found[name].facts) == ("missing", {"limited": False})
    assert advice in found[name].text
    assert [it.name for it in found.values() if it.status == "missing"] == [name, "containers"]
    assert found["containers"].facts["grade"] == "walls"
    assert found["containers"].text.endswith(f"not every limit is kept: {name}")


def test_a_rootless_engine_is_told_of_delegation():
    found = said(SecurityOptions=[SECCOMP, "name=rootless"], **dict.fromkeys(LIMITS, False))
    assert found["users"].facts == {"rootless": True, "mapped": False}
    assert found["road"].facts["transport"] == "stdio"
    assert all("Delegate=cpu cpuset io memory pids" in found[name].text for name in ("memory", "swap", "processes", "CPUs"))
    assert found["containers"].facts["not_limited"] == ["memory", "swap", "processes", "CPUs"]
    assert found["AppArmor, SELinux"].status == "info"


def test_mapped_users_are_said():
    assert said(SecurityOptions=[SECCOMP, "name=userns"])["users"].facts == {"rootless": False, "mapped": True}


def test_where_selinux_keeps_containers_from_files_they_are_uploaded():
    found = said(SecurityOptions=[SECCOMP, "name=selinux"])
    why = "SELinux keeps containers from this machine's files"
    assert found["road"].facts == {"transport": "stdio", "files": "uploaded", "why": why}
    assert found["AppArmor, SELinux"].facts == {"there": ["SELinux"]}


def test_an_engine_of_docker_desktop_is_in_a_virtual_machine():
    found = said(OperatingSystem="Docker Desktop", Name="docker-desktop", KernelVersion="6.10.14-linuxkit")
    assert "in a virtual machine" in found["engine"].text
    assert found["engine"].facts["here"] is False
    assert found["road"].facts == {"transport": "stdio", "files": "uploaded", "why": "the engine is not on this machine"}
    assert found["containers"].facts["grade"] == "full"


def test_gvisor_by_default_is_noted_as_stronger():
    found = said(DefaultRuntime="runsc", Runtimes={"runc": {"path": "runc"}, "runsc": {"path": "runsc"}})
    assert found["runtimes"].facts == {"default": "runsc", "others": ["runc"], "own_kernel": True}
    assert found["containers"].facts["grade"] == "full"
    assert "runsc is stronger than that" in found["containers"].text


def test_gvisor_beside_the_default_is_offered():
    text = said(Runtimes={"runc": {}, "runsc": {"path": "runsc"}})["runtimes"].text
    assert "environment_options={'runtime': 'runsc'} gives each container a kernel of its own" in text
    assert "without limits" not in text
    told = said(Runtimes={"runc": {}, "runsc": {"runtimeArgs": ["--ignore-cgroups"]}})["runtimes"].text
    assert "without limits: the engine gives it --ignore-cgroups" in told


def test_a_runtime_that_is_told_to_ignore_groups_keeps_no_limit():
    found = said(DefaultRuntime="runsc", Runtimes={"runsc": {"runtimeArgs": ["--platform=systrap", "--ignore-cgroups"]}})
    assert "the runtime runsc is told --ignore-cgroups" in found["memory"].text
    assert found["containers"].facts["grade"] == "walls"


@pytest.mark.parametrize(
    ("options", "told"),
    [(["name=seccomp,profile=unconfined"], "seccomp-profile unconfined; take that out"), (None, "CONFIG_SECCOMP_FILTER")],
)
def test_without_seccomp_the_grade_is_partial(options, told):
    found = said(SecurityOptions=options)
    assert (found["seccomp profile"].status, found["seccomp profile"].facts["filters"]) == ("missing", False)
    assert told in found["seccomp profile"].text
    assert found["containers"].facts["grade"] == "partial"
    assert "inputs and models that you trust" in found["containers"].text


def test_a_kernel_of_its_own_needs_no_filter():
    found = said(SecurityOptions=[], DefaultRuntime="kata-runtime")
    assert found["seccomp profile"].status == "ok"
    assert found["containers"].facts["grade"] == "full"


def test_an_engine_of_windows_containers_has_none_for_arlm():
    found = list(engine_parts.findings_of(made_up(OSType="windows"), "1.49"))
    assert [it.name for it in found] == ["engine"]
    assert (found[0].status, found[0].facts["grade"]) == ("missing", "none")
    assert "switch it to Linux containers" in found[0].text


def test_warnings_are_shown_a_line_each_and_harmless_to_a_terminal():
    warnings = ["WARNING: No swap limit support", "WARNING: two\nlines \x1b[31mred", *(f"more {number}" for number in range(20))]
    told = [it.text for it in engine_parts.findings_of(made_up(Warnings=warnings), "1.49") if it.name == "the engine warns"]
    assert told[:2] == ["No swap limit support", "two lines \\x1b[31mred"]
    assert len(told) == engine_parts.MOST_WARNINGS


def test_an_engine_that_says_nothing_of_itself_is_no_error_and_keeps_nothing():
    engine = Engine(docker=cast("Any", None), url="unix:///s", info={})
    assert next(engine_parts.findings_of(engine, "1.41")).text.startswith("unknown, API 1.41")
    assert engine_parts.grade_of(engine).facts["not_limited"] == ["memory", "swap", "processes", "CPUs"]
    assert engine_parts.grade_of(engine).facts["grade"] == "partial"
