"""OpenAI's models, and every provider that speaks OpenAI's wire."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import BadRequest, ConfigError, ProviderError
from .chat_wire import ChatWire
from .endpoint import Endpoint, TokenProvider, endpoint_of, variable
from .function import is_async_callable
from .link import Sdk, Written
from .remote import TIMEOUT_S, RemoteLM, row_of
from .responses_wire import ONLY_HERE, REDIRECTION, ResponsesWire
from .taking import Taker

if TYPE_CHECKING:
    import httpx2

    from .wire import Wire

__all__ = ["TIMEOUT_S", "OpenAILM", "not_for", "provider", "sdk_client"]

_NO_KEY = "none"  # the SDK insists on a key; the header it writes from this one is not sent
ACCOUNT = frozenset({"openai-organization", "openai-project"})  # an OpenAI account's ids are nobody else's business


async def _write(endpoint: Endpoint, route: str) -> Written:
    """The request that the SDK would send, taken from it at its transport."""
    import httpx2

    taker = Taker()
    async with sdk_client(endpoint, taker.http) as client:
        await client.post(route, content=b"{}", cast_to=httpx2.Response, options={"headers": {"Content-Type": "application/json"}})
    url, headers = taker.written()
    dropped = not_for(endpoint)
    return url, [(name, value) for name, value in headers if name.lower() not in dropped]


def sdk_client(endpoint: Endpoint, http: httpx2.AsyncClient) -> Any:
    """The SDK's async client for an endpoint, over ``http``; without retries."""
    import openai

    if endpoint.row.dialect == "azure":
        is_token = endpoint.key_variable == "AZURE_OPENAI_AD_TOKEN"
        return openai.AsyncAzureOpenAI(
            azure_endpoint=endpoint.base_url,
            api_key=None if is_token else endpoint.api_key,
            azure_ad_token=endpoint.api_key if is_token else None,
            azure_ad_token_provider=_off_the_loop(endpoint.token_provider),
            api_version=dict(endpoint.settings)["api_version"],
            max_retries=0,
            http_client=http,
        )
    key = endpoint.api_key or _NO_KEY
    authorization = {} if endpoint.row.name == "openai" else {"Authorization": f"Bearer {key}"}  # over one in OPENAI_CUSTOM_HEADERS
    return openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=key, max_retries=0, http_client=http, default_headers=authorization)


def _off_the_loop(provider: TokenProvider | None) -> Callable[[], Awaitable[str]] | None:
    """The SDK calls it on the loop, and one that is not async may ask the network."""
    if provider is None:
        return None

    async def token() -> str:
        given = await asyncio.to_thread(provider) if not is_async_callable(provider) else provider()
        return given if isinstance(given, str) else await given

    return token


def not_for(endpoint: Endpoint) -> frozenset[str]:
    """Headers that the SDK takes from the environment for OpenAI's own API and that must not go to this endpoint."""
    if endpoint.row.name in ("openai", "azure"):
        return frozenset()
    custom = {line.partition(":")[0].strip().lower() for line in os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines()}
    return ACCOUNT | (custom - {"authorization", "content-type"}) | (frozenset() if endpoint.api_key else {"authorization"})


SDK = Sdk(name="openai", modules=("openai",), extra=None, write=_write, trial="/chat/completions")


class OpenAILM(RemoteLM):
    """A model behind an OpenAI-compatible endpoint; see :class:`RemoteLM` for what holds of all clients.

    Models that OpenAI serves by its Responses API alone are asked there; those that are not known as such are found out by the refusal of
    the first call, which is then made again.

    Args:
        model: the provider's name for the model; for Azure the deployment.
        provider: ``"openai"``, ``"azure"``, ``"openrouter"``, ``"vllm"``, ``"ollama"`` or ``"vercel"``.
        base_url: instead of the provider's variable or default.
        api_key: instead of the provider's variable. It is never shown.
        azure_ad_token_provider: for Azure instead of a key: a function, sync or async, that returns a token of Microsoft Entra ID, such as
            ``azure.identity.aio.get_bearer_token_provider(credential, scope)``. It is asked every half minute, and after a 401.
        timeout: seconds for one call.

    Raises:
        ConfigError: unknown provider, missing key (the message names the variable), or a base URL that is none.
    """

    sdk = SDK

    def __init__(
        self,
        model: str,
        *,
        provider: str = "openai",
        base_url: str | None = None,
        api_key: str | None = None,
        azure_ad_token_provider: TokenProvider | None = None,
        timeout: float = TIMEOUT_S,
    ) -> None:
        row = row_of(provider, "openai", "azure")
        if azure_ad_token_provider is not None and row.dialect != "azure":
            raise ConfigError(f"azure_ad_token_provider is for the provider 'azure', not {provider!r}")
        endpoint = endpoint_of(row, base_url=base_url, api_key=api_key, token_provider=azure_ad_token_provider)
        super().__init__(model, _with_version(endpoint) if row.dialect == "azure" else endpoint, timeout=timeout)
        self._chat = ChatWire(row)
        self._responses = ResponsesWire(row)
        self._responses_only: set[str] = set()

    def wire(self, model: str) -> Wire:
        """Chat Completions, or Responses for the models that need it."""
        if model in self._responses_only or (self.provider in ("openai", "azure") and ONLY_HERE.search(model)):
            return self._responses
        return self._chat

    def amended(self, error: ProviderError, model: str) -> bool:
        """Whether the call was refused because the model is for the other wire."""
        if not isinstance(error, BadRequest) or model in self._responses_only or not REDIRECTION.search(str(error)):
            return False
        self._responses_only.add(model)
        return True


def provider(provider_name: str, model: str) -> OpenAILM:
    """What the entry points of the OpenAI-compatible providers call."""
    return OpenAILM(model, provider=provider_name)


def _with_version(endpoint: Endpoint) -> Endpoint:
    version = variable("OPENAI_API_VERSION")
    if version is None:
        raise ConfigError("the provider 'azure' needs an API version: set OPENAI_API_VERSION, for example to 2024-10-21")
    return replace(endpoint, settings=(("api_version", version),))
