"""What calls cost in US dollars, from the price list that genai-prices ships. Nothing is downloaded.

A model that the list does not know has no price: None, never 0. That holds for functions and models of one's own, for ``demo``, and for
``vllm`` and ``ollama``, whose cost is electricity and hardware that no list knows.
"""

from __future__ import annotations

import asyncio
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..shortages import told

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..types import TokenUsage

# arlm's provider names in the list's terms. Vercel's gateway passes the makers' list prices on, so its models are looked up there.
LISTED_AS = {"openai": "openai", "azure": "azure", "openrouter": "openrouter", "anthropic": "anthropic", "gemini": "google"}
GATEWAYS = frozenset({"vercel"})

_PROBE = 10_000_000  # tokens; far above every step of a stepped price
_FIELDS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


@dataclass(frozen=True, slots=True)
class _Rates:
    """A price without steps or hours: dollars a token."""

    fresh: float
    output: float
    read: float
    write: float

    def cost(self, tokens: tuple[int, int, int, int]) -> float:
        given, output, read, write = tokens
        return self.fresh * max(0, given - read - write) + self.output * output + self.read * read + self.write * write


MILLION = 1_000_000
OWN_PRICE = ("input", "output", "cached", "cache_write")


class Prices:
    """The prices of a run: those given, over those of the list.

    Args:
        own: model name (``"provider/name"``) to US dollars per million tokens: ``input`` and ``output``, and, where they differ from
            ``input``, ``cached`` (read from the cache) and ``cache_write``.

    Raises:
        ConfigError: a price has no input or output, another field, or is no number.
    """

    def __init__(self, own: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self._own = {model: _own_rates(model, given) for model, given in (own or {}).items()}

    async def prepare(self, models: Iterable[str]) -> None:
        """As the function of this name; what is given needs no list."""
        await prepare(model for model in models if model not in self._own)

    def price(self, model: str, usage: TokenUsage) -> float | None:
        """As the function of this name. A price that was given wins over the provider's own figure too."""
        rates = self._own.get(model)
        if rates is None:
            return price(model, usage)
        tokens = _tokens(usage)
        return None if tokens is None else rates.cost(tokens)

    def is_own(self, model: str) -> bool:
        """Whether the price was given."""
        return model in self._own

    def is_priced(self, model: str) -> bool:
        """Whether there is a price."""
        return model in self._own or is_priced(model)


def _own_rates(model: str, given: Mapping[str, float]) -> _Rates:
    fields = given.keys() if hasattr(given, "keys") else ()
    if not {"input", "output"} <= set(fields) <= set(OWN_PRICE):
        raise ConfigError(f"the price of {model!r} is a dict with 'input' and 'output', and if wanted 'cached' and 'cache_write'")
    for name, dollars in given.items():
        if isinstance(dollars, bool) or not isinstance(dollars, (int, float)) or not 0 <= dollars < float("inf"):
            raise ConfigError(f"the price {name!r} of {model!r} must be US dollars per million tokens, 0 or more, not {dollars!r}")
    fresh = given["input"] / MILLION
    return _Rates(
        fresh=fresh,
        output=given["output"] / MILLION,
        read=given.get("cached", given["input"]) / MILLION,
        write=given.get("cache_write", given["input"]) / MILLION,
    )


_STEPPED = object()  # known, but only the list itself can work it out
_known: dict[str, _Rates | object | None] = {}


async def prepare(models: Iterable[str]) -> None:
    """Load the list and look the models up, in a thread, so that :func:`price` takes a microsecond.

    Call it before a run starts.

    Raises:
        ConfigError: the list could not be read.
    """
    wanted = [model for model in models if model not in _known]
    if not wanted:
        return
    try:
        await asyncio.to_thread(lambda: [_entry(model) for model in wanted])
    except OSError as error:
        raise ConfigError(f"the list of prices could not be loaded: {told(error)}") from error


def price(model: str, usage: TokenUsage) -> float | None:
    """US dollars for one call of ``model`` (``"provider/name"``), or None where that is unknown.

    The provider's own figure in ``usage.cost_usd`` wins. Tokens not said to be cached are priced as if they were not.
    Without :func:`prepare` the first look-up loads the list on the spot, which takes some tenths of a second.
    """
    if usage.cost_usd is not None:
        return usage.cost_usd
    tokens = _tokens(usage)
    entry = _entry(model)
    if tokens is None or entry is None:
        return None
    return entry.cost(tokens) if isinstance(entry, _Rates) else _listed_cost(model, tokens)


def _tokens(usage: TokenUsage) -> tuple[int, int, int, int] | None:
    if usage.input_tokens is None or usage.output_tokens is None:
        return None
    return usage.input_tokens, usage.output_tokens, usage.cached_tokens or 0, usage.cache_write_tokens or 0


def is_priced(model: str) -> bool:
    """Whether the list knows ``model``."""
    return _entry(model) is not None


def _entry(model: str) -> _Rates | object | None:
    if model not in _known:
        _known[model] = _look_up(model)
    return _known[model]


def _look_up(model: str) -> _Rates | object | None:
    calculation = _calculate(model, (1_000, 100, 200, 0))
    if calculation is None:
        return None
    probes = [
        _listed_cost(model, tokens) for tokens in ((_PROBE, 0, 0, 0), (0, _PROBE, 0, 0), (_PROBE, 0, _PROBE, 0), (_PROBE, 0, 0, _PROBE))
    ]
    if isinstance(calculation.model.prices, list) or None in probes:
        return _STEPPED
    rates = _Rates(*(probe / _PROBE for probe in probes if probe is not None))
    small = float(calculation.total_price)
    return rates if abs(rates.cost((1_000, 100, 200, 0)) - small) <= 1e-9 * max(small, 1e-6) else _STEPPED


def _listed_cost(model: str, tokens: tuple[int, int, int, int]) -> float | None:
    calculation = _calculate(model, tokens)
    return None if calculation is None else float(calculation.total_price)


def _calculate(model: str, tokens: tuple[int, int, int, int]) -> Any:
    provider, _, name = model.partition("/")
    if provider in GATEWAYS:
        provider, _, name = name.partition("/")
    if provider not in LISTED_AS or not name:
        return None
    prices: Any = importlib.import_module("genai_prices")
    try:
        return prices.calc_price(prices.Usage(**dict(zip(_FIELDS, tokens, strict=True))), name, provider_id=LISTED_AS[provider])
    except (LookupError, ValueError):  # not in the list; or counts that contradict each other, such as more cached than sent
        return None
