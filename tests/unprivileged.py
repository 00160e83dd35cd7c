"""Another user, without rights, who can run this Python and this arlm: where they are closed to others, a readable copy is made."""

import importlib.metadata
import os
import pwd
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import arlm

NOBODY = 65534
UNUSED = ("test", "site-packages", "idlelib", "ensurepip", "tkinter", "turtledemo", "lib2to3", "__pycache__", "config-*")
TRY = "import arlm.cli.main, arlm.testing, openai, typer"
KEPT = ("PATH", "LANG", "PYTHONPATH", "LD_LIBRARY_PATH")
SECONDS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A user of this machine.

    Attributes:
        uid: the number; the tests' own, where those are not root's.
        home: a folder of theirs, also for temporary files.
        python: what they start.
        environment: what they start it with.
    """

    uid: int
    home: Path
    python: Path
    environment: dict[str, str]

    def run(self, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run Python to its end; its own rights are all it has."""
        rights = {} if self.uid == os.getuid() else {"user": self.uid, "group": self.uid, "extra_groups": []}
        return subprocess.run(
            [self.python, *words],
            input=given,
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.home,
            timeout=SECONDS,
            check=False,
            **rights,
        )

    def processes(self) -> list[int]:
        """Those that live; of every program of theirs, where they are not the tests' own user."""
        found = []
        for name in os.listdir("/proc"):
            try:
                if name.isdigit() and os.stat(f"/proc/{name}").st_uid == self.uid != os.getuid():
                    found.append(int(name))
            except FileNotFoundError:
                continue
        return found


@contextmanager
def unprivileged() -> Iterator[Person]:
    """Somebody who is not root. Raises OSError where this process may not become one."""
    if os.getuid() != 0:
        with tempfile.TemporaryDirectory() as home:
            yield person(os.getuid(), Path(home), Path(sys.executable), {})
        return
    outer = os.environ["PYTEST_DEBUG_TEMPROOT"]  # the tests' own is closed to others
    with tempfile.TemporaryDirectory(dir=outer, prefix="arlm-person-") as folder:
        os.chmod(folder, 0o755)
        home = Path(folder, "home")
        home.mkdir(0o700)
        uid = nobody()
        os.chown(home, uid, uid)
        one = person(uid, home, Path(sys.executable), {})
        if not can_run(one):
            one = person(uid, home, *copy_of_python(Path(folder, "python")))
        yield one


def person(uid: int, home: Path, python: Path, more: dict[str, str]) -> Person:
    kept = {name: value for name, value in os.environ.items() if name in KEPT}
    environment = {**kept, "HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "120", **more}
    return Person(uid=uid, home=home, python=python, environment=environment)


def nobody() -> int:
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError:
        return NOBODY


def can_run(one: Person) -> bool:
    try:
        return one.run("-c", TRY).returncode == 0
    except PermissionError:
        if os.access(one.python, os.X_OK) and not may_change_user():
            raise
        return False


def may_change_user() -> bool:
    try:
        subprocess.run(["/bin/true"], user=nobody(), check=True)
    except OSError:
        return False
    return True


def copy_of_python(folder: Path) -> tuple[Path, dict[str, str]]:
    """This Python with arlm and what arlm needs: the program, and what to start it with."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = Path(sys.base_prefix)
    program = folder / "bin" / name
    program.parent.mkdir(parents=True)
    link_or_copy(os.path.realpath(base / "bin" / name), program)
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": str(base), "base": str(base)}))
    tree(library, folder / "lib" / name)
    for shared in (base / "lib").glob("libpython*.so*"):
        link_or_copy(os.path.realpath(shared), folder / "lib" / shared.name)
    site = folder / "site"
    tree(Path(arlm.__file__).parent, site / "arlm")
    seen: set[str] = set()
    for distribution in (*needed("arlm", seen), *needed("aiodocker", seen)):  # with the one extra that tests have somebody use
        for file in distribution.files or ():
            source = Path(str(file.locate()))
            if ".." not in file.parts and file.suffix != ".pth" and source.is_file() and not (site / file).exists():
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(source, site / file)
    return program, {"PYTHONPATH": str(site), "LD_LIBRARY_PATH": str(folder / "lib")}


def tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*UNUSED), copy_function=link_or_copy)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A second name costs nothing; the folder it is in is open to all."""
    try:
        if os.stat(source).st_mode & 0o444 != 0o444:
            raise PermissionError(source)
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        os.chmod(target, 0o755)


def needed(name: str, seen: set[str]) -> Iterator[importlib.metadata.Distribution]:
    """A distribution and all that it requires, as far as it is installed."""
    if name in seen:
        return
    seen.add(name)
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return
    yield distribution
    for requirement in distribution.requires or ():
        if "extra ==" not in requirement:
            yield from needed(re.split(r"[^\w.-]", requirement, maxsplit=1)[0], seen)
