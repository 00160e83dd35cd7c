"""One endpoint's connections on one event loop.

The SDK writes the envelope (URL, authentication, Azure's deployment path, its own headers) once for each path, and aiohttp carries every
call in it. Through the whole SDK a call costs several times the CPU of the HTTP itself, and none of that work differs between two calls.
"""

from __future__ import annotations

import asyncio
import importlib
import io
import os
import urllib.request
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import BadRequest, ConfigError, ProviderError
from ..loopbound import on_loop_close, per_loop
from ..shortages import no_descriptors, told
from . import crowd
from .openai_errors import connection_error, without_key

if TYPE_CHECKING:
    import httpx2
    from multidict import CIMultiDict
    from yarl import URL

    from .openai_rows import Endpoint

CONNECT_S = 30.0  # for one TCP and TLS handshake
LARGE_BYTES = 2**20  # a body above it goes out in pieces, so that other connections get their turn in between
KEEPALIVE_S = 60.0  # an idle connection is kept that long: longer than a root's turn usually takes, shorter than load balancers allow
_NO_KEY = "none"  # the SDK insists on a key; the header it writes from this one is not sent
_CARRIERS_OWN = frozenset({"host", "content-length", "connection", "accept-encoding"})
_ACCOUNT = frozenset({"openai-organization", "openai-project"})  # an OpenAI account's ids are nobody else's business


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: status, headers (lower-case names), body. Only the status is shown: a provider may repeat what it was sent."""

    status: int
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Envelope:
    url: URL = field(repr=False)
    headers: CIMultiDict[str] = field(repr=False)


async def link_to(endpoint: Endpoint) -> Link:
    """The running loop's link to ``endpoint``; closed when the loop shuts down. Imports the SDK, off the loop, on first use."""
    if len(_imported) < len(_SDK):
        async with per_loop(_import_sdk, asyncio.Lock):
            await _import_sdk()
    return per_loop((Link, endpoint), lambda: Link(endpoint))


class Link:
    """A connection pool without a limit of its own, and the envelopes for it. Made by :func:`link_to`."""

    def __init__(self, endpoint: Endpoint) -> None:
        import aiohttp
        import httpx2

        self._endpoint = endpoint
        self._envelopes: dict[str, _Envelope] = {}
        self._writing = asyncio.Lock()  # a thousand first calls want one envelope
        self._under_way = 0
        self._waiting: deque[asyncio.Future[None]] = deque()  # calls for which there was no file descriptor
        self._starts = per_loop(("starts", crowd.Gate), lambda: crowd.Gate(crowd.STARTS_A_TURN))
        self._replies = per_loop(("replies", crowd.Gate), lambda: crowd.Gate(crowd.REPLIES_A_TURN))
        self._proxy = _proxy_for(endpoint)
        secure = endpoint.base_url.startswith("https:")
        context = httpx2.create_ssl_context() if secure else True
        connector = aiohttp.TCPConnector(limit=crowd.descriptors(), keepalive_timeout=KEEPALIVE_S, ssl=context)
        self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        on_loop_close(self._session.close)

    async def post(self, path: str, body: bytes, *, timeout: float) -> Reply:
        """Send one call and read its whole reply. Cancelling it closes its connection.

        While there is no file descriptor for another connection, it waits for one of the calls under way to end.

        Args:
            path: below the base URL.
            body: JSON.
            timeout: seconds for all of it.

        Raises:
            ConnectionFailed: no whole reply came. BadRequest: and none will, such as for an untrusted certificate.
        """
        envelope = self._envelopes.get(path) or await self._write_envelope(path)
        with crowd.counted():
            reply = await self._posted(envelope, body, timeout)
            await self._replies.passed()
            return reply

    async def _posted(self, envelope: _Envelope, body: bytes, timeout: float) -> Reply:
        import aiohttp

        while True:
            await self._starts.passed()
            self._under_way += 1
            short = False
            try:
                return await self._send(envelope, body, timeout)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure, cause, short = self._failure(error, timeout), _bare(self._endpoint, error), no_descriptors(error)
            finally:
                self._under_way -= 1
                if not short or not self._under_way:
                    self._make_room()
            if not short or not self._under_way:
                raise failure from cause  # out here, or the SDK's own error, which may show headers, would stay its context
            await self._room()

    async def _send(self, envelope: _Envelope, body: bytes, timeout: float) -> Reply:
        import aiohttp

        data = body if len(body) <= LARGE_BYTES else io.BytesIO(body)
        limit = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_S)
        async with self._session.post(
            envelope.url, data=data, headers=envelope.headers, timeout=limit, allow_redirects=False, proxy=self._proxy
        ) as response:
            return Reply(response.status, {name.lower(): value for name, value in response.headers.items()}, await response.read())

    def _make_room(self) -> None:
        """A call has ended: those that found no descriptor may try again, two for one, so that they become more where there is room."""
        for _ in range(2):
            while self._waiting and (place := self._waiting.popleft()):
                if not place.done():
                    place.set_result(None)
                    break

    async def _room(self) -> None:
        """Wait until one of the calls under way has ended and left its connection."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self._make_room()
            raise

    async def _write_envelope(self, path: str) -> _Envelope:
        from multidict import CIMultiDict
        from yarl import URL

        async with self._writing:
            if path not in self._envelopes:
                request = await _sdk_request(self._endpoint, path)
                dropped = _CARRIERS_OWN | _not_for(self._endpoint)
                headers = CIMultiDict((name, value) for name, value in request.headers.multi_items() if name.lower() not in dropped)
                self._envelopes[path] = _Envelope(URL(str(request.url), encoded=True), headers)
        return self._envelopes[path]

    def _failure(self, error: BaseException, timeout: float) -> ProviderError:
        import aiohttp

        url = self._endpoint.shown_url
        match error:
            case aiohttp.ClientConnectorCertificateError():
                return connection_error(self._endpoint, f"the certificate of {url} is not trusted", error, kind=BadRequest)
            case aiohttp.ClientSSLError():
                return connection_error(self._endpoint, f"no TLS with {url}: does the server speak https there?", error)
            case aiohttp.ClientConnectorDNSError():
                return connection_error(self._endpoint, f"the host of {url} was not found: check the name and the network", error)
            case aiohttp.ConnectionTimeoutError():
                return connection_error(self._endpoint, f"{url} accepted no connection within {CONNECT_S:g} s", TimeoutError())
            case aiohttp.ServerTimeoutError() | TimeoutError():
                return connection_error(self._endpoint, f"no reply from {url} within {timeout:g} s", TimeoutError())
            case aiohttp.ClientConnectorError() if no_descriptors(error):
                return connection_error(self._endpoint, f"no connection to {url}: {told(error.os_error)}", TimeoutError())
            case aiohttp.ClientConnectorError():
                return connection_error(self._endpoint, f"{url} cannot be reached: is the server running there?", error)
            case aiohttp.InvalidURL():
                return connection_error(self._endpoint, f"{url} is not a usable URL", error, kind=BadRequest)
        return connection_error(self._endpoint, f"the connection to {url} was cut", error)


def _bare(endpoint: Endpoint, error: BaseException) -> BaseException:
    """What went wrong, without what the carrier's errors have in their repr: headers, and a proxy's password."""
    if type(error).__module__.partition(".")[0] == "aiohttp":
        return getattr(error, "os_error", None) or ConnectionError(without_key(endpoint, f"{type(error).__name__}: {error}"))
    return error


_SDK = frozenset({"openai", "aiohttp"})
_imported: set[str] = set()


async def _import_sdk() -> None:
    for name in _SDK - _imported:
        try:
            await asyncio.to_thread(importlib.import_module, name)
        except OSError as error:
            raise ConfigError(f"the package {name} could not be loaded: {told(error)}") from error
        _imported.add(name)


async def _sdk_request(endpoint: Endpoint, path: str) -> httpx2.Request:
    """The request that the SDK would send, taken from it at its transport."""
    import httpx2

    seen: list[httpx2.Request] = []

    def take(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, json={})

    async with _sdk_client(endpoint, httpx2.AsyncClient(transport=httpx2.MockTransport(take))) as client:
        await client.post(path, content=b"{}", cast_to=httpx2.Response, options={"headers": {"Content-Type": "application/json"}})
    return seen[0]


def _sdk_client(endpoint: Endpoint, http: httpx2.AsyncClient) -> Any:
    import openai

    if endpoint.row.dialect == "azure":
        return openai.AsyncAzureOpenAI(
            azure_endpoint=endpoint.base_url, api_key=endpoint.api_key, api_version=endpoint.api_version, max_retries=0, http_client=http
        )
    key = endpoint.api_key or _NO_KEY
    authorization = {} if endpoint.row.name == "openai" else {"Authorization": f"Bearer {key}"}  # over one in OPENAI_CUSTOM_HEADERS
    return openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=key, max_retries=0, http_client=http, default_headers=authorization)


def _not_for(endpoint: Endpoint) -> frozenset[str]:
    """Headers that the SDK takes from the environment for OpenAI's own API and that must not go to this endpoint."""
    if endpoint.row.name in ("openai", "azure"):
        return frozenset()
    custom = {line.partition(":")[0].strip().lower() for line in os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines()}
    return _ACCOUNT | (custom - {"authorization", "content-type"}) | (frozenset() if endpoint.api_key else {"authorization"})


def _proxy_for(endpoint: Endpoint) -> str | None:
    """The proxy that the environment names for this endpoint, looked up once."""
    parts = urlsplit(endpoint.base_url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy is None or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    proxy = proxy if "//" in proxy else f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise ConfigError(f"the proxy for {endpoint.shown_url} is a {proxy.partition(':')[0]} proxy; only http and https proxies work here")
    return proxy
