"""Google's Gemini models, by the Gemini API or Vertex AI. Needs the extra ``gemini``."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..loopbound import on_loop_close, per_loop
from .endpoint import Endpoint, endpoint_of, variable
from .gemini_wire import GenerateWire
from .link import Sdk, Written
from .remote import TIMEOUT_S, RemoteLM
from .rows import ROWS
from .taking import Taker

if TYPE_CHECKING:
    import httpx2

    from .wire import Wire

VERTEX_URL = "https://aiplatform.googleapis.com"  # in messages; the SDK knows where each location really is
YES = ("1", "true")


class _Scribe:
    """Has one SDK client write requests, and takes them from it at its transport. One client, because it remembers its token."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._taker = Taker()
        self._client = sdk_client(endpoint, self._taker.http)

    async def write(self, model: str) -> Written:
        await self._client.aio.models.generate_content(model=model, contents=".")
        return self._taker.written()

    async def aclose(self) -> None:
        self._client.close()
        await self._taker.http.aclose()


async def _write(endpoint: Endpoint, route: str) -> Written:
    """The request that the SDK would send for the model ``route``."""
    scribes = _scribes()
    if endpoint not in scribes:
        scribe = scribes[endpoint] = await asyncio.to_thread(_Scribe, endpoint)  # it loads certificates for connections of its own
        on_loop_close(scribe.aclose)
    return await scribes[endpoint].write(route)


def _forget(endpoint: Endpoint) -> None:
    """The SDK keeps a token until it expires; only a new client asks for another one."""
    _scribes().pop(endpoint, None)


def _scribes() -> dict[Endpoint, _Scribe]:
    return per_loop(_Scribe, dict)


def sdk_client(endpoint: Endpoint, http: httpx2.AsyncClient) -> Any:
    """The SDK's client for an endpoint, whose async side works over ``http``."""
    from google import genai
    from google.genai import types

    settings = dict(endpoint.settings)
    url = None if endpoint.base_url == VERTEX_URL else endpoint.base_url
    return genai.Client(
        vertexai="vertexai" in settings,
        api_key=endpoint.api_key,
        project=settings.get("project"),
        location=settings.get("location"),
        http_options=types.HttpOptions(base_url=url, httpx_async_client=http),
    )


SDK = Sdk(name="gemini", modules=("google.genai",), extra="gemini", write=_write, trial="any", forget=_forget)


class GeminiLM(RemoteLM):
    """A model of the Gemini API, or of Vertex AI; see :class:`RemoteLM` for what holds of all clients.

    With ``GOOGLE_GENAI_USE_VERTEXAI`` set to true, calls go to Vertex AI: with the machine's Google credentials for the project in
    ``GOOGLE_CLOUD_PROJECT`` and the location in ``GOOGLE_CLOUD_LOCATION``, or with an API key where no project is named. Thoughts are left
    out of the text; a prompt or a reply that a filter stopped is Refused.

    Args:
        model: such as ``"gemini-3.5-flash"``.
        base_url: instead of ``GOOGLE_GEMINI_BASE_URL`` or Google's own.
        api_key: instead of ``GOOGLE_API_KEY`` or ``GEMINI_API_KEY``. It is never shown.
        timeout: seconds for one call.

    Raises:
        ConfigError: missing key or package, or a base URL that is none.
    """

    sdk = SDK

    def __init__(self, model: str, *, base_url: str | None = None, api_key: str | None = None, timeout: float = TIMEOUT_S) -> None:
        super().__init__(model, _endpoint(base_url, api_key), timeout=timeout)
        self._generate = GenerateWire()

    def wire(self, model: str) -> Wire:
        """generateContent."""
        return self._generate


def provider(_provider_name: str, model: str) -> GeminiLM:
    """What the entry point calls."""
    return GeminiLM(model)


def _endpoint(base_url: str | None, api_key: str | None) -> Endpoint:
    row = ROWS["gemini"]
    if (variable("GOOGLE_GENAI_USE_VERTEXAI") or "").lower() not in YES:
        return endpoint_of(row, base_url=base_url, api_key=api_key)
    row = replace(row, base_url=VERTEX_URL, base_url_variable="GOOGLE_VERTEX_BASE_URL")
    settings = [("vertexai", "true")]
    project = variable("GOOGLE_CLOUD_PROJECT") if api_key is None else None
    if project is not None:
        settings += [("project", project), ("location", variable("GOOGLE_CLOUD_LOCATION") or "global")]
    return endpoint_of(row, base_url=base_url, api_key=api_key, renews=project is not None, settings=tuple(settings))
