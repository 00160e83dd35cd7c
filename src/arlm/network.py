"""What the environment says of the network: by which proxy others are reached, and whom a TLS connection trusts. As the SDKs read it."""

from __future__ import annotations

import ipaddress
import ssl
import urllib.request
from urllib.parse import urlsplit

from .errors import ConfigError


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for a URL. Raises ConfigError for one of a kind that aiohttp does not speak to."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host):
        return None  # what a proxy would call by that name is the proxy's own machine
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy is None or urllib.request.proxy_bypass(host):
        return None
    proxy = proxy if "//" in proxy else f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise ConfigError(f"the proxy for {host} is a {proxy.partition(':')[0]} proxy; only http and https proxies work here")
    return proxy


def trusted(url: str) -> ssl.SSLContext | bool:
    """Whom a TLS connection to a URL trusts: the certificates that the environment names, else those of certifi."""
    if not url.startswith("https:"):
        return True
    import httpx2

    return httpx2.create_ssl_context()


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
