"""What a user asks for is what a container has: doors that were opened, limits, and who its processes are."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arlm.testing.bench import open_bench
from docker_engine import Engine
from docker_places import containers, image_with, left_on, road, subject

pytestmark = pytest.mark.docker

MIB = 1024 * 1024
USER = 12345


@pytest.fixture(autouse=True)
def nothing_is_left_on_the_engine(engine: Engine) -> Iterator[None]:
    yield
    assert left_on(engine.url) == []


async def test_limits_are_what_was_asked_for(engine: Engine) -> None:
    async with open_bench(subject(engine, memory=100 * MIB, cpus=0.5, pids=50, disk=3 * MIB)) as bench:
        await bench.out("1")
        (container,) = containers(engine.url)
    host = container["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"], host["PidsLimit"]) == (100 * MIB, 100 * MIB, 500_000_000, 50)
    assert f"size={3 * MIB}," in host["Tmpfs"]["/work"]


async def test_limits_that_nobody_asked_for_leave_half_the_memory_and_a_cpu_to_others(engine: Engine) -> None:
    async with open_bench(subject(engine)) as bench:
        await bench.out("1")
        (container,) = containers(engine.url)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert container["HostConfig"]["Memory"] == pytest.approx(whole / 2, rel=0.01)
    assert container["HostConfig"]["NanoCpus"] == max(1, (os.cpu_count() or 1) - 1) * 10**9


@pytest.mark.parametrize("user", [USER, str(USER), f"{USER}:{USER + 1}"])
@pytest.mark.parametrize("transport", ["unix", "elsewhere"])
async def test_processes_are_the_user_s_who_was_asked_for(user: Any, transport: str, engine: Engine) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give another user the socket and the contexts")
    group = USER + 1 if ":" in str(user) else USER
    with road(transport, engine) as options:
        async with open_bench(subject(engine, user=user, **options)) as bench:
            await bench.context("c" * 100_000)
            assert await bench.out("import os\nos.getuid(), os.getgid(), len(context)") == f"({USER}, {group}, 100000)\n"


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """One that is mounted for reading, one for writing, for everybody."""
    made = {name: tmp_path / name for name in ("read", "written")}
    for path in made.values():
        path.mkdir()
        path.chmod(0o777)
        (path / "file").write_text(path.name)
    return made


async def test_mounts_are_there_for_reading_or_for_writing(engine: Engine, folders: dict[str, Path]) -> None:
    mounts = [f"{folders['read']}:/data", f"{folders['read']}:/tmp:ro", f"{folders['written']}:/out:rw"]
    async with open_bench(subject(engine, mounts=mounts)) as bench:
        assert await bench.out("[open(f'{folder}/file').read() for folder in ('/data', '/tmp', '/out')]") == "['read', 'read', 'written']\n"
        await bench.fails("open('/data/x', 'w')", "OSError")
        await bench.fails("open('/tmp/x', 'w')", "OSError")
        await bench.out("print(open('/out/x', 'w').write('there'))")
    assert (folders["written"] / "x").read_text() == "there"
    assert os.listdir(folders["read"]) == ["file"]


CONNECT = "import socket\nsocket.create_connection(('127.0.0.1', {port}), 5).close()"


async def test_a_network_is_reached_where_one_was_asked_for_and_only_there(engine: Engine) -> None:
    reached = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        code = CONNECT.format(port=server.sockets[0].getsockname()[1])
        async with open_bench(subject(engine)) as bench:
            await bench.fails(code, "PermissionError")
        assert not reached.is_set()
        async with open_bench(subject(engine, network="host")) as bench:
            await bench.out(code)
        assert reached.is_set()


async def test_network_true_is_the_default_of_the_engine(engine: Engine) -> None:
    async with open_bench(subject(engine, network=True)) as bench:
        assert await bench.out("import socket\nsocket.socket().close()") == ""
        (container,) = containers(engine.url)
    assert container["HostConfig"]["NetworkMode"] == "default"


@pytest.mark.parametrize("transport", ["unix", "elsewhere"])
async def test_an_image_may_want_volumes_where_others_have_their_folders(transport: str, engine: Engine, folders: dict[str, Path]) -> None:
    wanted = "VOLUME /work/ /tmp/ /data/ /arlm/contexts /arlm/socket"
    with image_with(engine, {}, base=engine.image, changes=wanted) as image, road(transport, engine) as options:
        async with open_bench(subject(engine, image=image, mounts=[f"{folders['read']}:/data"], **options)) as bench:
            await bench.context("c" * 100_000)
            assert await bench.out("len(context), open('x', 'w').write('there'), open('/data/file').read()") == "(100000, 5, 'read')\n"
            await bench.fails("open('/tmp/x', 'w')", "OSError")
