"""What an engine refuses, or does not say at all, in words that say what to do."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
from types import TracebackType
from typing import Any

from ..errors import SandboxError
from ..shortages import no_descriptors, told

NO_ENGINE = 900  # aiodocker's status where nothing answers
NOT_AN_ENGINE = (ValueError, TypeError, LookupError)  # what the client makes of another program's answers
HINTS = {  # what to do, by what an engine says
    "unknown runtime": "`docker info` lists the engine's runtimes; option `runtime`",
    "bind source path does not exist": "the engine's machine does not have it; option `mounts`",
    "network": "`docker network ls` lists the engine's networks; option `network`",
    "no space left on device": "`docker system df` shows what fills the engine's disk",
}
TOLD_CHARS = 1_000  # of what an engine says, which may hold a page that a proxy showed to it
CREDENTIALS = re.compile(r"(?<=://)[^/\s]\S*@")  # of a URL, wherever it stands in a text


class EngineDown(SandboxError):
    """No engine answers."""


class NoSuchImage(SandboxError):
    """The engine does not have the image."""


class NameTaken(SandboxError):
    """A container has the name, or is being made with it."""


class NotStarted(SandboxError):
    """The engine made the container, and could not start its program."""


def without_credentials(text: str) -> str:
    """A text that has a URL in it, without the name and the password of that."""
    return CREDENTIALS.sub("", text)


def docker_error() -> type[Any]:
    """The client's class of what an engine refuses."""
    from aiodocker import DockerError

    return DockerError


def _client_error() -> type[Any]:
    from aiohttp import ClientError

    return ClientError


def _no_connection() -> type[Any]:
    from aiohttp import ClientConnectorError

    return ClientConnectorError


class Told:
    """Turn what the client raises in a block, or its silence for so long, into an error of ours.

    No async generator, as in ``Engine.remove``.
    """

    def __init__(self, what: str, kind: type[SandboxError] = SandboxError, *, seconds: float | None) -> None:
        self._what = what
        self._kind = kind
        self._seconds = seconds
        self._limit = asyncio.timeout(seconds)

    async def __aenter__(self) -> Told:
        await self._limit.__aenter__()
        return self

    def begin_anew(self) -> None:
        """There was a word: the seconds count from here."""
        if self._seconds is not None:
            with contextlib.suppress(RuntimeError):  # the block is left already: a client may send on for a moment
                self._limit.reschedule(asyncio.get_running_loop().time() + self._seconds)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            await self._limit.__aexit__(kind, error, trace)
        except TimeoutError as late:
            error = late
        if isinstance(error, Exception) and (known := self._error(error)) is not None:
            raise known from error

    def _error(self, error: Exception) -> SandboxError | None:
        """What is said of it; None: it is a defect, and passes."""
        if no_descriptors(error.__context__) or no_descriptors(error):
            return EngineDown(f"{self._what}: {told(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))}")
        if isinstance(error, docker_error()):
            if error.status == NO_ENGINE:
                return EngineDown(_advice(error.message))
            if error.status == 404 and "No such image" in error.message:
                return NoSuchImage(error.message)
            if error.status == 409 and "already in use" in error.message:
                return NameTaken(error.message)
            return self._kind(f"{self._what}: {cut(error.message) or f'HTTP status {error.status}'}{_hint(error.message)}")
        if isinstance(error, TimeoutError):
            within = "" if self._seconds is None else f" within {self._seconds:g} s"
            return EngineDown(f"{self._what}: the Docker engine did not answer{within}")
        if isinstance(error, _no_connection()):
            return EngineDown(_advice(str(error)))
        if isinstance(error, (OSError, _client_error())):
            return EngineDown(f"{self._what}: the connection to the Docker engine broke ({error})")
        return None


def message_of(body: str) -> str:
    """What an engine's refusal says."""
    try:
        return str(json.loads(body)["message"]).strip()
    except NOT_AN_ENGINE:
        return body.strip()


def cut(message: str) -> str:
    """What an engine says, where it says too much."""
    return message if len(message) <= TOLD_CHARS else f"{message[:TOLD_CHARS]}…"


def _hint(message: str) -> str:
    return next((f" ({hint})" for words, hint in HINTS.items() if words in message.lower()), "")


def _advice(message: str) -> str:
    message = without_credentials(message)
    if "ermission denied" in message:
        return f"this user may not use the Docker engine: add them to the group `docker` and log in again, or set DOCKER_HOST ({message})"
    return f"no Docker engine answers: start it, or set DOCKER_HOST to where it is ({message})"
