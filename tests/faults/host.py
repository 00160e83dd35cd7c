"""Hosts that something is done to: scripts beside this one, each a process of its own, which print what became of them as JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PATIENCE_S = 100.0  # for what takes a few seconds


def told_by(script: str, *arguments: object, **variables: str) -> Any:
    """What a host prints as its last line. What it prints on stderr is shown when it fails."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
