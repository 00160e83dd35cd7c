"""From what a person writes as a model to a BaseLM."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ..errors import ConfigError
from ..plugins import CLIENTS, load, resolve
from ..types import Completion, Message
from .base import BaseLM
from .function import FunctionLM

ModelSpec = str | BaseLM | Callable[[list[Message]], Awaitable[Completion | str]]

# Tried in this order when no model is given: the variable that holds the key, and a model that is cheap and good at writing code.
FIRST_CHOICES: Mapping[str, str] = {
    "OPENAI_API_KEY": "openai/gpt-5-mini",
    "OPENROUTER_API_KEY": "openrouter/openai/gpt-5-mini",
    "AI_GATEWAY_API_KEY": "vercel/openai/gpt-5-mini",
}


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


def default_model() -> BaseLM:
    """The first provider whose key is set.

    Raises:
        ConfigError: no key is set; the message names the variables.
    """
    for variable, spec in FIRST_CHOICES.items():
        if os.environ.get(variable, "").strip():
            return resolve_model(spec)
    raise ConfigError(
        f"no model was given and no key was found: set one of {', '.join(FIRST_CHOICES)}, or pass model='provider/name' "
        f"(providers: {', '.join(sorted(load(CLIENTS)))}); `arlm demo` needs no key"
    )


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
