"""Models of Quill, a made-up text service: an example of a provider that is a package of its own."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Hashable, Mapping
from typing import Any

import aiohttp

import arlm
from arlm.clients.base import Prompt, as_messages
from arlm.loopbound import on_loop_close, per_loop

__all__ = ["VARIABLES", "QuillLM", "provider"]

VARIABLES = ("QUILL_URL", "QUILL_KEY")  # `arlm models` lists them, and says which are set
TIMEOUT_S = 300.0  # for one call
LARGE_BYTES = 2**20  # a body above it goes out in pieces, so that other calls get their turn in between
TOLD_CHARS = 300  # of the service's own words in an error
SETTINGS = {"temperature": "temperature", "max_tokens": "longest", "stop": "until"}  # arlm's sampling options, and Quill's names of them
ENDS = {"done": "stop", "length": "length"}  # Quill's words for why a text ended, and arlm's

ERRORS: Mapping[int, type[arlm.ProviderError]] = {
    401: arlm.AuthError,
    403: arlm.AuthError,
    408: arlm.ConnectionFailed,
    413: arlm.ContextTooLong,
    429: arlm.RateLimited,
    451: arlm.Refused,
}


def provider(provider_name: str, model: str) -> QuillLM:
    """What the entry point names: makes the model of ``"quill/NAME"``."""
    return QuillLM(model)


class QuillLM(arlm.BaseLM):
    """A model of Quill. Nothing is opened before the first call.

    Args:
        model: Quill's name of it.
        url: where Quill is; instead of ``QUILL_URL``.
        key: instead of ``QUILL_KEY``. It is never shown.
        timeout: seconds for one call.

    Raises:
        ConfigError: there is no URL or no key.
    """

    provider = "quill"

    def __init__(self, model: str, *, url: str | None = None, key: str | None = None, timeout: float = TIMEOUT_S) -> None:
        super().__init__(model)
        self._url = (url or _variable("QUILL_URL")).rstrip("/")
        self._key = key or _variable("QUILL_KEY")
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        if not self._url.startswith(("http://", "https://")):
            raise arlm.ConfigError("QUILL_URL must begin with http:// or https://")
        if not (self._key.isascii() and self._key.isprintable()):
            raise arlm.ConfigError("the key in QUILL_KEY has characters that no HTTP header can carry")

    @property
    def rate_key(self) -> Hashable:
        """Two addresses, or two keys, have two rate limits."""
        return self.name, self._url, hash(self._key)

    def check_sampling(self, sampling: Mapping[str, Any]) -> None:
        """Refuse what Quill does not have. Called before a run begins; sends nothing."""
        for name in sampling:
            if name not in SETTINGS:
                raise arlm.ConfigError(f"'quill' has no sampling option {name!r}; there is: {', '.join(SETTINGS)}")

    async def acompletion(self, prompt: Prompt, *, model: str | None = None, sampling: Mapping[str, Any] | None = None) -> arlm.Completion:
        """Make one call. Cancelling it closes its connection.

        Args:
            prompt: the messages, or the text of one.
            model: another of Quill's models, with or without ``quill/`` before it.
            sampling: ``temperature``, ``max_tokens`` and ``stop``.

        Raises:
            AuthError, RateLimited, Overloaded, ContextTooLong, Refused, BadRequest, ConnectionFailed: the call failed.
            ConfigError: an option that Quill does not have; nothing was sent.
        """
        self.check_sampling(sampling or {})
        name = (model or self.model).removeprefix("quill/")
        turns = [{"role": message["role"], "text": message["content"]} for message in as_messages(prompt)]
        settings = {SETTINGS[option]: value for option, value in (sampling or {}).items() if value is not None}
        status, headers, body = await self._send(json.dumps({"model": name, "turns": turns, "settings": settings}).encode())
        if status != 200:
            raise self._error(status, headers, body)
        return self._read(body, name)

    async def _send(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        session = per_loop(_open_session, _open_session)
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        data = body if len(body) <= LARGE_BYTES else io.BytesIO(body)
        try:
            async with session.post(
                f"{self._url}/write", data=data, headers=headers, timeout=self._timeout, allow_redirects=False
            ) as reply:
                return reply.status, reply.headers, await reply.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            problem = f"no whole reply from {self._url}: {self._without_key(str(error)) or type(error).__name__}"
        # Out here, so that aiohttp's error, which may show headers, is not the context of this one.
        raise arlm.ConnectionFailed(problem, provider=self.provider)

    def _read(self, body: bytes, name: str) -> arlm.Completion:
        try:
            reply = json.loads(body)
        except ValueError:
            reply = None
        if reply is None:
            raise arlm.ConnectionFailed(f"the reply of {self._url} is not valid JSON; it was probably cut off", provider=self.provider)
        if not isinstance(reply, dict) or not isinstance(reply.get("text"), str):
            raise arlm.BadRequest(f"the reply of {self._url} has no text in it: is QUILL_URL right?", provider=self.provider)
        tokens = reply.get("tokens") or {}
        return arlm.Completion(
            text=reply["text"],
            model=f"{self.provider}/{name}",
            usage=arlm.TokenUsage(input_tokens=tokens.get("read"), output_tokens=tokens.get("written")),
            finish_reason=ENDS.get(reply.get("ended", ""), reply.get("ended")),
        )

    def _error(self, status: int, headers: Mapping[str, str], body: bytes) -> arlm.ProviderError:
        try:
            told = str(json.loads(body)["error"]["message"])
        except (ValueError, LookupError, TypeError):
            told = body.decode("utf-8", "replace")
        kind = ERRORS.get(status, arlm.Overloaded if status >= 500 else arlm.BadRequest)
        advice = "; check QUILL_KEY" if kind is arlm.AuthError else ""
        try:
            wait = float(headers["Retry-After"])
        except (KeyError, ValueError):
            wait = None
        message = f"quill {status}: {self._without_key(told)[:TOLD_CHARS]}{advice}"
        return kind(message, provider=self.provider, status=status, retry_after=wait)

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***")


def _variable(name: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value:
        raise arlm.ConfigError(f"the provider 'quill' needs {name}: set it")
    return value


def _open_session() -> aiohttp.ClientSession:
    """This event loop's connections: as many as there are calls. They are closed with the loop."""
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar())
    on_loop_close(session.close)
    return session
