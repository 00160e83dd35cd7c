"""The OpenAI-compatible providers, one row of data each, and what the environment says about them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from ..errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

OLLAMA_PORT = 11434


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One provider.

    Attributes:
        name: the part before the slash in a model's name.
        base_url_variable: the variable that holds the base URL.
        base_url: used where the variable is not set; None: it must be.
        key_variable: the variable that holds the key.
        key_required: whether there is no call without a key.
        max_tokens: what the body calls the cap on a reply's tokens.
        extra_body: what every body carries besides.
        dialect: whose URLs and headers the SDK writes.
    """

    name: str
    base_url_variable: str
    base_url: str | None
    key_variable: str | None
    key_required: bool = True
    max_tokens: str = "max_tokens"
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    dialect: Literal["openai", "azure"] = "openai"


ROWS: Mapping[str, Row] = {
    row.name: row
    for row in (
        Row(
            name="openai",
            base_url_variable="OPENAI_BASE_URL",
            base_url="https://api.openai.com/v1",
            key_variable="OPENAI_API_KEY",
            max_tokens="max_completion_tokens",
        ),
        Row(
            name="azure",
            base_url_variable="AZURE_OPENAI_ENDPOINT",
            base_url=None,
            key_variable="AZURE_OPENAI_API_KEY",
            max_tokens="max_completion_tokens",
            dialect="azure",
        ),
        Row(
            name="openrouter",
            base_url_variable="OPENROUTER_BASE_URL",
            base_url="https://openrouter.ai/api/v1",
            key_variable="OPENROUTER_API_KEY",
            extra_body={"usage": {"include": True}},  # asks for usage.cost
        ),
        Row(
            name="vllm",
            base_url_variable="VLLM_BASE_URL",
            base_url="http://localhost:8000/v1",
            key_variable="VLLM_API_KEY",
            key_required=False,
        ),
        Row(
            name="ollama",
            base_url_variable="OLLAMA_HOST",
            base_url=f"http://localhost:{OLLAMA_PORT}/v1",
            key_variable=None,
            key_required=False,
        ),
        Row(
            name="vercel",
            base_url_variable="AI_GATEWAY_BASE_URL",
            base_url="https://ai-gateway.vercel.sh/v1",
            key_variable="AI_GATEWAY_API_KEY",
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where one model object's calls go. Equal endpoints share their connections.

    Attributes:
        row: the provider.
        base_url: with the version path, without credentials.
        api_key: None where the provider needs none.
        api_version: of Azure.
    """

    row: Row = field(hash=False)
    base_url: str
    api_key: str | None = field(repr=False)
    api_version: str | None = None

    @property
    def shown_url(self) -> str:
        """The base URL as messages may show it."""
        return shown(self.base_url)


def shown(url: str) -> str:
    """A URL without what may be a secret in it: name, password, and the query."""
    parts = urlsplit(url)
    query = "…" if parts.query else ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def endpoint_of(row: Row, *, base_url: str | None = None, api_key: str | None = None) -> Endpoint:
    """What the arguments, or else the environment, say about a provider.

    Raises:
        ConfigError: a key, URL or version is missing (the message names the variable), or the URL is none.
    """
    key = api_key or (_variable(row.key_variable) if row.key_variable else None)
    if key is None and row.key_required:
        raise ConfigError(f"the provider {row.name!r} needs a key: set {row.key_variable}")
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ConfigError(f"the key for {row.name!r} has characters that no HTTP header can carry; check {row.key_variable or 'api_key'}")
    url = base_url or _variable(row.base_url_variable) or row.base_url
    if url is None:
        raise ConfigError(f"the provider {row.name!r} needs its base URL: set {row.base_url_variable}")
    version = _variable("OPENAI_API_VERSION") if row.dialect == "azure" else None
    if row.dialect == "azure" and version is None:
        raise ConfigError(f"the provider {row.name!r} needs an API version: set OPENAI_API_VERSION, for example to 2024-10-21")
    return Endpoint(row=row, base_url=_checked_url(row, url), api_key=key, api_version=version)


def _variable(name: str) -> str | None:
    return os.environ.get(name, "").strip() or None


def _checked_url(row: Row, url: str) -> str:
    has_user = False
    try:
        if row.name == "ollama":
            url = _ollama_url(url)
        parts = urlsplit(url)
        has_user = parts.username is not None
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(
            f"the base URL of {row.name!r} is {_shown_bad(url)!r}; "
            f"it must begin with http:// or https:// (variable {row.base_url_variable})"
        )
    if has_user:
        raise ConfigError(f"the base URL of {row.name!r} must not carry credentials (variable {row.base_url_variable})")
    return url.rstrip("/")


def _shown_bad(url: str) -> str:
    """The same for what may be no URL at all."""
    try:
        return shown(url) if "@" not in url.partition("?")[0] else f"…@{url.partition('?')[0].rpartition('@')[2]}"
    except ValueError:
        return "…"


def _ollama_url(host: str) -> str:
    """Ollama's own variable may be a bare host, a port, or a URL, and never has the ``/v1`` of its OpenAI-compatible side."""
    if "//" not in host:
        parts = urlsplit(f"http://{host}")
        name = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname or "localhost"
        parts = parts._replace(netloc=f"{name}:{parts.port or OLLAMA_PORT}")
    else:
        parts = urlsplit(host)
    return urlunsplit(parts if parts.path.strip("/") else parts._replace(path="/v1"))
