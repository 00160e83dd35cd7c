"""Taking a request from an SDK at its transport, where it would be sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2

    from .link import Written


class Taker:
    """An HTTP client that sends nothing, answers everything with ``{}``, and keeps the last request.

    Attributes:
        http: what an SDK takes as its own client.
    """

    def __init__(self) -> None:
        import httpx2

        self._last: httpx2.Request | None = None
        self.http = httpx2.AsyncClient(transport=httpx2.MockTransport(self._take), trust_env=False)

    def written(self) -> Written:
        """URL and headers of the last request."""
        assert self._last is not None, "the SDK has made no request"
        return str(self._last.url), self._last.headers.multi_items()

    def _take(self, request: httpx2.Request) -> httpx2.Response:
        import httpx2

        self._last = request
        return httpx2.Response(200, json={})
