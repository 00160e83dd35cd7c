"""A user who is not root, from the command to the walls: what works for root in a container works for people."""

import json
import os
import sys
from collections.abc import Iterator

import pytest

from arlm.guest.confine import grade
from unprivileged import Person, unprivileged

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="changes the user, and looks at processes, as Linux does")
walls = pytest.mark.skipif(not all(grade().values()), reason="this kernel lacks a part of the confinement (see `arlm doctor`)")

BENCH = """
import asyncio, json, sys
from arlm.environments.process import ProcessREPL
from arlm.testing.bench import Subject, open_bench
async def main():
    {body}
asyncio.run(main())
"""
CORPUS = """
import asyncio, json, sys
from arlm.environments import forkserver
from arlm.environments.process import ProcessREPL
from arlm.testing.bench import Subject
from arlm.testing.escapes import attempt, open_targets
from arlm.testing.payloads import CORPUS
async def main():
    confine, only = json.loads(sys.argv[1])
    subject = Subject(name="process", environment=lambda: ProcessREPL(confine=confine))
    escaped = {}
    async with open_targets() as targets:
        for escape in CORPUS:
            if only is None or escape.name in only:
                supervisor = (await forkserver.current()).process.pid
                escaped[escape.name] = await attempt(subject, escape, targets, supervisor=supervisor)
    print(json.dumps(escaped))
asyncio.run(main())
"""
GETS_THROUGH = [
    "read_host_environ", "read_credentials_in_home", "read_another_runs_folder", "connect_tcp", "send_udp", "connect_unix",
    "connect_abstract", "kill_host", "kill_the_supervisor", "write_outside", "chmod", "change_times",
]  # fmt: skip


@pytest.fixture(scope="module")
def nobody() -> Iterator[Person]:
    try:
        with unprivileged() as one:
            yield one
            assert one.processes() == []
            assert os.listdir(one.home) == []
    except PermissionError as error:
        pytest.skip(f"this process cannot become another user: {error}")


def bench(one: Person, body: str) -> list:
    done = one.run("-c", BENCH.format(body=body.replace("\n", "\n    ")))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_demo_runs(nobody):
    done = nobody.run("-m", "arlm.cli", "demo")
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_doctor_says_who_one_is_and_what_holds(nobody):
    done = nobody.run("-m", "arlm.cli", "doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert found["user"]["facts"] == {"value": nobody.uid}
    assert found["process"]["status"] == found["memory limit"]["status"] == "ok"
    assert found["confinement"]["facts"]["parts"] == grade()


def test_cells_are_the_users_own_processes_over_each_road(nobody):
    body = """
    said = []
    for transport in ("unix", "tcp", "stdio"):
        async with open_bench(Subject(name="p", environment=lambda: ProcessREPL(transport=transport))) as bench:
            await bench.context("text")
            said.append(json.loads(await bench.out("import json, os\\nprint(json.dumps([os.getuid(), os.geteuid(), context]))")))
    print(json.dumps(said))
    """
    assert bench(nobody, body) == [[nobody.uid, nobody.uid, "text"]] * 3


@walls
def test_no_payload_of_the_corpus_escapes(nobody):
    done = nobody.run("-c", CORPUS, json.dumps(["require", None]))
    assert done.returncode == 0, done.stderr
    escaped = json.loads(done.stdout)
    assert len(escaped) >= 60
    assert {name: how for name, how in escaped.items() if how is not None} == {}


def test_payloads_get_through_where_nothing_is_closed(nobody):
    done = nobody.run("-c", CORPUS, json.dumps(["off", GETS_THROUGH]))
    assert done.returncode == 0, done.stderr
    escaped = json.loads(done.stdout)
    assert {name for name, how in escaped.items() if how is not None} == set(GETS_THROUGH)


FORKS = """
import os, time
for _ in range(80):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
time.sleep(60)
"""


def test_a_worker_has_as_many_processes_as_it_may(nobody):
    body = f"""
    async with open_bench(Subject(name="p", environment=lambda: ProcessREPL(processes=40))) as bench:
        cell = await bench.cell({FORKS!r})
        print(json.dumps([cell.stopped, cell.error, await bench.out("1 + 1")]))
    """
    stopped, error, after = bench(nobody, body)
    if stopped is None:  # a group was delegated to this user
        assert error.startswith("BlockingIOError")
    else:
        assert (stopped, error.startswith("the REPL ended in this cell: the limit of 40 processes and threads")) == ("exited", True)
    assert after == "2\n"


def test_many_workers_do_not_use_up_each_others_processes(nobody):
    body = """
    async with open_bench(Subject(name="p", environment=ProcessREPL)) as bench:
        await bench.out("1")
        others = [bench.another() for _ in range(60)]
        await asyncio.gather(*[other.start() for other in others])
        print(json.dumps([await bench.out("import subprocess\\nsubprocess.run(['true']).returncode")]))
        await asyncio.gather(*[other.close() for other in others])
    """
    assert bench(nobody, body) == ["0\n"]
