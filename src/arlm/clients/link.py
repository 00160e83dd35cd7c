"""One endpoint's connections on one event loop.

The vendor's SDK writes the envelope (URL, authentication, API version, its own headers) once for each route, and aiohttp carries every
call in it. Through the whole SDK a call costs several times the CPU of the HTTP itself, and none of that work differs between two calls.
An envelope with a token in it, which changes with time, is written anew every half minute.
"""

from __future__ import annotations

import asyncio
import importlib
import io
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import AuthError, BadRequest, ConfigError, ConnectionFailed, ProviderError
from ..loopbound import on_loop_close, per_loop
from ..network import proxy_for, trusted
from ..shortages import no_descriptors, told
from . import crowd
from .endpoint import Endpoint
from .failures import Teller
from .wire import Reply, Request

if TYPE_CHECKING:
    from multidict import CIMultiDict
    from yarl import URL

    from ..types import TokenUsage

CONNECT_S = 30.0  # for one TCP and TLS handshake
LARGE_BYTES = 2**20  # a body above it goes out in pieces, so that other connections get their turn in between
KEEPALIVE_S = 60.0  # an idle connection is kept that long: longer than a root's turn usually takes, shorter than load balancers allow
RENEW_S = 30.0  # an envelope with a token in it is written anew that often; SDKs renew a token minutes before it expires
TOKEN_S = 30.0  # for an SDK to get a token; the same as for a connection
UNAUTHORIZED = 401
STREAM = "text/event-stream"
_CARRIERS_OWN = frozenset({"host", "content-length", "connection", "accept-encoding"})
_SECRET_HEADERS = frozenset(
    {"authorization", "api-key", "x-api-key", "x-goog-api-key", "x-portkey-api-key", "x-portkey-virtual-key", "x-portkey-config"}
)


Written = tuple[str, list[tuple[str, str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sdk:
    """One vendor's SDK, as far as calls need it.

    Attributes:
        name: what it goes by here.
        modules: imported before the first call.
        extra: the extra of arlm that installs it.
        write: has the SDK make the request for an endpoint and a route, and returns its URL and headers.
        trial: a route for the first time, in a thread, when nothing is sent.
        forget: has the SDK forget what authenticated calls to an endpoint, because it was turned away.
    """

    name: str
    modules: tuple[str, ...]
    extra: str | None
    write: Callable[[Endpoint, str], Coroutine[Any, Any, Written]]
    trial: str
    forget: Callable[[Endpoint], None] = lambda _endpoint: None


@dataclass(frozen=True, slots=True)
class _Envelope:
    url: URL = field(repr=False)
    headers: CIMultiDict[str] = field(repr=False)
    written: float


async def link_to(endpoint: Endpoint, sdk: Sdk) -> Link:
    """The running loop's link to ``endpoint``; closed when the loop shuts down. Imports the SDK, off the loop, on first use."""
    if sdk.name not in _prepared:
        async with per_loop((_prepare, sdk.name), asyncio.Lock):
            if sdk.name not in _prepared:
                await _prepare(sdk, endpoint)
    return per_loop((Link, endpoint), lambda: Link(endpoint, sdk))


class Link:
    """A connection pool without a limit of its own, and the envelopes for it. Made by :func:`link_to`.

    Attributes:
        teller: says what went wrong on it.
    """

    def __init__(self, endpoint: Endpoint, sdk: Sdk) -> None:
        import aiohttp

        self.teller = Teller(endpoint)
        self._endpoint = endpoint
        self._sdk = sdk
        self._envelopes: dict[str, _Envelope] = {}
        self._writing = asyncio.Lock()
        self._under_way = 0
        self._waiting: deque[asyncio.Future[None]] = deque()  # calls for which there was no file descriptor
        self._starts = per_loop(("starts", crowd.Gate), lambda: crowd.Gate(crowd.STARTS_A_TURN))
        self._replies = per_loop(("replies", crowd.Gate), lambda: crowd.Gate(crowd.REPLIES_A_TURN))
        self._proxy = proxy_for(endpoint.base_url)
        connector = aiohttp.TCPConnector(limit=crowd.descriptors(), keepalive_timeout=KEEPALIVE_S, ssl=trusted(endpoint.base_url))
        self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        on_loop_close(self._session.close)

    async def post(self, request: Request, *, timeout: float, on_cut: Callable[[bytes], TokenUsage | None]) -> Reply:
        """Send one call and read its whole reply. Cancelling it closes its connection.

        While there is no file descriptor for another connection, it waits for one of the calls under way to end. Where what authenticates
        a call changes with time, a call that is turned away with an old one is sent once more with a new one.

        Args:
            request: the call.
            timeout: seconds for all of it.
            on_cut: says what a reply that was cut off after these bytes is known to have cost.

        Raises:
            ConnectionFailed: no whole reply came. BadRequest: and none will, such as for an untrusted certificate.
            AuthError: the SDK has nothing to authenticate the call with.

        A token that takes longer than 30 s to come is a ConnectionFailed too.
        """
        began = time.monotonic()
        envelope = await self._envelope(request.route)
        with crowd.counted():
            reply = await self._posted(envelope, request.body, timeout, on_cut)
            if reply.status == UNAUTHORIZED and self._endpoint.renews and envelope.written < began:
                envelope = await self._envelope(request.route, since=began)
                reply = await self._posted(envelope, request.body, timeout, on_cut)
            await self._replies.passed()
            return reply

    async def _posted(self, envelope: _Envelope, body: bytes, timeout: float, on_cut: Callable[[bytes], TokenUsage | None]) -> Reply:
        import aiohttp

        while True:
            await self._starts.passed()
            self._under_way += 1
            short = False
            read = bytearray()
            try:
                return await self._send(envelope, body, timeout, read)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure, cause, short = self._failure(error, timeout), self._bare(error), no_descriptors(error)
                failure.usage = on_cut(bytes(read)) if read else None
            finally:
                self._under_way -= 1
                if not short or not self._under_way:
                    self._make_room()
            if not short or not self._under_way:
                raise failure from cause  # out here, or the SDK's own error, which may show headers, would stay its context
            await self._room()

    async def _send(self, envelope: _Envelope, body: bytes, timeout: float, read: bytearray) -> Reply:
        import aiohttp

        data = body if len(body) <= LARGE_BYTES else io.BytesIO(body)
        limit = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_S)
        async with self._session.post(
            envelope.url, data=data, headers=envelope.headers, timeout=limit, allow_redirects=False, proxy=self._proxy
        ) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            if response.content_type != STREAM:
                return Reply(response.status, headers, await response.read())
            async for piece in response.content.iter_any():  # piece by piece, because what came of a stream that is cut has been billed
                read += piece
            return Reply(response.status, headers, bytes(read))

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

    async def _envelope(self, route: str, *, since: float | None = None) -> _Envelope:
        """The envelope for a route, not older than ``since``, when one was refused; written anew where it may have expired."""
        was_refused = since is not None
        if since is None:
            since = time.monotonic() - RENEW_S if self._endpoint.renews else 0.0
        envelope = self._envelopes.get(route)
        if envelope is None or envelope.written < since:
            async with self._writing:  # a thousand first calls want one envelope
                envelope = self._envelopes.get(route)
                if envelope is None or envelope.written < since:
                    if was_refused:
                        self._sdk.forget(self._endpoint)
                    envelope = self._envelopes[route] = await self._write(route)
        return envelope

    async def _write(self, route: str) -> _Envelope:
        from multidict import CIMultiDict
        from yarl import URL

        at = time.monotonic()
        try:
            async with asyncio.timeout(TOKEN_S):
                url, headers = await self._sdk.write(self._endpoint, route)
        except ConfigError:
            raise
        except TimeoutError as error:
            failure, cause = (
                self.teller.connection_error(f"no token for a call came within {TOKEN_S:g} s", TimeoutError()),
                self._bare(error),
            )
        except Exception as error:  # an SDK's own, or a token provider's
            kind = ConnectionFailed if isinstance(error, OSError) else AuthError
            failure = self.teller.connection_error(f"the SDK could not make a call ({type(error).__name__})", error, kind=kind)
            cause = self._bare(error)
        else:
            for name, value in headers:
                if name.lower() in _SECRET_HEADERS:
                    self.teller.hide(value.removeprefix("Bearer "))
            kept = CIMultiDict((name, value) for name, value in headers if name.lower() not in _CARRIERS_OWN)
            return _Envelope(URL(url, encoded=True), kept, at)
        raise failure from cause

    def _failure(self, error: BaseException, timeout: float) -> ProviderError:
        import aiohttp

        url, tell = self._endpoint.shown_url, self.teller.connection_error
        match error:
            case aiohttp.ClientConnectorCertificateError():
                return tell(f"the certificate of {url} is not trusted", error, kind=BadRequest)
            case aiohttp.ClientSSLError():
                return tell(f"no TLS with {url}: does the server speak https there?", error)
            case aiohttp.ClientConnectorDNSError():
                return tell(f"the host of {url} was not found: check the name and the network", error)
            case aiohttp.ConnectionTimeoutError():
                return tell(f"{url} accepted no connection within {CONNECT_S:g} s", TimeoutError())
            case aiohttp.ServerTimeoutError() | TimeoutError():
                return tell(f"no reply from {url} within {timeout:g} s", TimeoutError())
            case aiohttp.ClientConnectorError() if no_descriptors(error):
                return tell(f"no connection to {url}: {told(error.os_error)}", TimeoutError())
            case aiohttp.ClientConnectorError():
                return tell(f"{url} cannot be reached: is the server running there?", error)
            case aiohttp.InvalidURL():
                return tell(f"{url} is not a usable URL", error, kind=BadRequest)
        return tell(f"the connection to {url} was cut", error)

    def _bare(self, error: BaseException) -> BaseException:
        """What went wrong, without what others' errors carry along: headers and a proxy's password, in their text or in their frames."""
        error = getattr(error, "os_error", None) or error
        if isinstance(error, OSError) and type(error).__module__ == "builtins":
            return type(error)(*error.args)
        return ConnectionError(self.teller.without_secrets(f"{type(error).__name__}: {error}"))


async def _prepare(sdk: Sdk, endpoint: Endpoint) -> None:
    """Import the SDK and have it write one envelope, in a thread: both take tenths of a second the first time."""
    try:
        await asyncio.to_thread(_first_use, sdk, endpoint)
    except ModuleNotFoundError as error:
        what = f"pip install 'arlm[{sdk.extra}]'" if sdk.extra else "install arlm again"
        raise ConfigError(f"{endpoint.row.name!r} needs the package {endpoint.row.package}, which is not here ({error}): {what}") from error
    except OSError as error:
        raise ConfigError(f"the package {endpoint.row.package} could not be loaded: {told(error)}") from error
    _prepared.add(sdk.name)


def _first_use(sdk: Sdk, endpoint: Endpoint) -> None:
    for module in ("aiohttp", *sdk.modules):
        importlib.import_module(module)
    version = tuple((name, value) for name, value in endpoint.settings if name == "api_version")
    trial = replace(endpoint, base_url="http://localhost", api_key="none", settings=version, token_provider=None, renews=False)
    asyncio.run(sdk.write(trial, sdk.trial))


_prepared: set[str] = set()
