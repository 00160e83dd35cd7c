"""What tests do to the containers of this process, and see of them: on an engine that others use too, theirs are left alone."""

from __future__ import annotations

import io
import json
import secrets
import tarfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from anyio.from_thread import start_blocking_portal

from arlm.environments.docker import DockerREPL
from arlm.environments.owner import owner
from arlm.testing.bench import Subject
from arlm.testing.scripted import ScriptedLM
from docker_image import client
from docker_proxy import over_tcp

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import httpx

    from docker_engine import Engine


def docker(on: Engine, **options: Any) -> DockerREPL:
    """The environment on an engine of the tests."""
    return DockerREPL(**{"image": on.image, "engine": on.url, **options})


def subject(on: Engine, **options: Any) -> Subject:
    """The same for a Bench."""
    return Subject(name="docker", environment=lambda: docker(on, **options))


@contextmanager
def road(name: str, on: Engine) -> Iterator[dict[str, Any]]:
    """Options for frames over a mounted socket, ``"unix"``, over the container's streams, ``"stdio"``, or to an engine ``"elsewhere"``."""
    if name != "elsewhere":
        yield {"transport": name}
        return
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(over_tcp(on.url)) as url:  # a thread of its own
        yield {"engine": url}


def cell(code: str) -> str:
    """A model's reply with one cell."""
    return f"```repl\n{code}\n```"


def final(expression: str) -> str:
    """A model's reply with a cell that answers."""
    return cell(f"answer.update(content={expression}, ready=True)")


def said_to(lm: ScriptedLM) -> str:
    """What the root model was last told."""
    return str(lm.root_calls[-1].messages[-1]["content"])


@contextmanager
def asking(url: str) -> Iterator[httpx.Client]:
    """Plain HTTP to the engine; an answer that is an error raises."""

    def check(response: httpx.Response) -> None:
        response.raise_for_status()

    with client(url) as asked:
        asked.event_hooks = {"response": [check]}
        yield asked


def containers(url: str, host: str | None = None) -> list[dict[str, Any]]:
    """All containers of a host (its label; None: this process), running or not, as ``docker inspect`` shows them."""
    with asking(url) as asked:
        found = asked.get("/containers/json", params={"all": True, "filters": _of(host)}).json()
        asked.event_hooks = {}
        shown = [asked.get(f"/containers/{each['Id']}/json") for each in found]
    return [each.json() for each in shown if each.is_success]  # one may have gone meanwhile


def volumes(url: str, host: str | None = None) -> list[str]:
    """The names of all volumes of a host (its label; None: this process)."""
    with asking(url) as asked:
        return [each["Name"] for each in asked.get("/volumes", params={"filters": _of(host)}).json()["Volumes"] or ()]


def _of(host: str | None) -> str:
    return json.dumps({"label": [f"arlm.owner={owner() if host is None else host}"]})


def hosts(url: str, pid: int) -> set[str]:
    """The labels that a process, by its number, has on containers: those of a child of this one tell it from all others."""
    with asking(url) as asked:
        found = asked.get("/containers/json", params={"all": True, "filters": json.dumps({"label": ["arlm.owner"]})}).json()
    return {label for each in found if (label := each["Labels"]["arlm.owner"]).split(".")[4] == str(pid)}


def left_on(url: str, host: str | None = None) -> list[str]:
    """The names of what a host (its label; None: this process) has on an engine: containers, volumes."""
    return [each["Name"] for each in containers(url, host)] + volumes(url, host)


def kill(url: str, *names: str) -> None:
    """``docker kill`` containers; of this process, without names the only one. Returns when they have ended."""
    if not names:
        (one,) = containers(url)
        names = (one["Id"],)
    with asking(url) as asked:
        for name in names:
            asked.post(f"/containers/{name}/kill")
            asked.post(f"/containers/{name}/wait")


def labels(container: Mapping[str, Any]) -> dict[str, str]:
    """What a container is labelled with."""
    return dict(container["Config"]["Labels"])


def archive(files: Mapping[str, str]) -> bytes:
    """A tar archive of programs, by their paths."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        for path, text in files.items():
            member = tarfile.TarInfo(path.lstrip("/"))
            member.mode, member.size = 0o755, len(text.encode())
            packed.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


@contextmanager
def image_with(on: Engine, files: Mapping[str, str], *, base: str | None, changes: str = "") -> Iterator[str]:
    """The tag of an image in which these programs stand, over those of another, or alone; it is removed afterwards.

    Args:
        changes: lines of a Dockerfile that set what the image wants, over that of the other.
    """
    tag = f"arlm-test-{secrets.token_hex(4)}:1"
    repository, _, version = tag.partition(":")
    with asking(on.url) as asked:
        if base is None:
            asked.post("/images/create", params={"fromSrc": "-", "repo": repository, "tag": version}, content=archive(files))
        else:
            wanted = {"repo": repository, "tag": version} | ({"changes": changes} if changes else {})
            made = asked.post("/containers/create", json={"Image": base, "Cmd": ["true"]}).json()["Id"]
            try:
                asked.put(f"/containers/{made}/archive", params={"path": "/"}, content=archive(files))
                asked.post("/commit", params={"container": made, **wanted})
            finally:
                asked.delete(f"/containers/{made}")
        try:
            yield tag
        finally:
            asked.delete(f"/images/{tag}", params={"force": True})
