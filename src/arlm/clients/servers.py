"""Model servers of one's own (Ollama, vLLM): whether one answers, and with which models."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import ConfigError
from .endpoint import Endpoint, endpoint_of, variable
from .rows import ROWS, Row

if TYPE_CHECKING:
    import aiohttp

SERVER_S = 1.0  # for a server to say which models it has; one that is there takes milliseconds
MOST_BYTES = 2**20  # of its reply that are read; a thousand models take a fifth of it
LEFT_OUT = re.compile(r"embed|rerank|minilm|mxbai|\b(bge|e5|gte|whisper)\b", re.IGNORECASE)  # models that do not chat, by their names
REFUSALS = (401, 403)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What a model server said, or that it said nothing.

    Attributes:
        row: the provider.
        at: host and port; empty where no URL could be made of its variable.
        answers: whether something there speaks OpenAI's protocol.
        models: the models it lists.
        problem: why no model of it can be used; None: one can.
    """

    row: Row
    at: str
    answers: bool
    models: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def chat_model(self) -> str | None:
        """The first model it lists that can hold a conversation, as far as a name tells."""
        return next((name for name in self.models if not LEFT_OUT.search(name)), None)


async def ask_servers() -> list[Server]:
    """Ask every provider that is a server of one's own, all at the same time. Takes a second at most, and raises nothing.

    They are asked directly, never through a proxy. Cancelling it closes the connections.
    """
    return list(await asyncio.gather(*(ask_server(row) for row in ROWS.values() if row.local)))


async def ask_server(row: Row) -> Server:
    """Ask one; see :func:`ask_servers`."""
    try:
        endpoint = endpoint_of(row)
    except ConfigError as error:
        return Server(row=row, at="", answers=False, problem=str(error))
    parts = urlsplit(endpoint.base_url)
    at = f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    try:
        aiohttp: Any = await asyncio.to_thread(importlib.import_module, "aiohttp")
    except (OSError, ImportError) as error:  # such as no file descriptor that is left
        return Server(row=row, at=at, answers=False, problem=f"{at} could not be asked: {error}")
    try:
        async with asyncio.timeout(SERVER_S), aiohttp.ClientSession(trust_env=False) as session:
            status, body = await _reply(session, endpoint)
    except OSError:  # a TimeoutError is one, and so is aiohttp's own error of a connection
        return _absent(row, at, "nothing answers at")
    except (aiohttp.ClientError, ValueError):
        return _absent(row, at, "something else answers at")
    return _read(row, at, status, body)


async def _reply(session: aiohttp.ClientSession, endpoint: Endpoint) -> tuple[int, bytes]:
    async with session.get(f"{endpoint.base_url}/models", headers=_headers(endpoint), allow_redirects=False) as reply:
        body = bytearray()
        async for piece in reply.content.iter_any():
            body += piece
            if len(body) > MOST_BYTES:
                break
        return reply.status, bytes(body)


def _headers(endpoint: Endpoint) -> dict[str, str]:
    """The key goes where its owner said that the server is, and never to whatever else may listen on the usual port."""
    headers = {"Accept": "application/json"}
    if endpoint.api_key and variable(endpoint.row.base_url_variable):
        headers["Authorization"] = f"Bearer {endpoint.api_key}"
    return headers


def _read(row: Row, at: str, status: int, body: bytes) -> Server:
    if status in REFUSALS:
        return Server(row=row, at=at, answers=True, problem=_keyless(row, at))
    try:
        models = tuple(str(model["id"]) for model in json.loads(body)["data"] or ()) if status == 200 else None
    except (ValueError, LookupError, TypeError, RecursionError):
        models = None
    if models is None:
        return _absent(row, at, "something else answers at")
    server = Server(row=row, at=at, answers=True, models=models)
    return server if server.chat_model else replace(server, problem=f"{at} has no model that can chat")


def _keyless(row: Row, at: str) -> str:
    if row.key_variable is None:
        return f"{at} wants a key, and {row.name!r} has none"
    if variable(row.base_url_variable) and variable(row.key_variable):
        return f"{at} does not accept the key in {row.key_variable}"
    return f"{at} wants a key: set {row.key_variable} and {row.base_url_variable}, so that it is known whose key it is"


def _absent(row: Row, at: str, what: str) -> Server:
    return Server(row=row, at=at, answers=False, problem=f"{what} {at}; start it, or set {row.base_url_variable}")
