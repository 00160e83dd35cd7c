"""The archive that a sandbox is given: guest, broker, and the pure-Python packages that the broker needs; a bare ``python3`` runs it."""

from __future__ import annotations

import functools
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from .. import broker, guest
from ..errors import ConfigError

NAME = "arlm-broker.pyz"
PACKAGES = ("starlette", "uvicorn", "anyio", "h11", "click", "idna", "typing_extensions", "exceptiongroup")  # the last for Python 3.10
LEFT_OUT = ("tests", "_pytest", "_trio.py", "pytest_plugin.py")
OWN = {"arlm/guest": Path(guest.__file__).parent, "arlm/broker": Path(broker.__file__).parent}
DATE = (1980, 1, 1, 0, 0, 0)  # of every entry: the same files give the same archive


@functools.cache
def archive() -> bytes:
    """A zip application of about 0.5 MB. Made once a process. Raises ConfigError: a package that goes into it is not installed here."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in sorted(_entries()):
            opened.writestr(zipfile.ZipInfo(name, DATE), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _entries() -> Iterator[tuple[str, bytes]]:
    yield "arlm/__init__.py", b""
    for prefix, folder in OWN.items():
        for path in folder.glob("*.py"):
            yield f"{prefix}/{path.name}", path.read_bytes()
    yield "__main__.py", (OWN["arlm/broker"] / "start.py").read_bytes()
    for package in PACKAGES:
        yield from _package(package)


def _package(name: str) -> Iterator[tuple[str, bytes]]:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ConfigError(f"places behind HTTP need the package {name}, which is not installed: pip install 'arlm[broker]'")
    if not spec.submodule_search_locations:
        yield f"{name}.py", Path(spec.origin).read_bytes()
        return
    folder = Path(spec.origin).parent
    for path in folder.rglob("*.py"):
        inside = path.relative_to(folder)
        if not any(part in LEFT_OUT for part in inside.parts):
            yield f"{name}/{inside.as_posix()}", path.read_bytes()
