"""OpenAI's Chat Completions, and every provider that speaks them."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..errors import ConfigError
from ..plugins import did_you_mean
from ..shielding import in_own_task
from .base import BaseLM, Prompt, as_messages, model_name
from .openai_errors import body_error, refused, status_error
from .openai_link import Reply, link_to
from .openai_rows import ROWS, endpoint_of
from .openai_wire import completion_of, refusal_of, request_body

if TYPE_CHECKING:
    from collections.abc import Hashable

    from ..types import JSON, Completion

TIMEOUT_S = 300.0  # for one call: reasoning models may think for minutes before the first byte
GRACE_S = 1.0  # for a cancelled call to close its connection; it takes microseconds


class OpenAILM(BaseLM):
    """A model behind an OpenAI-compatible endpoint. Nothing is imported or opened before the first call.

    One object may be used from several event loops; all objects with the same endpoint and key share one connection pool on each loop,
    which stands thousands of calls in flight and is closed when the loop shuts down. Nothing is retried here.

    Args:
        model: the provider's name for the model; for Azure the deployment.
        provider: ``"openai"``, ``"azure"``, ``"openrouter"``, ``"vllm"``, ``"ollama"`` or ``"vercel"``.
        base_url: instead of the provider's variable or default.
        api_key: instead of the provider's variable. It is never shown.
        timeout: seconds for one call.

    Raises:
        ConfigError: unknown provider, missing key (the message names the variable), or a base URL that is none.
    """

    def __init__(
        self,
        model: str,
        *,
        provider: str = "openai",
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = TIMEOUT_S,
    ) -> None:
        super().__init__(model)
        if provider not in ROWS:
            raise ConfigError(f"unknown provider {provider!r}{did_you_mean(provider, ROWS)}; there is: {', '.join(ROWS)}")
        self.provider = provider
        self.timeout = timeout
        self._row = ROWS[provider]
        self._endpoint = endpoint_of(self._row, base_url=base_url, api_key=api_key)

    @property
    def base_url(self) -> str:
        """Where calls go."""
        return self._endpoint.base_url

    @property
    def rate_key(self) -> Hashable:
        """The name, and where and for whom calls are made: two keys have two limits."""
        return self.name, self._endpoint

    async def acompletion(self, prompt: Prompt, *, model: str | None = None, sampling: Mapping[str, JSON] | None = None) -> Completion:
        """Make one call. Cancelling it closes its connection.

        Args:
            prompt: messages, or the text of one user message.
            model: another model behind the same endpoint, with or without the provider's name before it.
            sampling: ``temperature``, ``top_p``, ``max_tokens``, ``stop``, ``seed``, ``reasoning_effort``, and ``extra_body``, a dict of
                further fields of the request.

        Raises:
            AuthError, RateLimited, Overloaded, ContextTooLong, Refused, BadRequest, ConnectionFailed: the call failed.
            ConfigError: a sampling option that does not exist; nothing was sent.
        """
        name = model_name(self, model)
        target = name.partition("/")[2]
        body = request_body(self._row, target, as_messages(prompt), sampling)
        path = f"/deployments/{quote(target, safe='')}/chat/completions" if self._row.dialect == "azure" else "/chat/completions"
        link = await link_to(self._endpoint)
        reply = await in_own_task(functools.partial(link.post, path, body, timeout=self.timeout), grace=GRACE_S)
        return self._completion(reply, name)

    def _completion(self, reply: Reply, name: str) -> Completion:
        if not 200 <= reply.status < 300:
            raise status_error(self._endpoint, reply.status, reply.headers, reply.body)
        try:
            parsed: Any = json.loads(reply.body)
            if isinstance(parsed, Mapping) and parsed.get("error") and not parsed.get("choices"):
                raise status_error(self._endpoint, _status_in(parsed, reply.status), reply.headers, reply.body)
            completion, refusal = completion_of(parsed, name), refusal_of(parsed)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            completion = None
        if completion is None:  # out here, because the error of a parser holds all of the body, and a body may repeat the key
            raise body_error(self._endpoint, reply.status, reply.headers.get("content-type", ""), reply.body)
        if refusal is not None:
            raise refused(self._endpoint, refusal, parsed.get("usage"))
        return completion


def provider(provider_name: str, model: str) -> OpenAILM:
    """What the entry points of the OpenAI-compatible providers call."""
    return OpenAILM(model, provider=provider_name)


def _status_in(parsed: Mapping[str, Any], status: int) -> int:
    """OpenRouter answers 200 and puts the upstream's status into the error object."""
    error = parsed["error"]
    code = error.get("code") if isinstance(error, Mapping) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 502 if status < 300 else status
