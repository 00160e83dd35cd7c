"""Anthropic's models. Needs the extra ``anthropic``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import BadRequest, ProviderError
from .anthropic_wire import MessagesWire, learned_limit
from .endpoint import Endpoint, endpoint_of
from .link import Sdk, Written
from .remote import RemoteLM
from .rows import ROWS
from .taking import Taker

if TYPE_CHECKING:
    import httpx2

    from .wire import Wire

TIMEOUT_S = 600.0  # for one call, as in the SDK: what a call may write without streaming is reckoned to take that long


async def _write(endpoint: Endpoint, route: str) -> Written:
    """The request that the SDK would send, taken from it at its transport."""
    taker = Taker()
    async with sdk_client(endpoint, taker.http) as client:
        await client.messages.with_raw_response.create(model="any", max_tokens=1, messages=[{"role": "user", "content": "."}])
    return taker.written()


def sdk_client(endpoint: Endpoint, http: httpx2.AsyncClient) -> Any:
    """The SDK's async client for an endpoint, over ``http``; without retries."""
    import anthropic

    is_token = endpoint.key_variable == "ANTHROPIC_AUTH_TOKEN"
    secret: dict[str, Any] = {"auth_token" if is_token else "api_key": endpoint.api_key}
    return anthropic.AsyncAnthropic(base_url=endpoint.base_url, max_retries=0, http_client=http, **secret)


SDK = Sdk(name="anthropic", modules=("anthropic",), extra="anthropic", write=_write, trial="/v1/messages")


class AnthropicLM(RemoteLM):
    """A model of Anthropic's Messages API; see :class:`RemoteLM` for what holds of all clients.

    The API wants a cap on the output with every call. Without ``max_tokens`` it is the most that may be asked for without streaming
    (21,333 tokens), or less where the model writes less; a limit that is not known beforehand is learned from the refusal of the first
    call, which is then made again. Above it the reply is streamed, as the SDK demands. In conversations with a system message, that and
    the turns so far are marked for the prompt cache. Thinking is left out of the text.

    Args:
        model: such as ``"claude-haiku-4-5"``.
        base_url: instead of ``ANTHROPIC_BASE_URL`` or Anthropic's own.
        api_key: instead of ``ANTHROPIC_API_KEY`` or ``ANTHROPIC_AUTH_TOKEN``. It is never shown.
        timeout: seconds for one call.

    Raises:
        ConfigError: missing key or package, or a base URL that is none.
    """

    sdk = SDK

    def __init__(self, model: str, *, base_url: str | None = None, api_key: str | None = None, timeout: float = TIMEOUT_S) -> None:
        super().__init__(model, endpoint_of(ROWS["anthropic"], base_url=base_url, api_key=api_key), timeout=timeout)
        self._messages = MessagesWire()

    def wire(self, model: str) -> Wire:
        """Messages."""
        return self._messages

    def amended(self, error: ProviderError, model: str) -> bool:
        """Whether the call was refused for asking for more output than the model has."""
        limit = learned_limit(str(error)) if isinstance(error, BadRequest) else None
        if limit is None or limit == self._messages.limits.get(model):
            return False
        self._messages.limits[model] = limit
        return True


def provider(_provider_name: str, model: str) -> AnthropicLM:
    """What the entry point calls."""
    return AnthropicLM(model)
