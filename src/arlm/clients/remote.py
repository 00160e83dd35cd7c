"""What all clients of a provider share: an endpoint, a wire, one call."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from ..errors import BadRequest, ConfigError, ProviderError
from ..plugins import did_you_mean
from ..shielding import in_own_task
from .base import BaseLM, Prompt, as_messages, model_name, time_limit
from .link import Link, Sdk, link_to
from .packages import install_command, is_installed
from .rows import ROWS, Row
from .wire import Reply, Request, Told, Wire

if TYPE_CHECKING:
    from collections.abc import Hashable

    from ..types import JSON, Completion
    from .endpoint import Endpoint
    from .failures import Teller

TIMEOUT_S = 300.0  # for one call: reasoning models may think for minutes before the first byte
GRACE_S = 1.0  # for a cancelled call to close its connection; it takes microseconds


class RemoteLM(BaseLM):
    """A model behind a provider's API. Nothing is imported or opened before the first call.

    One object may be used from several event loops; all objects with the same endpoint and key share one connection pool on each loop,
    which stands thousands of calls in flight and is closed when the loop shuts down. Nothing is retried here, but for a call that an
    expired token, or a limit not known before, turned away.

    A subclass has an SDK, and says which wire a model speaks.
    """

    sdk: ClassVar[Sdk]

    def __init__(self, model: str, endpoint: Endpoint, *, timeout: float = TIMEOUT_S) -> None:
        super().__init__(model)
        if not is_installed(endpoint.row):
            what = install_command(endpoint.row)
            raise ConfigError(f"{endpoint.row.name!r} needs the package {endpoint.row.package}, which is not installed: {what}")
        self.provider = endpoint.row.name
        self.timeout = timeout
        self._endpoint = endpoint

    @property
    def endpoint(self) -> Endpoint:
        """Where calls go, and as whom. Its key is not shown, but it is in it."""
        return self._endpoint

    @property
    def base_url(self) -> str:
        """Where calls go."""
        return self._endpoint.base_url

    @property
    def rate_key(self) -> Hashable:
        """The name, and where and for whom calls are made: two keys have two limits."""
        return self.name, self._endpoint

    @abstractmethod
    def wire(self, model: str) -> Wire:
        """How that model is spoken to."""

    def check_sampling(self, sampling: Mapping[str, JSON]) -> None:
        """Refuse what this model's provider does not have. Raises ConfigError; sends nothing."""
        self.wire(self.model).options(self.model, sampling)

    async def acompletion(self, prompt: Prompt, *, model: str | None = None, sampling: Mapping[str, JSON] | None = None) -> Completion:
        """Make one call. Cancelling it closes its connection.

        Args:
            prompt: messages, or the text of one user message.
            model: another model behind the same endpoint, with or without the provider's name before it.
            sampling: ``temperature``, ``top_p``, ``max_tokens``, ``stop``, ``seed``, ``reasoning_effort``, and ``extra_body``, a dict of
                further fields of the request.

        Raises:
            AuthError, RateLimited, Overloaded, ContextTooLong, Refused, BadRequest, ConnectionFailed: the call failed.
            ConfigError: a sampling option that this provider does not have, or a package that is missing; nothing was sent.
        """
        name = model_name(self, model)
        target = name.partition("/")[2]
        messages = as_messages(prompt)
        wire = self.wire(target)
        request = wire.request(target, messages, sampling)
        link = await link_to(self._endpoint, self.sdk)
        try:
            return await self._sent(link, wire, request, name)
        except BadRequest as error:
            refusal = error
        self.amended(refusal, target)
        wire = self.wire(target)
        again = wire.request(target, messages, sampling)
        if again == request:  # else this call taught it, or one beside it that was refused for the same reason
            try:
                raise refusal
            finally:
                del refusal  # as in read()
        return await self._sent(link, wire, again, name)

    def amended(self, error: ProviderError, model: str) -> bool:
        """Learn from a refusal how the model wants to be asked; says whether this one taught anything new."""
        return False

    async def _sent(self, link: Link, wire: Wire, request: Request, name: str) -> Completion:
        given = time_limit.get()
        timeout = self.timeout if given is None else max(self.timeout, given + GRACE_S)  # the run's own limit is to be the one that ends it
        post = functools.partial(link.post, request, timeout=timeout, on_cut=wire.usage_of_piece)
        return read(link.teller, wire, await in_own_task(post, grace=GRACE_S), name)


def read(teller: Teller, wire: Wire, reply: Reply, name: str) -> Completion:
    """The completion in a reply. Raises the ProviderError that it says instead."""
    outcome = _outcome(teller, wire, reply, name)
    if not isinstance(outcome, ProviderError):
        return outcome
    try:
        raise outcome  # here, where no variable holds what the provider said, because that may repeat the key
    finally:
        del outcome  # an error that its own traceback leads to is freed by the garbage collector alone


def _outcome(teller: Teller, wire: Wire, reply: Reply, name: str) -> Completion | ProviderError:
    completion = refusal = told = parsed = None
    failed = not 200 <= reply.status < 300
    is_json = True
    try:
        parsed = wire.parsed(reply.body, reply.headers.get("content-type", ""))
    except ValueError:
        is_json = False
    try:
        told = wire.error_of(parsed, failed=failed) if is_json else None
        if not failed and told is None:
            refusal = wire.refusal_of(parsed)
            completion = None if refusal is not None else wire.completion_of(parsed, name)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError):
        pass  # said below, out of here, because the error of a parser holds all of the body, and a body may repeat the key
    if completion is not None:
        return completion
    if failed or told is not None:
        return teller.status_error(reply, told or Told())
    if refusal is not None:
        return teller.refused(refusal, wire.usage_of(parsed))
    return teller.body_error(reply, is_json=is_json)


def row_of(provider: str, *dialects: str) -> Row:
    """The row of a provider that speaks one of the dialects. Raises ConfigError with the names that there are."""
    names = [row.name for row in ROWS.values() if row.dialect in dialects]
    if provider not in names:
        raise ConfigError(f"unknown provider {provider!r}{did_you_mean(provider, names)}; there is: {', '.join(names)}")
    return ROWS[provider]
