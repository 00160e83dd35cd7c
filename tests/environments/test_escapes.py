"""What hostile code tries, over each road of the confined process environment; and, to show that the payloads work, over the open one."""

from collections.abc import AsyncIterator

import pytest

from arlm.environments import forkserver
from arlm.environments.process import ProcessREPL
from arlm.guest.confine import grade
from arlm.testing.conformance import Subject
from arlm.testing.escapes import CORPUS, Escape, Targets, attempt, open_targets

CONFINED = [
    Subject(name="process-unix", environment=lambda: ProcessREPL(transport="unix", confine="require")),
    Subject(name="process-stdio", environment=lambda: ProcessREPL(transport="stdio", confine="require")),
]
OPEN = Subject(name="process-open", environment=lambda: ProcessREPL(confine="off"))

# Payloads that must get through where nothing is closed: if they do not, the corpus has lost its teeth.
GET_THROUGH = {
    "read_host_environ", "read_credentials_in_home", "read_home_by_symlink", "read_by_subprocess", "read_another_runs_folder",
    "read_host_command_line", "connect_tcp", "connect_tcp_by_asyncio", "send_udp", "listen_tcp", "connect_unix", "send_unix_datagram",
    "connect_abstract", "kill_the_supervisor", "kill_host", "stop_host", "kill_by_pidfd", "kill_after_setsid_and_double_fork",
    "write_outside",
    "write_outside_by_rename", "write_outside_by_symlink", "change_the_context_file",
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
async def test_a_confined_worker_does_not_escape(subject, escape: Escape, targets: Targets) -> None:
    assert await attempt(subject, escape, targets, supervisor=await supervisor()) is None


@pytest.mark.parametrize("escape", [escape for escape in CORPUS if escape.name in GET_THROUGH], ids=lambda escape: escape.name)
async def test_the_payload_works_where_nothing_is_closed(escape: Escape, targets: Targets) -> None:
    assert await attempt(OPEN, escape, targets, supervisor=await supervisor()) is not None


def test_the_corpus_is_as_large_as_promised_and_its_names_are_unique() -> None:
    assert len(CORPUS) >= 60
    assert len({escape.name for escape in CORPUS}) == len(CORPUS)
    assert {escape.name for escape in CORPUS} >= GET_THROUGH
