"""From what a person writes as a model to a BaseLM."""

from __future__ import annotations

import itertools
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..plugins import CLIENTS, load, resolve
from ..types import Completion, Message
from .base import BaseLM
from .endpoint import variable
from .function import FunctionLM
from .packages import install_command, is_installed
from .rows import ROWS, Row
from .servers import Server, ask_servers

ModelSpec = str | BaseLM | Callable[[list[Message]], Awaitable[Completion | str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The model that is taken when none is given.

    Attributes:
        lm: the model.
        reason: why it is this one, in a few words, for people.
    """

    lm: BaseLM
    reason: str


def resolve_model(spec: ModelSpec) -> BaseLM:
    """The model that ``spec`` names. Nothing is sent and no provider's SDK is imported.

    Args:
        spec: ``"provider/name"`` (``"provider:name"`` too: the first separator splits), a BaseLM, or an ``async def f(messages)``.

    Raises:
        ConfigError: unknown provider, no provider, a missing key (the message names the variable), or not a model at all.
    """
    match spec:
        case BaseLM():
            return spec
        case str():
            return _from_name(spec)
        case type():
            raise ConfigError(f"the model is the class {spec.__name__}; pass an instance of it")
        case _ if callable(spec):
            return FunctionLM(spec)
    raise ConfigError(f"a model is 'provider/name', a BaseLM or an async function, not {type(spec).__name__}")


async def default_model() -> Choice:
    """The model to take when none is given: that of the first provider whose key is set and whose SDK is installed, in the order of
    ``ROWS``; else one of the first server of one's own that answers, which takes a second at most to find out.

    Nothing but servers of one's own is asked, and those only where no key is set. Cancelling it closes the connections.

    Raises:
        ConfigError: there is none; the message names the variables, and the packages that are missing.
    """
    return choice_by_key() or choice(await ask_servers())


def choice_by_key() -> Choice | None:
    """The model of the first provider that has a key here, and an SDK. Raises ConfigError when that key cannot be used."""
    for row, key in _keyed_rows():
        if is_installed(row):
            return Choice(lm=resolve_model(f"{row.name}/{row.default_model}"), reason="; ".join([f"{key} is set", *_passed_over(row)]))
    return None


def choice(servers: Sequence[Server]) -> Choice:
    """What :func:`default_model` gives, when these are the servers of one's own. Raises ConfigError likewise."""
    by_key = choice_by_key()
    if by_key is not None:
        return by_key
    for server in servers:
        if server.problem is None:
            reason = "; ".join([f"it answers at {server.at}", *_passed_over(server.row)])
            return Choice(lm=resolve_model(f"{server.row.name}/{server.chat_model}"), reason=reason)
    variables = ", ".join(row.key_variables[0] for row in ROWS.values() if row.default_model)
    unfit = [*_passed_over(None), *(server.problem for server in servers if server.answers and server.problem)]
    raise ConfigError(
        f"no model was given and no key was found{' that can be used' if unfit else ''}: {''.join(f'{why}; ' for why in unfit)}"
        f"set one of {variables}, start a server ({', '.join(server.row.name for server in servers)}), or pass model='provider/name' "
        f"(providers: {', '.join(sorted(load(CLIENTS)))}); `arlm demo` needs no key"
    )


def _keyed_rows() -> Iterator[tuple[Row, str]]:
    """Providers with a default model whose key is set, and the variable that holds it."""
    for row in ROWS.values():
        key = next((name for name in row.key_variables if variable(name)), None)
        if row.default_model and key:
            yield row, key


def _passed_over(taken: Row | None) -> list[str]:
    """What stands before the one that is taken, and cannot be used because its SDK is missing."""
    before = itertools.takewhile(lambda keyed: keyed[0] is not taken, _keyed_rows())
    return [f"{key} is set, but {row.package} is not installed: {install_command(row)}" for row, key in before]


def _from_name(spec: str) -> BaseLM:
    spec = spec.strip()
    provider, separator, model = _split(spec)
    if not separator:
        if spec.lower() in load(CLIENTS):
            raise ConfigError(f"the model {spec!r} is a provider alone: write '{spec}/name'")
        raise ConfigError(f"the model {spec!r} names no provider: write 'provider/name'; did you mean 'openai/{spec}'?")
    if not model:
        raise ConfigError(f"the model {spec!r} ends after its provider: write '{provider}/name'")
    build: Any = resolve(CLIENTS, provider.lower(), what="provider")
    lm = build(provider.lower(), model)
    if not isinstance(lm, BaseLM):
        raise ConfigError(f"the provider {provider!r} gave {type(lm).__name__} where a BaseLM is needed")
    return lm


def _split(spec: str) -> tuple[str, str, str]:
    found = re.search("[/:]", spec)
    return (spec, "", "") if found is None else (spec[: found.start()], found.group(), spec[found.end() :].strip())
