"""A full disk, wherever something is written: nothing is left, the error is typed and says what to do, the next run is fine.

Each case runs in a host of its own: on a small file system that is really full, where this process may mount one (as root it may), and with
a limit on the size of files, which everybody can have.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from host import HERE, told_by


def may_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        return (
            subprocess.run([sys.executable, HERE / "full_host.py", "probe", "tmpfs", folder], capture_output=True, check=False).returncode
            == 0
        )


ROADS = ["limit", "tmpfs"] if may_mount() else ["limit"]
SAID = {
    "tmpfs": "No space left on device; free some space there",
    "limit": "File too large; raise this process's limit on the size of a file",
}


@pytest.fixture(params=ROADS)
def road(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="af-") as folder:  # short: Unix socket paths live below it
        yield folder


def test_a_context_that_does_not_fit_is_a_typed_error(road: str, folder: str) -> None:
    became = told_by("full_host.py", "context", road, folder)
    assert set(became["ends"]) == {"text", "bytes", "json", "files"}
    for end in became["ends"].values():
        assert end.startswith("SandboxError: the context could not be written to ")
        assert SAID[road] in end
    assert (became["left"], became["then"]) == ([], "c")


def test_a_users_file_that_cannot_be_copied_to_the_workers_is_a_typed_error(road: str, folder: str) -> None:
    became = told_by("full_host.py", "own_file", road, folder)
    if road == "tmpfs":
        assert became["ends"][0].startswith("SandboxError: ")
        assert SAID[road] in became["ends"][0]
    else:
        assert became["ends"] == ["x"]  # a second name for it is enough on the same disk
    assert (became["left"], became["then"]) == ([], "c")


def test_a_session_gives_the_room_of_half_a_context_back_at_once(road: str, folder: str) -> None:
    became = told_by("full_host.py", "session", road, folder)
    first, second, third = became["ends"]
    assert (first, third) == ("a", "b")
    assert second.startswith("SandboxError: ")
    assert SAID[road] in second
    assert became["most"] == 100_000  # the largest file between the second question and the third
    assert became["left"] == []


def test_a_log_that_does_not_fit_ends_and_the_run_does_not(road: str, folder: str) -> None:
    became = told_by("full_host.py", "log", road, folder)
    assert became["first"] == "y" * 10
    (said,) = became["said"]
    assert "ends here, and the run goes on without it" in said
    assert SAID[road] in said
    assert became["events"] == ["run_started", "messages_added"]  # what fitted can be read
    assert became["last"] != "run_ended"
    assert (became["then"], became["ended"], became["left"]) == ("c", "run_ended", [])


def test_a_cell_that_fills_the_disk_sees_the_error_and_hurts_nobody(road: str, folder: str) -> None:
    became = told_by("full_host.py", "cell", road, folder)
    caught, raised = became["ends"]
    number = {"tmpfs": 28, "limit": 27}[road]
    assert caught == f"it said OSError {number}\nkept\nTrue\n"
    assert raised.splitlines()[-1].startswith(f"OSError: [Errno {number}]")  # data for the model
    assert (became["left"], became["then"]) == ([], "c")


def test_where_no_folder_can_be_made_the_error_says_so(road: str, folder: str) -> None:
    became = told_by("full_host.py", "nothing_fits", road, folder)
    assert became["ends"][0].startswith("SandboxError: no temporary folder could be made in ")
    assert "set TMPDIR to a folder" in became["ends"][0]
    assert (became["left"], became["then"]) == ([], "c")


def test_a_temporary_folder_that_cannot_be_used_is_a_typed_error_and_may_come_back(road: str, folder: str) -> None:
    became: dict[str, Any] = told_by("full_host.py", "closed", road, folder)
    assert became["ends"].pop("there") == "c"
    assert set(became["ends"]) == {"forbidden", "gone", "a file"} | ({"read-only"} if road == "tmpfs" else set())
    for end in became["ends"].values():
        assert end.startswith("SandboxError: no temporary folder could be made in ")
        assert "set TMPDIR to a folder that" in end
    assert (became["left"], became["then"]) == ([], "c")


def test_a_session_whose_folder_was_swept_away_says_so(road: str, folder: str) -> None:
    became = told_by("full_host.py", "swept_away", road, folder)
    first, second = became["ends"]
    assert first == "a"
    assert second.startswith("SandboxError: the context could not be written: ")
    assert "is gone; did something empty the temporary folder?" in second
    assert (became["left"], became["then"]) == ([], "c")
