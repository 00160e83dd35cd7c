"""``arlm models``: the providers, what each needs and has here, what is reachable; the models of one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..clients import prices
from ..clients.resolve import choice
from ..clients.servers import Server, ask_servers
from ..errors import ConfigError, ConnectionFailed
from ..plugins import did_you_mean
from ..types import JSON, TokenUsage
from .exits import Code
from .listing import Listing, ask, ask_all
from .output import write, write_json
from .providers import STAND_IN, Provider, providers
from .signals import signals

PRICED_TOKENS = 1_000  # few enough to stand below every step of a stepped price
MILLION = 1_000_000


def show_providers(*, check: bool, as_json: bool) -> int:
    """List every provider. ``check``: ask those that can be asked for their models. Returns the exit code: 3 where one of them failed."""

    async def look() -> tuple[list[Server], list[Provider], dict[str, Listing]]:
        servers = await ask_servers()
        found = providers(servers)
        return servers, found, await ask_all([it.name for it in found if _can_be_asked(it)]) if check else {}

    servers, found, listings = signals.run(look)
    if as_json:
        write_json({"providers": [_facts(it, listings.get(it.name)) for it in found], "default": _default(servers)})
    else:
        write(_table(found, listings, servers, check=check))
    failed = any(listing.reach != "reachable" for listing in listings.values())
    return int(Code.PROVIDER if failed else Code.ANSWERED)


def show_models(name: str, *, as_json: bool) -> int:
    """List the models of one provider, with what they cost.

    Raises:
        ConfigError: there is no such provider, or nothing to ask it with.
        ProviderError: it did not answer, or refused.
    """

    async def look() -> tuple[Provider, list[str] | None]:
        found = {it.name: it for it in providers(await ask_servers())}
        if name not in found:
            raise ConfigError(f"unknown provider {name!r}{did_you_mean(name, found)}; there is: {', '.join(found)}")
        models = await _models_of(found[name])
        names = None if models is None else [f"{name}/{model}" for model in models]
        await prices.prepare(names or ())
        return found[name], names

    provider, names = signals.run(look)
    if as_json:
        models = None if names is None else [{"name": model, **_rates(model)} for model in names]
        write_json({"provider": _facts(provider, None), "models": models})
    elif names is None:
        write(f"{provider.name}: {provider.state()}; arlm does not know how to ask it for its models")
    else:
        write(_priced(names))
    return int(Code.ANSWERED)


async def _models_of(provider: Provider) -> list[str] | None:
    """The models of one; None where only its own package could tell."""
    if provider.name == STAND_IN:
        return [STAND_IN]
    if provider.row is None:
        if provider.problem:
            raise ConfigError(provider.problem)
        return None
    if provider.server is None:
        if provider.problem:
            raise ConfigError(f"{provider.name}: {provider.problem}")
        listing = await ask(provider.name)
        listing.check(provider.name)
        return [*listing.models]
    if not provider.server.answers:
        raise ConnectionFailed(f"{provider.name}: {provider.problem}", provider=provider.name)
    return [*provider.server.models]


def _can_be_asked(provider: Provider) -> bool:
    return provider.row is not None and provider.server is None and provider.problem is None


def _facts(provider: Provider, listing: Listing | None) -> dict[str, JSON]:
    """What programs are told of a provider. ``reach`` is None where it was not asked."""
    facts = {"name": provider.name, **provider.facts(), "reach": None, "reach_text": None}
    if provider.server is not None:
        facts["reach"] = "reachable" if provider.server.answers else "not reachable"
    if listing is not None:
        facts |= {"reach": listing.reach, "reach_text": listing.text or None, "models": [*listing.models]}
    return facts


def _default(servers: list[Server]) -> dict[str, JSON]:
    try:
        taken = choice(servers)
    except ConfigError as error:
        return {"model": None, "reason": str(error)}
    return {"model": taken.lm.name, "reason": taken.reason}


def _table(found: list[Provider], listings: Mapping[str, Listing], servers: list[Server], *, check: bool) -> str:
    width = max(len(it.name) for it in found)
    lines = []
    for it in found:
        mark = "!!" if it.broken or (it.name in listings and listings[it.name].reach != "reachable") else "--" if it.problem else "ok"
        state = f"{it.state()}; {listings[it.name].words()}" if it.name in listings else it.state()
        lines.append(f"{mark}  {it.name:<{width}}  {state}")
        lines += [f"{'':<{width + 4}}  {more}" for more in [_details(it)] if more]
    default = _default(servers)
    taken = f"Without --model: {default['model']} ({default['reason']})" if default["model"] else "Without --model: none can be taken."
    more = "" if check else "; --check asks all that have a key"
    return "\n".join([*lines, "", taken, f"`arlm models PROVIDER` lists the models of one{more}."])


def _details(provider: Provider) -> str:
    """What it reads, what it runs on, and what is taken of it by default."""
    facts = []
    if provider.variables:
        facts.append(f"reads {', '.join(provider.variables)}")
    if provider.version:
        facts.append(f"{provider.package} {provider.version}")
    if provider.added_by:
        facts.append(f"added by {provider.added_by}")
    if provider.default_model:
        facts.append(f"default {provider.default_model}")
    return "; ".join(facts)


def _priced(names: list[str]) -> str:
    width = max(map(len, names))
    lines = []
    for name in names:
        rates = [_rates(name)[key] for key in ("input_usd_per_million", "output_usd_per_million")]
        shown = "  ".join(f"{'?' if rate is None else f'${rate:,.2f}':>10}" for rate in rates)
        lines.append(f"{name:<{width}}  {shown}")
    return "\n".join([f"{'':<{width}}  {'input':>10}  {'output':>10}  US dollars per million tokens", *lines])


def _rates(name: str) -> dict[str, JSON]:
    """US dollars per million tokens; None where the price is not known."""

    def rate(**tokens: int) -> float | None:
        cost = prices.price(name, replace(TokenUsage(input_tokens=0, output_tokens=0), **tokens))
        return None if cost is None else round(cost * MILLION / PRICED_TOKENS, 6)

    return {"input_usd_per_million": rate(input_tokens=PRICED_TOKENS), "output_usd_per_million": rate(output_tokens=PRICED_TOKENS)}
