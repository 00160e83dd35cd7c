"""The Docker engine: how it is found, and what is asked of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, SandboxError, describe
from ..lifetimes import finish
from .docker_errors import (
    NOT_AN_ENGINE,
    EngineDown,
    NotStarted,
    Told,
    cut,
    docker_error,
    message_of,
    without_credentials,
)

if TYPE_CHECKING:
    from aiodocker import Docker
    from aiodocker.stream import Stream

ASK_SECONDS = 30.0  # for a request that takes milliseconds, on an engine that is busy with others
MAKE_SECONDS = 120.0  # for one that may take seconds: many containers at once, a cold disk
ENDED = ("created", "exited", "dead")  # states of a container in which nothing runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """What an engine has with a label: a container, or a volume.

    Attributes:
        id: by which it is removed. One that is half removed has no other name.
        name: as people know it.
        labels: all of them.
        runs: whether it is a container that has not ended.
    """

    id: str
    name: str
    labels: Mapping[str, str]
    runs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A Docker engine.

    Attributes:
        docker: the client.
        url: where it was reached.
        info: what ``GET /info`` said.
    """

    docker: Docker
    url: str
    info: Mapping[str, Any]

    @property
    def is_here(self) -> bool:
        """Whether it runs on this very machine: no other one, no virtual one, and not beside a container that this process is in."""
        said = (self.info.get("KernelVersion"), self.info.get("Name"))
        return sys.platform == "linux" and self.url.startswith("unix:") and said == (os.uname().release, os.uname().nodename)

    @property
    def id(self) -> str:
        """What tells it from other engines."""
        return str(self.info.get("ID") or self.url)

    @property
    def maps_users(self) -> bool:
        """Whether a user of a container is another one outside: rootless, or with user namespaces."""
        options = " ".join(map(str, self.info.get("SecurityOptions") or ()))
        return "name=rootless" in options or "name=userns" in options

    @property
    def labels_files(self) -> bool:
        """Whether SELinux keeps its containers from files, and from sockets, that were not made for containers."""
        return "name=selinux" in " ".join(map(str, self.info.get("SecurityOptions") or ()))

    def runtime_of(self, runtime: str | None) -> str:
        """The runtime that a container gets."""
        return runtime or str(self.info.get("DefaultRuntime") or "runc")

    def at(self, path: str) -> str:
        """The URL of a part of the API, for the client's session."""
        return f"{self.docker.docker_host}/{self.docker.api_version}/{path}"

    async def create(self, name: str, config: dict[str, Any]) -> str:
        """Make a container; returns its id. Raises NoSuchImage, NameTaken, EngineDown, SandboxError."""
        async with Told("the container could not be made", seconds=MAKE_SECONDS):
            return str((await self.docker.containers.create(config, name=name)).id)

    async def start(self, name: str) -> None:
        """Start it. Raises NotStarted, EngineDown."""
        async with Told("the container could not be started", NotStarted, seconds=MAKE_SECONDS):
            await self.docker.containers.container(name).start()

    async def attach(self, name: str) -> Stream:
        """Its standard streams; ``let_go`` closes them. Raises EngineDown, SandboxError."""
        stream = self.docker.containers.container(name).attach(stdin=True, stdout=True, stderr=True)
        async with Told("the container could not be attached to", seconds=MAKE_SECONDS):
            await stream.__aenter__()
        return stream

    async def close(self) -> None:
        """Let the engine go."""
        await self.docker.close()

    async def upload(self, name: str, folder: str, archive: AsyncIterator[bytes] | bytes) -> None:
        """Unpack a tar archive in a folder of it. It may take long as long as it goes on. Raises SandboxError."""
        async with Told(f"files could not be copied to {folder} of the container", seconds=MAKE_SECONDS) as limit:
            container: Any = self.docker.containers.container(name)
            await container.put_archive(folder, archive if isinstance(archive, bytes) else _going_on(archive, limit))

    async def last_state(self, name: str) -> Mapping[str, Any] | None:
        """Wait for its end; what ``docker inspect`` then says under State, None when there is no such container. Raises EngineDown."""
        async with Told("the engine could not be asked for the container", seconds=None):
            # Not by the client's own method, which leaves the connection open when it is cancelled.
            async with self.docker.session.post(self.at(f"containers/{name}/wait")) as answer:
                await answer.read()
            try:
                shown = await self.docker.containers.container(name).show()
            except docker_error() as error:
                if error.status == 404:
                    return None
                raise
        state: Mapping[str, Any] = shown["State"]
        return state

    async def rename(self, name: str, new: str) -> None:
        """Give it another name. Raises SandboxError."""
        async with Told("the container could not be renamed", seconds=ASK_SECONDS):
            await self.docker.containers.container(name).rename(new)

    async def remove(self, name: str) -> bool:
        """Kill and remove it with its volumes; harmless when it is gone. Whether it was there. Raises SandboxError."""
        # Not by the client's own method, which is an async generator: a loop that ends, and a pool with it, can begin none.
        async with (
            Told("the container could not be removed", seconds=ASK_SECONDS),
            self.docker.session.delete(self.at(f"containers/{name}"), params={"force": "true", "v": "true"}) as answer,
        ):
            message = "" if answer.ok else message_of(await answer.text())
            harmless = answer.ok or answer.status == 404 or (answer.status == 409 and "already in progress" in message)
            if not harmless:
                raise SandboxError(f"the container could not be removed: {cut(message) or f'HTTP status {answer.status}'}")
            return answer.status != 404

    async def labelled(self, label: str) -> list[Labelled]:
        """Every container that has a label, running or not. Raises EngineDown."""
        async with Told("the engine could not be asked for its containers", seconds=ASK_SECONDS):
            found = await self.docker.containers.list(all=True, filters=json.dumps({"label": [label]}))
        return [
            Labelled(
                id=it["Id"],
                name=it["Names"][0].removeprefix("/") if it["Names"] else it["Id"][:12],
                labels=it["Labels"],
                runs=it["State"] not in ENDED,
            )
            for it in found
        ]

    async def seconds_since_end(self, name: str) -> float:
        """How long ago a container ended, or was made where it never began, by the engine's clock; 0 where that is not said.

        Raises:
            EngineDown, SandboxError: the engine could not be asked.
        """
        async with Told("the engine could not be asked for the container", seconds=ASK_SECONDS):
            try:
                shown = await self.docker.containers.container(name).show()
            except docker_error() as error:
                if error.status == 404:
                    return 0.0
                raise
        try:
            last = max(datetime.fromisoformat(text) for text in (shown["Created"], shown["State"]["FinishedAt"]))
            return (datetime.fromisoformat(self.info["SystemTime"]) - last).total_seconds()
        except NOT_AN_ENGINE:
            return 0.0

    async def labelled_volumes(self, label: str) -> list[Labelled]:
        """The same of volumes that no container has: one that was removed by hand leaves its own."""
        async with Told("the engine could not be asked for its volumes", seconds=ASK_SECONDS):
            volumes: Any = self.docker.volumes
            found = await volumes.list(filters={"label": [label], "dangling": ["true"]})
        return [Labelled(id=it["Name"], name=it["Name"], labels=it["Labels"]) for it in found["Volumes"] or ()]

    async def remove_volume(self, name: str) -> None:
        """Remove it; harmless when it is gone, or in use after all. Raises SandboxError."""
        async with Told(f"the volume {name} could not be removed", seconds=ASK_SECONDS):
            try:
                volumes: Any = self.docker.volumes
                await (await volumes.get(name)).delete()
            except docker_error() as error:
                if error.status not in (404, 409):
                    raise

    async def volumes_of(self, image: str) -> list[str]:
        """The folders for which an image wants a volume each. Raises NoSuchImage, EngineDown."""
        async with Told(f"the engine could not be asked for the image {image!r}", seconds=ASK_SECONDS):
            shown = await self.docker.images.inspect(image)
        return sorted((shown.get("Config") or {}).get("Volumes") or ())

    async def has_image(self, image: str) -> bool:
        """Whether the engine has it."""
        async with Told(f"the engine could not be asked for the image {image!r}", seconds=ASK_SECONDS):
            try:
                await self.docker.images.inspect(image)
            except docker_error() as error:
                if error.status == 404:
                    return False
                raise
        return True


async def _going_on(pieces: AsyncIterator[bytes], limit: Told) -> AsyncIterator[bytes]:
    """What is sent, each piece of which the engine took as it asks for the next."""
    async for piece in pieces:
        limit.begin_anew()
        yield piece
    limit.begin_anew()


async def let_go(stream: Stream) -> None:
    """Close a container's streams, its standard input among them."""
    try:
        await stream.close()
    except AssertionError:
        pass  # aiodocker insists on a connection, which the container's end has taken away


async def connect(url: str | None) -> Engine:
    """Connect to an engine: the one at ``url``, or the one that the docker command would use (DOCKER_HOST, its context, the usual socket).
    Whoever asks closes it; it may be closed in any task.

    Raises:
        ConfigError: the package aiodocker is not installed, or the address is none.
        EngineDown: nothing answers there, or this user may not ask.
        SandboxError: what answers there is no Docker engine.
    """
    docker, where = _client(url)
    try:
        _check_port(docker)
        async with Told("the Docker engine could not be asked what it is", seconds=ASK_SECONDS):
            info = {**await docker.system.info()}
        return Engine(docker=docker, url=where, info=info)
    except BaseException as error:
        await finish(docker.close, what="the Docker client")
        if isinstance(error, NOT_AN_ENGINE):
            raise SandboxError(f"what answers at {without_credentials(where)} is no Docker engine: {describe(error)}") from None
        raise


@asynccontextmanager
async def open_engine(url: str | None) -> AsyncIterator[Engine]:
    """``connect`` for a block."""
    engine = await connect(url)
    try:
        yield engine
    finally:
        await finish(engine.close, what="the Docker client")


def _client(url: str | None) -> tuple[Docker, str]:
    try:
        import aiodocker
        from aiohttp import UnixConnector
    except ImportError as error:
        raise ConfigError(f"the environment 'docker' needs the package aiodocker ({error}): pip install 'arlm[docker]'") from None
    url = url or os.environ.get("DOCKER_HOST")  # before the context, as the docker command has it: the client has it after
    try:
        docker = aiodocker.Docker(url=url)
    except (ValueError, AssertionError, AttributeError, ImportError, OSError, aiodocker.DockerError) as error:
        if url is None and isinstance(error, (ValueError, AssertionError)):
            raise EngineDown(f"no Docker engine was found: install Docker and start it, or set DOCKER_HOST{_because(error)}") from None
        what = "the current Docker context" if url is None else f"the address of the Docker engine, {url!r},"
        raise ConfigError(without_credentials(f"{what} cannot be used: {error}")) from None
    if type(docker.connector) is UnixConnector:  # a connection over ssh is a kind of one too
        return docker, f"unix://{docker.connector.path}"
    return docker, str(url or docker.docker_host).replace("unix:", "ssh:")


def _check_port(docker: Docker) -> None:
    """Raise ConfigError for an address that names no port of a machine: the client looks at it with the first request."""
    if not docker.docker_host.startswith(("tcp:", "http")):
        return
    from yarl import URL

    try:
        url = URL(docker.docker_host)
        whole = url.host and url.port
    except ValueError:
        whole = None
    if not whole:
        given = without_credentials(repr(docker.docker_host))
        raise ConfigError(f"the address of the Docker engine, {given}, cannot be used: it must be such as 'tcp://HOST:2375'")


def _because(error: Exception) -> str:
    return f" ({error})" if str(error) else ""
