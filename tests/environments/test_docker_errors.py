"""What cannot be had of a Docker engine is an error that says what to do, and nothing is left of the attempt."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import arlm
from arlm.environments import docker_engine, docker_rooms
from arlm.environments.docker import DockerREPL
from arlm.environments.docker_box import Box
from arlm.testing.scripted import ScriptedLM
from docker_engine import Engine
from docker_image import ensure_image
from docker_places import docker, final, image_with, left_on, road

pytestmark = pytest.mark.docker

NOBODY = 65534


@pytest.fixture(autouse=True)
def nothing_is_left_on_the_engine(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "engine" in request.fixturenames:
        assert left_on(request.getfixturevalue("engine").url) == []


async def refusal(environment: DockerREPL) -> str:
    """The words of the SandboxError that a run ends with before anything was asked of its model."""
    with pytest.raises(arlm.SandboxError) as caught:
        await arlm.run("q", context="c" * 100_000, model=ScriptedLM(), environment=environment)
    return str(caught.value)


async def answers(environment: DockerREPL) -> bool:
    return (await arlm.run("q", model=ScriptedLM([final("'yes'")]), environment=environment)).answer == "yes"


# -- the engine --------------------------------------------------------------------------------------------------------


async def test_no_engine_where_docker_host_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiodocker")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    words = await refusal(DockerREPL())
    assert words.startswith("no Docker engine answers: start it, or set DOCKER_HOST to where it is")
    assert f"{tmp_path}/none.sock" in words


async def test_no_engine_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aiodocker = pytest.importorskip("aiodocker")
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(aiodocker.docker, "_sock_search_paths", [tmp_path / "docker.sock"])
    assert (await refusal(DockerREPL())).startswith("no Docker engine was found: install Docker and start it, or set DOCKER_HOST")


async def test_no_engine_behind_a_port() -> None:
    pytest.importorskip("aiodocker")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    assert (await refusal(DockerREPL(engine=url))).startswith("no Docker engine answers: start it, or set DOCKER_HOST")


@pytest.fixture
def contexts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the docker command's settings, whose current context is an engine at /far/away."""
    folder = tmp_path / ".docker"
    meta = folder / "contexts" / "meta" / hashlib.sha256(b"far").hexdigest()
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text('{"Name": "far", "Endpoints": {"docker": {"Host": "unix:///far/away"}}}')
    (folder / "config.json").write_text('{"currentContext": "far"}')
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return folder


async def test_docker_host_goes_before_the_current_context(contexts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiodocker")
    assert "/far/away" in await refusal(DockerREPL())
    monkeypatch.setenv("DOCKER_HOST", f"unix://{contexts}/none.sock")
    assert f"{contexts}/none.sock" in await refusal(DockerREPL())
    assert "/given" in await refusal(DockerREPL(engine="unix:///given"))


async def test_a_context_that_cannot_be_used_is_a_config_error(contexts: Path) -> None:
    pytest.importorskip("aiodocker")
    (contexts / "config.json").write_text('{"currentContext": "gone"}')
    with pytest.raises(arlm.ConfigError, match=r"the current Docker context cannot be used: .*gone"):
        await arlm.run("q", model=ScriptedLM(), environment=DockerREPL())


ADDRESSES = ["nonsense", "ftp://127.0.0.1", "/var/run/docker.sock", "tcp://", "tcp://127.0.0.1", "tcp://[::1", "tcp://127.0.0.1:99999"]


@pytest.mark.parametrize("url", ADDRESSES)
async def test_an_address_that_is_none_is_a_config_error(url: str) -> None:
    pytest.importorskip("aiodocker")
    with pytest.raises(arlm.ConfigError, match=re.escape(f"the address of the Docker engine, '{url}', cannot be used")):
        await arlm.run("q", model=ScriptedLM(), environment=DockerREPL(engine=url))


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("text/html", "<html>", "what answers at {url} is no Docker engine: TypeError: "),
        ("application/json", "{}", "what answers at {url} is no Docker engine: KeyError: "),
        ("application/json", "[]", "what answers at {url} is no Docker engine: TypeError: "),
        ("application/json", "{", "what answers at {url} is no Docker engine: JSONDecodeError: "),
    ],
)
async def test_what_is_no_engine_is_told_from_one(kind: str, body: str, words: str) -> None:
    pytest.importorskip("aiodocker")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert (await refusal(DockerREPL(engine=url))).startswith(words.format(url=url))


async def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiodocker", None)  # as Python marks what cannot be imported
    with pytest.raises(arlm.ConfigError, match=r"pip install 'arlm\[docker\]'"):
        await arlm.run("q", model=ScriptedLM(), environment="docker")


AS_NOBODY = f"""
import asyncio, os, sys
import aiodocker
import arlm
from arlm.environments.docker import DockerREPL
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
try:
    asyncio.run(DockerREPL(engine=sys.argv[1]).sweep())
except arlm.SandboxError as error:
    print(error)
"""


def test_without_permission_it_says_how_to_get_it() -> None:
    pytest.importorskip("aiodocker")
    outer = os.environ["PYTEST_DEBUG_TEMPROOT"]  # the tests' own is closed to others
    with tempfile.TemporaryDirectory(dir=outer) as folder, socket.socket(socket.AF_UNIX) as server:
        path = Path(folder, "docker.sock")
        server.bind(str(path))
        server.listen()
        Path(folder).chmod(0o711)
        path.chmod(0)
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, f"unix://{path}"], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("this user may not use the Docker engine: add them to the group `docker`"), done


async def test_without_a_descriptor_for_it_the_engine_is_not_said_to_be_down(engine: Engine) -> None:
    async with docker_engine.open_engine(engine.url):  # with it, what belongs to the loop or the process is there
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        os.close(free := os.dup(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            with pytest.raises(arlm.SandboxError, match=r"could not be asked what it is: Too many open files; raise .* \(ulimit -n\)"):
                await docker_engine.connect(engine.url)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_folder_that_cannot_be_made_is_named(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(arlm.SandboxError, match=f"no folder could be made for the container in {tmp_path}/gone/docker: .*set TMPDIR"):
        await docker_rooms.open_room(docker(engine)._rooms.plan, engine.url, None, tmp_path / "gone" / "docker")


async def test_a_mounted_socket_cannot_be_had_elsewhere(engine: Engine) -> None:
    with road("elsewhere", engine) as options:
        words = await refusal(docker(engine, transport="unix", **options))
    assert words == "transport='unix' cannot be had: the Docker engine is not on this machine, or maps users; leave it out, or use 'stdio'"


# -- the image ---------------------------------------------------------------------------------------------------------


async def test_an_image_that_cannot_be_pulled_is_named_with_what_to_do(engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    image = f"127.0.0.1:{port}/nobody/nothing:1"
    words = await refusal(docker(engine, image=image))
    assert words.startswith(f"the image '{image}' is not on the Docker engine and could not be pulled: ")
    assert "connection refused" in words
    assert "pull, load or build it there, or name one that is there by the environment's option `image`" in words


async def test_what_is_no_name_of_an_image_is_an_error(engine: Engine) -> None:
    words = await refusal(docker(engine, image="Not A Name!"))
    assert "invalid reference format" in words


async def test_an_image_without_python_says_so(engine: Engine) -> None:
    with image_with(engine, {"/bin/nothing": ""}, base=None) as image:
        words = await refusal(docker(engine, image=image))
    assert words == f"the image '{image}' has no Python: neither python3 nor python can be started in it; it needs 3.9 or later"


async def test_python_may_be_called_python_alone(engine: Engine) -> None:
    assert await answers(docker(engine, image=ensure_image(engine.url, names=("python",))))


@pytest.mark.parametrize("transport", ["unix", "elsewhere"])
async def test_what_a_python_says_that_is_none_stands_in_the_error(transport: str, engine: Engine) -> None:
    script = "#!/bin/sh\necho 'of no use' >&2\nexit 3\n"
    with image_with(engine, {"/bin/python3": script}, base=engine.image) as image, road(transport, engine) as options:
        words = await refusal(docker(engine, image=image, **options))
    assert "its container ended with status 3: of no use" in words


async def test_a_python_that_greets_is_told_from_a_supervisor(engine: Engine) -> None:
    script = "#!/bin/sh\necho 'Welcome to this image'\nexec /bin/python \"$@\"\n"
    with image_with(engine, {"/bin/python3": script}, base=engine.image) as image:
        words = await refusal(docker(engine, image=image))
    assert "it said what is no message of a supervisor, such as a greeting" in words


async def test_a_python_that_is_too_old_says_so(engine: Engine) -> None:
    old = "#!/bin/sh\nexec /bin/python -c \"import sys, runpy; sys.version_info = (3, 8, 1, 'final', 0); sys.argv = ['$2']; sys.path.insert(0, '$2'); runpy.run_path('$2', run_name='__main__')\"\n"  # noqa: E501
    with image_with(engine, {"/bin/python3": old}, base=engine.image) as image:
        words = await refusal(docker(engine, image=image))
    assert "3.9" in words, words


# -- what the engine refuses -------------------------------------------------------------------------------------------


async def test_an_unknown_runtime_is_named(engine: Engine) -> None:
    words = await refusal(docker(engine, runtime="nonesuch"))
    assert words.endswith("nonesuch (`docker info` lists the engine's runtimes; option `runtime`)")


async def test_an_unknown_network_is_named(engine: Engine) -> None:
    words = await refusal(docker(engine, network="nonesuch"))
    assert words.endswith("network nonesuch not found (`docker network ls` lists the engine's networks; option `network`)")


async def test_a_mount_whose_source_is_missing_is_named(engine: Engine, tmp_path: Path) -> None:
    words = await refusal(docker(engine, mounts=[f"{tmp_path}/nonesuch:/data"]))
    assert words.endswith(f"{tmp_path}/nonesuch (the engine's machine does not have it; option `mounts`)")


async def test_a_mount_over_a_file_of_the_image_is_an_error(engine: Engine, tmp_path: Path) -> None:
    words = await refusal(docker(engine, mounts=[f"{tmp_path}:/bin/python3"]))
    assert "/bin/python3" in words or "not a directory" in words.lower()


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine sees nothing of this machine's files, and says otherwise: it is in a container of its own, for instance."""
    mounts = Box.mounts

    def elsewhere(box: Box, labels: dict[str, str]) -> list[dict[str, Any]]:
        return [{**mount, "Source": f"/nowhere{mount['Source']}"} if mount["Type"] == "bind" else mount for mount in mounts(box, labels)]

    monkeypatch.setattr(Box, "mounts", elsewhere)


async def test_where_the_engine_does_not_see_files_after_all_they_are_copied(engine: Engine, unseen: None) -> None:
    model = ScriptedLM([final("str(len(context))")])
    assert (await arlm.run("q", context="c" * 100_000, model=model, environment=docker(engine))).answer == "100000"


async def test_a_mounted_socket_that_the_engine_does_not_see_is_an_error(engine: Engine, unseen: None) -> None:
    assert "bind source path does not exist: /nowhere" in await refusal(docker(engine, transport="unix"))


# -- options -----------------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"transport": "tcp"}, "transport must be 'unix' or 'stdio', not 'tcp'"),
    ({"cpus": 0}, "cpus must be a number from 0.01 to as many CPUs as the engine has, not 0"),
    ({"cpus": True}, "cpus must be"),
    ({"cpus": float("nan")}, "cpus must be"),
    ({"cpus": 1e300}, "cpus must be"),
    ({"image": " "}, "image must be a name, not ' '"),
    ({"runtime": ""}, "runtime must be a name"),
    ({"engine": ""}, "engine must be a URL"),
    ({"network": None}, "network must be True, False or the name of a network"),
    ({"memory": 1024}, "memory must be a whole number of bytes, at least 67,108,864, not 1024"),
    ({"memory": "1g"}, "memory must be a whole number"),
    ({"pids": 1}, "pids must be a whole number of at least 16"),
    ({"disk": 0}, "disk must be a whole number"),
    ({"pool": -1}, "pool must be a whole number of at least 0"),
    ({"user": "root"}, "user must be UID or 'UID:GID' in numbers, not 'root'"),
    ({"user": -1}, "user must be"),
    ({"user": True}, "user must be"),
    ({"user": 1.5}, "user must be"),
    ({"user": "1:"}, "user must be"),
    ({"mounts": "/a:/b"}, 'mounts is a list such as ["/data:/data", "/out:/out:rw"], not \'/a:/b\''),
    ({"mounts": None}, "mounts is a list"),
    ({"mounts": {"/a": "/b"}}, "mounts is a list"),
    ({"mounts": ["/a"]}, "mounts must be a list of 'SOURCE:TARGET'"),
    ({"mounts": ["a:/b"]}, "absolute paths"),
    ({"mounts": ["/a:/b:rx"]}, "mounts must be"),
    ({"mounts": ["/a:/work"]}, "/work is needed for the container itself; mount it elsewhere"),
    ({"mounts": ["/a:/arlm/guest"]}, "/arlm/guest is needed for the container itself"),
    ({"mounts": ["/a:/x/../proc"]}, "/x/../proc is needed for the container itself"),
    ({"mounts": ["/a:/"]}, "is needed for the container itself"),
    ({"mounst": []}, "mounts"),
]


@pytest.mark.parametrize(("options", "words"), WRONG, ids=lambda each: repr(each)[:40])
async def test_a_wrong_option_is_a_config_error_before_anything_is_started(options: dict[str, Any], words: str) -> None:
    with pytest.raises(arlm.ConfigError) as caught:
        await arlm.run("q", model=ScriptedLM(), environment="docker", environment_options=options)
    assert words in str(caught.value)


async def test_a_worker_cannot_have_more_memory_than_its_container() -> None:
    with pytest.raises(arlm.ConfigError, match=r"memory_limit is 200,000,000 bytes, and the container may have 100,000,000"):
        await arlm.run("q", model=ScriptedLM(), environment=DockerREPL(memory=100_000_000), memory_limit=200_000_000)
