"""A small image with Python, made of this machine's own interpreter: no registry, no network.

In it are the interpreter under the names asked for, its standard library with its compiled files, the shared libraries all that needs,
a shell, and the tools that tests call. Paths are the machine's own, so that every library is found where it was linked to be.
"""

import hashlib
import io
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

NAME = "arlm-test-python"
ENGINE_S = 60.0  # the most one answer of an engine may take; an upload to a cold disk is the longest
REQUIRED_TOOLS = ("cat", "chmod", "cp", "echo", "env", "ls", "mkdir", "mv", "rm", "sh", "sleep", "tar", "touch", "true")
OTHER_TOOLS = ("bash", "dd", "grep", "head", "id", "kill", "ln", "ps", "seq", "uname", "wc", "yes")  # where the machine has them
LEFT_OUT = re.compile(
    r"/(tests?|idlelib|lib2to3|tkinter|turtledemo|ensurepip|(site|dist)-packages|config-3[^/]*)$"
    r"|/_(tkinter|test|ctypes_test|xxtestfuzz)[^/]*\.so$|\.a$|\.opt-[12]\.pyc$"
)
DIRECTORIES = {"proc": 0o755, "sys": 0o755, "dev": 0o755, "tmp": 0o1777, "var/tmp": 0o1777, "root": 0o755, "bin": 0o755, "usr/bin": 0o755}
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
}
SETTINGS = ("ENV PATH=/usr/local/bin:/usr/bin:/bin", "ENV LANG=C.UTF-8")
FACTS = """
import json, os, sys, sysconfig
paths = {sysconfig.get_path(it) for it in ("stdlib", "platstdlib")} | {sysconfig.get_config_var("DESTSHARED")}
print(json.dumps({"version": sys.version, "executable": os.path.realpath(getattr(sys, "_base_executable", sys.executable)),
                  "library": sorted(it for it in paths if it and os.path.isdir(it))}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    version: str
    executable: str
    library: tuple[str, ...]


def interpreter(python: str = sys.executable) -> Interpreter:
    """What is behind `python`: of a virtual environment, the interpreter it was made from."""
    answer = subprocess.run([python, "-I", "-c", FACTS], capture_output=True, text=True, check=True)
    facts = json.loads(answer.stdout)
    return Interpreter(version=facts["version"], executable=facts["executable"], library=tuple(facts["library"]))


def image_tag(*, names: tuple[str, ...] = ("python3", "python"), python: str = sys.executable) -> str:
    """The tag of what `build_image` makes of the same arguments: another one as soon as the content would be another."""
    chosen = interpreter(python)
    changed = [os.stat(it).st_mtime_ns for it in (chosen.executable, *chosen.library)]
    decides = [chosen.version, chosen.executable, chosen.library, changed, names, platform.libc_ver()]
    content = hashlib.sha256(json.dumps(decides).encode() + Path(__file__).read_bytes()).hexdigest()
    return f"{NAME}:{chosen.version.split()[0].rstrip('+')}-{content[:12]}"


def ensure_image(url: str, *, names: tuple[str, ...] = ("python3", "python"), python: str = sys.executable) -> str:
    """The tag of such an image at the engine at `url`, where it is built if it is not there yet."""
    tag = image_tag(names=names, python=python)
    with client(url) as engine:
        there = engine.get(f"/images/{tag}/json").is_success
    if not there:
        build_image(url, tag, names=names, python=python)
    return tag


def build_image(url: str, tag: str, *, names: tuple[str, ...] = ("python3", "python"), python: str = sys.executable) -> None:
    """Give the engine at `url` an image `tag`, in which the interpreter goes by `names` and by no other. One that is there is replaced.

    Raises RuntimeError where the engine refuses it or a tool is missing; of a half-made image nothing stays.
    """
    repository, _, version = tag.partition(":")
    options = {"fromSrc": "-", "repo": repository, "tag": version or "latest", "changes": SETTINGS}
    with tempfile.TemporaryFile() as archive:
        write_archive(archive, interpreter(python), names)
        archive.seek(0)
        with client(url) as engine:
            answer = engine.post("/images/create", params=options, content=archive)
    if answer.is_error or '"error"' in answer.text:
        raise RuntimeError(f"the engine at {url} did not take the image {tag}: {answer.text.strip()}")


def client(url: str) -> httpx.Client:
    """Plain HTTP to the engine at `url`, which is `unix://PATH` or `tcp://HOST:PORT`; close it after use. OSError where nobody listens."""
    kind, _, place = url.partition("://")
    if kind not in ("unix", "tcp"):
        raise ValueError(f"the tests reach an engine at unix://PATH or tcp://HOST:PORT, not at {url}")
    if kind == "unix":
        with socket.socket(socket.AF_UNIX) as first:  # httpx leaves its socket open where it cannot connect
            first.connect(place)
        return httpx.Client(transport=httpx.HTTPTransport(uds=place), base_url="http://docker", timeout=ENGINE_S)
    return httpx.Client(base_url=f"http://{place}", timeout=ENGINE_S, trust_env=False)


def write_archive(target: IO[bytes], chosen: Interpreter, names: Iterable[str]) -> None:
    found = {name: shutil.which(name) for name in (*REQUIRED_TOOLS, *OTHER_TOOLS)}
    if missing := [name for name in REQUIRED_TOOLS if found[name] is None]:
        raise RuntimeError(f"an image needs these tools, which this machine lacks: {', '.join(missing)}")
    tools = {f"/bin/{name}": os.path.realpath(path) for name, path in found.items() if path}
    library = [path for folder in chosen.library for path in kept(folder)]
    programs = {chosen.executable, *tools.values(), *(path for path in library if path.endswith(".so"))}
    with tarfile.open(fileobj=target, mode="w") as archive:
        content = Content(archive)
        for path, mode in DIRECTORIES.items():
            content.directory(f"/{path}", mode)
        for path, text in FILES.items():
            content.text(f"/{path}", text)
        for path in (chosen.executable, *libraries(programs)):
            content.copy(path, os.path.realpath(path))
        for path, source in tools.items():
            content.copy(path, source)
        for path in library:
            content.copy(path, path)
        for name in names:
            content.link(f"/bin/{name}", chosen.executable)


def kept(folder: str) -> Iterator[str]:
    """The files below `folder` that a program may need; a link that leads nowhere is none."""
    for entry in sorted(os.scandir(folder), key=lambda it: it.name):
        if LEFT_OUT.search(entry.path):
            continue
        if entry.is_dir():
            yield from kept(entry.path)
        elif entry.is_file():
            yield entry.path


def libraries(programs: Iterable[str]) -> list[str]:
    """The shared libraries that `programs` load, and the loader itself, by the paths they are looked for at."""
    answer = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False)  # it fails for a static program among them
    return sorted({path for line in answer.stdout.splitlines() if (path := library_of(line))})


def library_of(line: str) -> str | None:
    found = re.match(r"\t(?:\S+ => )?(/\S+) \(0x", line)
    return found and os.path.normpath(found[1])


class Content:
    """What goes into an image: everything belongs to root and can be read by everybody, and each path is in it once."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self.archive = archive
        self.paths: set[str] = {"/"}

    def directory(self, path: str, mode: int = 0o755) -> None:
        member = self.member(path)
        if member:
            member.type, member.mode = tarfile.DIRTYPE, mode
            self.archive.addfile(member)

    def text(self, path: str, text: str) -> None:
        member, content = self.member(path), text.encode()
        if member:
            member.size = len(content)
            self.archive.addfile(member, io.BytesIO(content))

    def link(self, path: str, target: str) -> None:
        member = self.member(path)
        if member:
            member.type, member.linkname = tarfile.SYMTYPE, target
            self.archive.addfile(member)

    def copy(self, path: str, source: str) -> None:
        member = self.member(path)
        if member:
            with open(source, "rb") as content:
                status = os.fstat(content.fileno())
                member.size, member.mtime = status.st_size, int(status.st_mtime)  # Python compares it with its compiled files'
                member.mode = 0o755 if status.st_mode & 0o111 else 0o644
                self.archive.addfile(member, content)

    def member(self, path: str) -> tarfile.TarInfo | None:
        """A file at `path`, below folders that are there; None where one is already."""
        if path in self.paths:
            return None
        self.directory(os.path.dirname(path))
        self.paths.add(path)
        return tarfile.TarInfo(path.lstrip("/"))
