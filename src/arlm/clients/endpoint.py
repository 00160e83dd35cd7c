"""Where a provider's calls go, and what the environment says about it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

from ..errors import ConfigError
from .rows import OLLAMA_PORT, Row

TokenProvider = Callable[[], str | Awaitable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where one model object's calls go. Equal endpoints share their connections.

    Attributes:
        row: the provider.
        base_url: with the version path, without credentials.
        api_key: None where the provider needs none, or where a token takes its place.
        key_variable: where the key came from, or the provider's own variable.
        settings: what else the SDK is told, by its own names, such as ``api_version``. Never shown.
        token_provider: gives the token of the moment instead of a key.
        renews: whether what authenticates a call changes with time, so that the SDK has to be asked for it again and again.
    """

    row: Row = field(hash=False)
    base_url: str
    api_key: str | None = field(repr=False)
    key_variable: str = "the key"
    settings: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    token_provider: TokenProvider | None = field(default=None, repr=False)
    renews: bool = False

    @property
    def shown_url(self) -> str:
        """The base URL as messages may show it."""
        return shown(self.base_url)


def shown(url: str) -> str:
    """A URL without what may be a secret in it: name, password, and the query."""
    parts = urlsplit(url)
    query = "…" if parts.query else ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def endpoint_of(
    row: Row,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    token_provider: TokenProvider | None = None,
    renews: bool = False,
    settings: tuple[tuple[str, str], ...] = (),
) -> Endpoint:
    """What the arguments, or else the environment, say about a provider.

    Args:
        row: the provider.
        base_url: instead of its variable or default.
        api_key: instead of its variables.
        token_provider: instead of a key.
        renews: the SDK finds what authenticates a call by itself; no key is looked for.
        settings: as in Endpoint.

    Raises:
        ConfigError: a key or URL is missing (the message names the variable), or the URL is none.
    """
    renews = renews or token_provider is not None
    name, key = row.key_variable or "the key", api_key
    if not renews and key is None:
        name, key = next(((name, value) for name in row.key_variables if (value := variable(name))), (name, None))
    if key is None and row.key_required and not renews:
        raise ConfigError(f"the provider {row.name!r} needs a key: set {' or '.join(row.key_variables)}")
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ConfigError(f"the key for {row.name!r} has characters that no HTTP header can carry; check {name}")
    url = base_url or variable(row.base_url_variable) or row.base_url
    if url is None:
        raise ConfigError(f"the provider {row.name!r} needs its base URL: set {row.base_url_variable}")
    return Endpoint(
        row=row,
        base_url=_checked_url(row, url),
        api_key=key,
        key_variable=name,
        settings=settings,
        token_provider=token_provider,
        renews=renews,
    )


def variable(name: str) -> str | None:
    """What the environment has under a name; None for nothing and for blanks."""
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
