"""A host that SIGKILL ends before its supervisor knows of its folder: the next run of anybody removes it."""

import os
import tempfile

from host import told_by


def test_what_a_host_killed_at_any_act_leaves_the_next_run_removes() -> None:
    with tempfile.TemporaryDirectory(prefix="ak-") as folder:
        walked = told_by("killed_host.py", folder)
        names = [name for name, _, _ in walked]
        assert names[0] == "tempfile.mkdtemp"
        assert {"os.mkdir", "fcntl.flock", "socket.bind", "subprocess.Popen"} <= set(names)
        assert names[-1] == ""  # it came to its end
        orphaned = [(name, left) for name, left, _ in walked if left]
        assert "fcntl.flock" in {name for name, _ in orphaned}  # made, and not held yet
        assert "subprocess.Popen" in {name for name, _ in orphaned}  # held, and no supervisor to know of it
        assert [(name, after) for name, _, after in walked if after] == []
        assert all(not os.listdir(os.path.join(folder, place)) for place in os.listdir(folder))
