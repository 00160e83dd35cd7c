"""A host whose user is not root: its containers are that user's, or another's to whom files are copied."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from docker_engine import Engine
from docker_places import left_on
from docker_proxy import over_socket
from unprivileged import Person, may_change_user, unprivileged

pytestmark = pytest.mark.docker

UID = 54321  # neither root nor nobody
HOST = """
import asyncio, json, sys
from pathlib import Path
import arlm
from arlm.environments.docker import DockerREPL
from arlm.environments.owner import owner
from arlm.testing.scripted import ScriptedLM

CELL = "import os\\nopen('x', 'w').close()\\nwho = os.getuid(), os.getgid(), len(context), os.path.exists('/arlm/socket/h')"
TURN = f"```repl\\n{CELL}\\nanswer.update(content=str(who), ready=True)\\n```"
file = Path("context")
file.write_text("c" * 100_000)
file.chmod(0o600)
try:
    result = arlm.run_sync("q", context=file, model=ScriptedLM([TURN]), environment=DockerREPL(**json.loads(sys.argv[1])))
    print(result.answer, owner())
except arlm.SandboxError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def somebody() -> Iterator[Person]:
    if os.geteuid() != 0:
        with unprivileged() as person:
            yield person
        return
    if not may_change_user():
        pytest.skip("this process cannot become another user")
    with unprivileged() as person:
        os.chown(person.home, UID, UID)
        yield replace(person, uid=UID)


@pytest.fixture
def outer() -> Iterator[Path]:
    """A folder that every user may enter: the tests' own is closed to others."""
    with tempfile.TemporaryDirectory(dir=os.environ["PYTEST_DEBUG_TEMPROOT"]) as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


async def said(engine: Engine, somebody: Person, outer: Path, **options: Any) -> str:
    """What a host of theirs prints at the end of a run."""
    async with over_socket(engine.url, outer / "s") as way:
        given = json.dumps({"image": engine.image, "engine": way.url, **options})
        done = await asyncio.to_thread(somebody.run, "-c", HOST, given)
    assert done.stdout, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("options", "other", "by_socket"),
    [({}, None, True), ({"transport": "stdio"}, None, False), ({"user": "5:6"}, (5, 6), False)],
    ids=["unix", "stdio", "another"],
)
async def test_a_container_is_its_host_s_user_s_or_the_one_s_who_was_asked_for(
    options: dict[str, Any], other: tuple[int, int] | None, by_socket: bool, engine: Engine, somebody: Person, outer: Path
) -> None:
    own = (somebody.uid, somebody.uid if os.geteuid() == 0 else os.getegid())
    who, _, label = (await said(engine, somebody, outer, **options)).rpartition(" ")
    assert who == str((*(other or own), 100_000, by_socket))
    assert left_on(engine.url, label) == []
    assert os.listdir(somebody.home) == ["context"]


async def test_a_socket_that_its_user_cannot_be_let_reach_is_an_error(engine: Engine, somebody: Person, outer: Path) -> None:
    words = await said(engine, somebody, outer, user=5, transport="unix")
    why = f"only root can let user 5 of the container (option `user`) reach a socket of user {somebody.uid}"
    assert words == f"transport='unix' cannot be had: {why}; leave it out, or use 'stdio'"
