"""Asking a provider for its list of models, through its SDK: the cheapest call that shows whether the key is accepted."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..clients import anthropic, gemini, openai
from ..clients.endpoint import Endpoint
from ..clients.failures import Teller
from ..clients.packages import MODULES
from ..clients.remote import RemoteLM
from ..clients.resolve import resolve_model
from ..errors import AuthError, BadRequest, ConfigError, ConnectionFailed, ProviderError
from ..shielding import in_own_task
from .text import one_line

if TYPE_CHECKING:
    import httpx2

LIST_S = 5.0  # for a provider to list its models
GRACE_S = 1.0  # for a request that took longer to close its connection
PAGE = 1_000  # models a page, the most that Anthropic and Google give
TOLD_CHARS = 200
REFUSED_KEY = (401, 403)
KEY_INVALID = "API_KEY_INVALID"  # Google says so with status 400
ANSWERS = "generateContent"  # what Google's models can do that are asked by calls; Vertex AI does not say

Reach = Literal["reachable", "key refused", "not reachable", "error"]
ERRORS: Mapping[Reach, type[ProviderError]] = {
    "key refused": AuthError,
    "not reachable": ConnectionFailed,
    "error": BadRequest,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What came of asking.

    Attributes:
        reach: in a word.
        models: their names, sorted.
        text: what went wrong; empty where nothing did. Shows no key.
    """

    reach: Reach
    models: tuple[str, ...] = ()
    text: str = ""

    def words(self) -> str:
        """In a few words."""
        if self.reach == "reachable":
            return f"reachable, {len(self.models):,} models" if len(self.models) != 1 else "reachable, 1 model"
        return f"{self.reach}: {self.text}"

    def check(self, provider: str) -> None:
        """Raise the ProviderError that it stands for, where it is one."""
        if self.reach != "reachable":
            raise ERRORS[self.reach](f"{provider}: {self.text}", provider=provider)


async def ask(provider: str) -> Listing:
    """The models that a built-in provider lists. Takes a few seconds at most; raises nothing that is the provider's fault.

    Raises:
        ConfigError: no call can be made: a variable is missing, or a package.

    Cancelling it closes the connection.
    """
    lm = resolve_model(f"{provider}/any")
    if not isinstance(lm, RemoteLM):
        raise ConfigError(f"arlm does not know how to ask {provider!r} for its models")
    endpoint = lm.endpoint
    by_dialect = _LISTERS.get(endpoint.row.dialect, _of_openai)
    try:
        for module in {"openai", MODULES[endpoint.row.package]}:
            await asyncio.to_thread(importlib.import_module, module)  # takes up to a second
    except ImportError as error:
        raise ConfigError(f"{provider!r} needs the package {endpoint.row.package}, which could not be imported: {error}") from error
    try:
        async with asyncio.timeout(LIST_S):
            names = await in_own_task(lambda: _listed(by_dialect, endpoint), grace=GRACE_S)
    except TimeoutError:
        return Listing(reach="not reachable", text=f"no reply from {endpoint.shown_url} within {LIST_S:g} s")
    except Exception as error:  # whatever an SDK raises
        return _failure(error, endpoint)
    return Listing(reach="reachable", models=tuple(sorted(names)))


async def ask_all(names: list[str]) -> dict[str, Listing]:
    """Ask several, all at the same time. Raises ConfigError as :func:`ask` does; the others are then not waited for, but cancelled."""
    try:
        async with asyncio.TaskGroup() as tasks:
            asked = {name: tasks.create_task(ask(name)) for name in names}
    except* ConfigError as group:
        error = group.exceptions[0]
    else:
        return {name: task.result() for name, task in asked.items()}
    raise error


Lister = Callable[[Endpoint, "httpx2.AsyncClient"], Awaitable[list[str]]]


async def _listed(lister: Lister, endpoint: Endpoint) -> list[str]:
    import httpx2

    async with httpx2.AsyncClient(timeout=LIST_S) as http:  # which follows no redirect: a key goes nowhere else
        return await lister(endpoint, http)


async def _of_openai(endpoint: Endpoint, http: httpx2.AsyncClient) -> list[str]:
    """By the OpenAI SDK, which goes for all that speak its protocol."""
    dropped, added = set(openai.not_for(endpoint)), {}
    if endpoint.row.dialect == "portkey":
        dropped.add("authorization")
        added = {"x-portkey-api-key": endpoint.api_key or "", **{_portkey_header(name): value for name, value in endpoint.settings}}

    async def amend(request: httpx2.Request) -> None:
        for name in dropped:
            request.headers.pop(name, None)
        request.headers.update(added)

    http.event_hooks = {"request": [amend]}
    client = openai.sdk_client(endpoint, http)
    return [model.id async for model in client.models.list()]


def _portkey_header(setting: str) -> str:
    return f"x-portkey-{setting.replace('_', '-')}"


async def _of_anthropic(endpoint: Endpoint, http: httpx2.AsyncClient) -> list[str]:
    client = anthropic.sdk_client(endpoint, http)
    return [model.id async for model in client.models.list(limit=PAGE)]


async def _of_gemini(endpoint: Endpoint, http: httpx2.AsyncClient) -> list[str]:
    client = gemini.sdk_client(endpoint, http)
    try:
        models = await client.aio.models.list(config={"page_size": PAGE})
        return [(model.name or "").rpartition("/")[2] async for model in models if ANSWERS in (model.supported_actions or (ANSWERS,))]
    finally:
        client.close()


_LISTERS: Mapping[str, Lister] = {"anthropic": _of_anthropic, "gemini": _of_gemini}


def _failure(error: Exception, endpoint: Endpoint) -> Listing:
    teller, url = Teller(endpoint), endpoint.shown_url
    told = one_line(teller.without_secrets(_message(error)), TOLD_CHARS) or type(error).__name__
    status = next((code for name in ("status_code", "code") if isinstance(code := getattr(error, name, None), int)), None)
    if status in REFUSED_KEY or KEY_INVALID in str(error):
        return Listing(reach="key refused", text=f"{url} does not accept the key in {endpoint.key_variable} ({told})")
    if status is not None:
        return Listing(reach="error", text=f"{url} answers with status {status} ({told})")
    if (lost := _lost_connection(error)) is not None:
        return Listing(reach="not reachable", text=f"{url} ({one_line(teller.without_secrets(str(lost)), TOLD_CHARS) or told})")
    return Listing(reach="error", text=f"what {url} answers is no list of models; is the base URL right? ({told})")


def _message(error: Exception) -> str:
    """The provider's own words, where the SDK has found them in the body."""
    body = getattr(error, "body", None)
    told = body.get("error", body) if isinstance(body, dict) else None
    message = told.get("message") if isinstance(told, dict) else getattr(error, "message", None)
    return message if isinstance(message, str) else str(error)


def _lost_connection(error: BaseException | None) -> BaseException | None:
    """What the connection failed of, below an SDK's own error."""
    import httpx2

    while error is not None and not isinstance(error, (httpx2.TransportError, OSError)):
        error = error.__cause__
    return error
