"""A virtual environment for each peer, made once and kept."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = {"rlms": "rlms==0.1.3", "dspy": "dspy==3.4.1", "flask": "flask==3.1.3 requests==2.34.2"}  # what each is named for first
INSTALL_S = 900.0
TOLD = 400  # characters of pip's last words


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A framework that can be run: its Python, its version; or why it cannot."""

    python: str
    version: str = ""
    failed: str = ""


def here() -> Installed:
    """The Python that runs this, which has arlm."""
    from arlm import __version__

    return Installed(python=sys.executable, version=__version__)


def installed(peer: str, folder: Path) -> Installed:
    """A peer's environment in ``folder``, made if it is not there; never raises for a peer that cannot be installed."""
    python = folder / peer / "bin" / "python"
    requirement = REQUIREMENTS[peer]
    if (version := _version(python, peer)) != requirement.split()[0].partition("==")[2]:
        print(f"-- installing {requirement} in {folder / peer}", file=sys.stderr)
        try:
            _run([sys.executable, "-m", "venv", "--clear", str(folder / peer)])
            _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirement.split()])
        except subprocess.SubprocessError as error:
            said = str(getattr(error, "stderr", None) or error).strip()
            return Installed(python=str(python), failed=f"{requirement} could not be installed: {said[-TOLD:]}")
        version = _version(python, peer)
    return Installed(python=str(python), version=version)


def _version(python: Path, peer: str) -> str:
    if not python.exists():
        return ""
    asked = [str(python), "-c", f"import importlib.metadata as m; print(m.version({peer!r}))"]
    return subprocess.run(asked, check=False, capture_output=True, text=True).stdout.strip()


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_S)
