"""Every LM call of a run tree goes through here: a slot, a reservation, the call, the settlement; then the retry, which is a call again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import anyio

from .clients.base import BaseLM, time_limit
from .clients.estimate import Estimator
from .clients.limiter import Ticket, limiter_of
from .clients.prices import Prices
from .clients.resolve import ModelSpec, resolve_model
from .clients.retry import FREE_RETRIES, RetryBudget, RetryPolicy, with_retries
from .clients.tally import Tally
from .errors import ConfigError, ConnectionFailed, LimitError, ProviderError
from .ledger import Ledger, Need, Reservation
from .lifetimes import cancelled_from_outside
from .options import unknown
from .types import JSON, Completion, Message, TokenUsage

LEAST_OUTPUT = 16  # tokens; a cap is not clipped below what a short answer takes
NOTHING = TokenUsage(input_tokens=0, output_tokens=0, cost_usd=0.0)

FIRST_TRIES = 3  # of a model that has never answered in this run: what is refused three times is a wrong address rather than bad luck


class NeverReached(ConnectionFailed):
    """A model that has not answered once could not be reached again and again: not tried any further."""

    retryable = False


Sampling = Mapping[str, JSON]
OnRetry = Callable[[BaseLM, ProviderError, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The models of a run tree.

    Attributes:
        root: plays the root turns.
        subs: by depth, from 1: answers sub-calls made from the depth above, and plays the turns of children there; the last one goes for
            all deeper.
        named: what code may name as ``model=``, at every depth; root and subs are among them under their own names.
    """

    root: BaseLM
    subs: Sequence[BaseLM]
    named: Mapping[str, BaseLM]

    @classmethod
    def of(cls, model: ModelSpec, sub_model: ModelSpec | Sequence[ModelSpec] | None, models: Mapping[str, ModelSpec]) -> Models:
        """Resolve what the options name. Raises ConfigError; nothing is sent."""
        root = resolve_model(model)
        specs = list(sub_model) if isinstance(sub_model, (list, tuple)) else [cast("ModelSpec | None", sub_model)]
        if not specs:
            raise ConfigError("sub_model is an empty list; name a model for each depth, the last one for all deeper")
        subs = [root if spec is None else resolve_model(spec) for spec in specs]
        own = {lm.name: lm for lm in (root, *subs)}
        return cls(root=root, subs=subs, named=own | {name: resolve_model(spec) for name, spec in models.items()})

    def pick(self, name: str | None, depth: int) -> BaseLM:
        """The model for a sub-call or child at ``depth`` (1: below the root). Raises ConfigError for a name that was not declared."""
        if name is None:
            return self.subs[min(depth, len(self.subs)) - 1]
        if name not in self.named:
            raise ConfigError(unknown("model", name, self.named))
        return self.named[name]

    def check_sampling(self, sampling: Sampling, sub_sampling: Sampling) -> None:
        """Raise ConfigError for a sampling option that a model does not have, before anything is started."""
        if sampling:
            self.root.check_sampling(sampling)
        for lm in self.subs if sub_sampling else ():
            lm.check_sampling(sub_sampling)

    async def check_prices(self, prices: Prices, max_cost_usd: float | None) -> None:
        """Load the prices of these models. Raises ConfigError when there is a cost limit and a price is unknown."""
        names = {lm.name for lm in self.named.values()}
        await prices.prepare(names)
        unpriced = sorted(name for name in names if not prices.is_priced(name))
        if max_cost_usd is not None and unpriced:
            raise ConfigError(
                f"max_cost_usd is set, but the price of {', '.join(unpriced)} is unknown; "
                "use max_total_tokens or max_calls, or a model whose price is known"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Whose calls they are.

    Attributes:
        tally: counts them.
        on_retry: told of each failure that will be tried again.
    """

    tally: Tally
    on_retry: OnRetry


class Caller:
    """Makes the LM calls of one run tree.

    Args:
        ledger: the tree's limits.
        max_concurrency: calls in flight at once.
        prices: what calls cost.
        call_timeout: seconds for one try of a call; None: the client's own limit.
        policy: how a failed one is tried again.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        max_concurrency: int,
        prices: Prices | None = None,
        call_timeout: float | None = None,
        policy: RetryPolicy | None = None,
    ) -> None:
        self.ledger = ledger
        self._prices = prices or Prices()
        self._call_timeout = call_timeout
        self._slots = anyio.Semaphore(max_concurrency, fast_acquire=True)
        self._policy = policy
        self._budget = RetryBudget(max(FREE_RETRIES, max_concurrency))
        self._estimators: dict[str, Estimator] = {}
        self._reached: set[str] = set()  # models that have answered in this run

    async def complete(
        self, lm: BaseLM, messages: list[Message], *, sampling: Sampling, account: Account, last: bool = False
    ) -> Completion:
        """One completion, retried by class of error.

        Args:
            account: whose call it is.
            last: the run's last call, which may use what the ledger held back for it.

        Raises:
            LimitError: no further call fits.
            ProviderError: it failed for good. Any other exception of a model of one's own is passed on.

        Cancellation ends the call; what was sent and not answered is charged as its input.
        """

        def on_retry(error: ProviderError, wait: float) -> None:
            account.on_retry(lm, error, wait)

        failures = 0

        async def attempt() -> Completion:
            nonlocal failures
            try:
                return await self._attempt(lm, messages, sampling, account, last)
            except ConnectionFailed as error:
                failures += 1
                if failures >= FIRST_TRIES and lm.name not in self._reached:
                    raise NeverReached(str(error), provider=error.provider, status=error.status) from error
                raise

        return await with_retries(attempt, policy=self._policy, budget=self._budget, on_retry=on_retry)

    async def _attempt(self, lm: BaseLM, messages: list[Message], sampling: Sampling, account: Account, last: bool) -> Completion:
        with await limiter_of(lm).admit() as turn:  # before the slot, so that a model that is slowed down leaves the slots to others
            return await self._send(turn, lm, messages, sampling, account, last)

    async def _send(
        self, turn: Ticket, lm: BaseLM, messages: list[Message], sampling: Sampling, account: Account, last: bool
    ) -> Completion:
        async with self._slots:
            await turn.ready()
            need, sampling = self.need(lm, messages, sampling, last=last)
            reservation = await self.ledger.reserve(need)
            with account.tally.call(lm.name) as call:
                try:
                    completion = self._priced(await self._in_time(lm, messages, sampling))
                except BaseException as error:
                    if isinstance(error, ProviderError) and error.usage is not None:
                        error.usage = self._with_cost(lm.name, error.usage)
                    _settle_failure(reservation, error)
                    raise
                _settle(reservation, completion.usage)
                call.answered(completion)
            self._reached.add(lm.name)
            self._observe(lm, messages, completion.usage)
            return completion

    def need(self, lm: BaseLM, messages: list[Message], sampling: Sampling, *, last: bool = False) -> tuple[Need, Sampling]:
        """What a call may use, and its sampling options with the output cap clipped to what is left of the tokens."""
        if not self.ledger.estimates:
            return Need(last=last), sampling
        estimator = self._estimator(lm)
        sent = estimator.input_tokens(messages)
        cap = sampling.get("max_tokens")
        if isinstance(cap, int) and self.ledger.max_total_tokens is not None:
            cap = min(cap, max(LEAST_OUTPUT, self.ledger.max_total_tokens - self.ledger.tokens - sent))
            sampling = {**sampling, "max_tokens": cap}
        bound = estimator.output_bound(cap if isinstance(cap, int) else None)
        return Need(
            tokens=sent + bound, cost_usd=self._cost(lm, sent, bound), sent_tokens=sent, sent_cost_usd=self._cost(lm, sent, 0), last=last
        ), sampling

    async def _in_time(self, lm: BaseLM, messages: list[Message], sampling: Sampling) -> Completion | str:
        if self._call_timeout is None:
            return await _asked(lm, messages, sampling)
        before = time_limit.set(self._call_timeout)
        try:
            with anyio.move_on_after(self._call_timeout):
                return await _asked(lm, messages, sampling)
        finally:
            time_limit.reset(before)
        raise ConnectionFailed(f"{lm.name}: no reply within {self._call_timeout:g} s (call_timeout)", provider=lm.provider)

    def _priced(self, completion: Completion | str) -> Completion:
        assert isinstance(completion, Completion)
        return replace(completion, usage=self._with_cost(completion.model, completion.usage))

    def _with_cost(self, model: str, usage: TokenUsage) -> TokenUsage:
        if usage.cost_usd is not None and not self._prices.is_own(model):
            return usage
        cost = self._prices.price(model, usage)
        return usage if cost is None else replace(usage, cost_usd=cost)

    def _cost(self, lm: BaseLM, sent: int, bound: int) -> float:
        return self._prices.price(lm.name, TokenUsage(input_tokens=sent, output_tokens=bound)) or 0.0

    def _observe(self, lm: BaseLM, messages: list[Message], usage: TokenUsage) -> None:
        if self.ledger.estimates:
            self._estimator(lm).observe(messages, usage)

    def _estimator(self, lm: BaseLM) -> Estimator:
        return self._estimators.setdefault(lm.name, Estimator())


async def _asked(lm: BaseLM, messages: list[Message], sampling: Sampling) -> Completion | str:
    """The model's own call. What it raises of ours about itself is a failed call here: its limits and its cancels are not this run's."""
    try:
        return await lm.acompletion(messages, sampling=sampling or None)
    except LimitError as error:  # a recursive model, whose run has limits of its own
        total = None if error.partial is None else error.partial.usage.total
        usage = None if total is None else TokenUsage(**{name: getattr(total, name) for name in TokenUsage.__dataclass_fields__})
        raise ProviderError(f"{lm.name}: {error}", provider=lm.provider, usage=usage) from error
    except asyncio.CancelledError as error:
        if cancelled_from_outside():
            raise
        raise ProviderError(f"{lm.name} cancelled its own call", provider=lm.provider) from error


def _settle(reservation: Reservation, usage: TokenUsage) -> None:
    known = usage.input_tokens is not None and usage.output_tokens is not None
    tokens = (usage.input_tokens or 0) + (usage.output_tokens or 0)
    reservation.settle(tokens if known else None, usage.cost_usd)


def _settle_failure(reservation: Reservation, error: BaseException) -> None:
    match error:
        case ConfigError():
            reservation.release()
        case ProviderError(usage=TokenUsage() as usage):
            _settle(reservation, usage)
        case ConnectionFailed():
            reservation.settle_unanswered()
        case Exception():
            _settle(reservation, NOTHING)
        case _:
            reservation.settle_unanswered()
