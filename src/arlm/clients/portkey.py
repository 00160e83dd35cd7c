"""Models behind Portkey's gateway. Needs the extra ``portkey``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .chat_wire import ChatWire
from .endpoint import Endpoint, endpoint_of, variable
from .link import Sdk, Written
from .openai import ACCOUNT
from .remote import TIMEOUT_S, RemoteLM
from .rows import ROWS
from .wire import encoded

if TYPE_CHECKING:
    from .wire import Wire

# The SDK writes an authorization with the name of a variable for a key, though Portkey reads a header of its own; and, from the
# environment, the ids of an OpenAI account.
_DROPPED = ACCOUNT | {"authorization"}


async def _write(endpoint: Endpoint, route: str) -> Written:
    """The request that the SDK would send, taken from it at its transport."""
    import httpx
    import portkey_ai

    seen: list[httpx.Request] = []

    def take(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={})

    settings: dict[str, Any] = dict(endpoint.settings)
    async with httpx.AsyncClient(transport=httpx.MockTransport(take), trust_env=False) as http:
        client = portkey_ai.AsyncPortkey(api_key=endpoint.api_key, base_url=endpoint.base_url, http_client=http, **settings)
        await client.chat.completions.create(model="any", messages=[{"role": "user", "content": "."}])
    return str(seen[0].url), [(name, value) for name, value in seen[0].headers.multi_items() if name.lower() not in _DROPPED]


SDK = Sdk(name="portkey", modules=("portkey_ai", "httpx"), extra="portkey", write=_write, trial="/chat/completions")


class PortkeyLM(RemoteLM):
    """A model behind Portkey's gateway; see :class:`RemoteLM` for what holds of all clients.

    Args:
        model: ``"@provider/name"`` of Portkey's model catalogue, or the name of a model of the provider that the virtual key or the
            config leads to.
        base_url: instead of ``PORTKEY_PROXY`` or Portkey's own; a gateway of one's own has one.
        api_key: instead of ``PORTKEY_API_KEY``. It is never shown.
        virtual_key: instead of ``PORTKEY_VIRTUAL_KEY``. It is never shown.
        config: a config's id, or the config itself; instead of ``PORTKEY_CONFIG``. It is never shown, as it may hold keys.
        portkey_provider: instead of ``PORTKEY_PROVIDER``, such as ``"openai"``.
        timeout: seconds for one call.

    Raises:
        ConfigError: missing key or package, or a base URL that is none.
    """

    sdk = SDK

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        virtual_key: str | None = None,
        config: str | Mapping[str, Any] | None = None,
        portkey_provider: str | None = None,
        timeout: float = TIMEOUT_S,
    ) -> None:
        row = ROWS["portkey"]
        if isinstance(config, Mapping):
            config = encoded(config).decode()
        elif config is not None and not isinstance(config, str):
            raise ConfigError(f"Portkey's config is its id or a dict, not {type(config).__name__}")
        given = {
            "virtual_key": virtual_key or variable("PORTKEY_VIRTUAL_KEY"),
            "config": config or variable("PORTKEY_CONFIG"),
            "provider": portkey_provider or variable("PORTKEY_PROVIDER"),
        }
        settings = tuple((name, value) for name, value in given.items() if value)
        super().__init__(model, endpoint_of(row, base_url=base_url, api_key=api_key, settings=settings), timeout=timeout)
        self._chat = ChatWire(row)

    def wire(self, model: str) -> Wire:
        """Chat Completions, which Portkey speaks for every provider behind it."""
        return self._chat


def provider(_provider_name: str, model: str) -> PortkeyLM:
    """What the entry point calls."""
    return PortkeyLM(model)
