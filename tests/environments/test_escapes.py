"""What hostile code tries, over each road of the confined process environment; and, to show that the payloads work, over the open one."""

import textwrap
from collections.abc import AsyncIterator

import pytest

from arlm.environments import forkserver
from arlm.environments.process import ProcessREPL
from arlm.guest.confine import grade
from arlm.testing.bench import open_bench
from arlm.testing.conformance import Subject
from arlm.testing.escapes import Targets, attempt, open_targets
from arlm.testing.payloads import CORPUS, Escape
from arlm.testing.tap import Tap

CONFINED = [
    Subject(name="process-unix", environment=lambda: ProcessREPL(transport="unix", confine="require")),
    Subject(name="process-stdio", environment=lambda: ProcessREPL(transport="stdio", confine="require")),
]
NETWORKED = Subject(name="process-network", environment=lambda: ProcessREPL(network=True))
OPEN = Subject(name="process-open", environment=lambda: ProcessREPL(confine="off"))

# Payloads that must get through where nothing is closed: if they do not, the corpus has lost its teeth.
GET_THROUGH = {
    "read_host_environ", "read_credentials_in_home", "read_home_by_symlink", "read_by_subprocess", "read_another_runs_folder",
    "read_host_command_line", "connect_tcp", "connect_tcp_by_asyncio", "send_udp", "listen_tcp", "connect_unix", "send_unix_datagram",
    "connect_abstract", "kill_the_supervisor", "kill_host", "stop_host", "kill_by_pidfd", "kill_after_setsid_and_double_fork",
    "write_outside",
    "write_outside_by_rename", "write_outside_by_symlink", "change_the_context_file", "send_unix_datagram_by_pair",
    "chmod", "chmod_by_subprocess", "chmod_by_descriptor_for_reading", "change_times", "change_times_by_descriptor",
    "watch_a_closed_folder", "memory_in_a_memfd", "slow_a_group_down", "orphans_out_of_the_tree", "child_of_the_supervisor",
}  # fmt: skip
# Doors that open the network, and not other programs of the user.
OPENED_BY_NETWORK = {"connect_tcp", "connect_tcp_by_asyncio", "send_udp", "listen_tcp"}
SHUT_WITH_NETWORK = {
    "connect_unix", "send_unix_datagram", "send_unix_datagram_by_pair", "connect_abstract", "connect_docker", "guess_a_token",
    "packet_socket", "vsock_socket",
}  # fmt: skip


@pytest.fixture
async def targets() -> AsyncIterator[Targets]:
    async with open_targets() as targets:
        yield targets


async def supervisor() -> int:
    return (await forkserver.current()).process.pid


@pytest.mark.skipif(not all(grade().values()), reason="this kernel lacks a part of the confinement (see `arlm doctor`)")
@pytest.mark.parametrize("escape", CORPUS, ids=lambda escape: escape.name)
@pytest.mark.parametrize("subject", CONFINED, ids=str)
async def test_a_confined_worker_does_not_escape(subject: Subject, escape: Escape, targets: Targets) -> None:
    assert await attempt(subject, escape, targets, supervisor=await supervisor()) is None


@pytest.mark.parametrize("escape", [escape for escape in CORPUS if escape.name in GET_THROUGH], ids=lambda escape: escape.name)
async def test_the_payload_works_where_nothing_is_closed(escape: Escape, targets: Targets) -> None:
    assert await attempt(OPEN, escape, targets, supervisor=await supervisor()) is not None


@pytest.mark.skipif(not all(grade().values()), reason="this kernel lacks a part of the confinement (see `arlm doctor`)")
@pytest.mark.parametrize("name", sorted(OPENED_BY_NETWORK | SHUT_WITH_NETWORK))
async def test_network_opens_ip_and_no_unix_socket(name: str, targets: Targets) -> None:
    escape = next(escape for escape in CORPUS if escape.name == name)
    escaped = await attempt(NETWORKED, escape, targets, supervisor=await supervisor())
    assert (escaped is not None) == (name in OPENED_BY_NETWORK)


READERS = [escape for escape in CORPUS if escape.proof == "canary"]


async def said_by(readers: list[Escape], environment: ProcessREPL, targets: Targets) -> Tap:
    """Everything that crosses the wire while one worker tries payloads that look for a secret, and tells a model all that they found."""
    tap = Tap(environment)
    async with open_bench(Subject(name="tapped", environment=lambda: tap)) as bench:
        await bench.context("the context")
        told = targets.for_code(bench, await supervisor())
        for escape in readers:
            body = textwrap.indent(escape.code, "    ")
            call = f"try:\n    got = payload({told!r})\nexcept BaseException as error:\n    got = error"
            await bench.cell(f"def payload(t):\n{body}\n{call}")
            await bench.cell("print(repr(got)[:500])\nllm_query(repr(got)[:1_000_000])")
    return tap


@pytest.mark.skipif(not all(grade().values()), reason="this kernel lacks a part of the confinement (see `arlm doctor`)")
async def test_no_byte_that_leaves_a_confined_worker_has_a_secret_of_the_host(targets: Targets) -> None:
    tap = await said_by(READERS, ProcessREPL(confine="require"), targets)
    assert sum(map(len, tap.heard)) > 10_000
    assert targets.canary not in repr(tap.messages)
    assert all(targets.canary.encode() not in stream for stream in tap.heard)


async def test_the_bytes_that_leave_an_open_worker_have_it(targets: Targets) -> None:
    through = [escape for escape in READERS if escape.name in GET_THROUGH]
    tap = await said_by(through, ProcessREPL(confine="off"), targets)
    assert repr(tap.messages).count(targets.canary) >= 2 * len(through)  # printed, and told to a model


# What programs do with modes, times, owners, attributes and sockets in the course of their work.
ORDINARY = """
import asyncio, os, pathlib, shutil, socket, sqlite3, subprocess, tarfile, tempfile, threading
os.mkdir("d")
pathlib.Path("d/f").write_text("text")
shutil.copy("d/f", "g")
shutil.copy2("d/f", "h")
shutil.copytree("d", "e")
shutil.move("e", "e2")
with tarfile.open("t.tar", "w") as archive:
    archive.add("d")
with tarfile.open("t.tar") as archive:
    archive.extractall("out")
shutil.unpack_archive(shutil.make_archive("z", "zip", "d"), "zip")
pathlib.Path("g").touch()
with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile(dir=folder):
    pass
with sqlite3.connect("base.db") as base:
    base.execute("create table t (x)")
thread = threading.Thread(target=os.nice, args=(1,))
thread.start()
thread.join()
left, right = socket.socketpair()
asyncio.run(asyncio.sleep(0))
subprocess.run("cp -a d d2 && tar xf t.tar && touch -d 2001-01-01 g && chmod 600 g && mv g i && ls -la", shell=True, check=True)
print(pathlib.Path("out/d/f").read_text(), pathlib.Path("zip/f").read_text(), os.path.exists("i"))
"""


@pytest.mark.parametrize("subject", [CONFINED[0], NETWORKED], ids=str)
async def test_ordinary_work_goes_on_under_confinement(subject) -> None:
    async with open_bench(subject) as bench:
        assert (await bench.out(ORDINARY)).endswith("text text True\n")


@pytest.mark.skipif(not all(grade().values()), reason="this kernel lacks a part of the confinement (see `arlm doctor`)")
async def test_chmod_says_yes_and_does_nothing_where_a_mode_at_creation_counts() -> None:
    async with open_bench(CONFINED[0]) as bench:
        printed = await bench.out(
            "import os\nfor name, mode in (('a', 0o644), ('b', 0o755)):\n    os.close(os.open(name, os.O_CREAT | os.O_WRONLY, mode))\n"
            "os.chmod('a', 0o755)\nprint(os.access('a', os.X_OK), os.access('b', os.X_OK))"
        )
    assert printed == "False True\n"


def test_the_corpus_is_as_large_as_promised_and_its_names_are_unique() -> None:
    assert len(CORPUS) >= 60
    assert len({escape.name for escape in CORPUS}) == len(CORPUS)
    assert {escape.name for escape in CORPUS} >= GET_THROUGH
