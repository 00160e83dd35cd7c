"""Sampling options: one set of names for every provider, checked before anything is sent, translated by each wire."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ConfigError
from ..plugins import did_you_mean

MOST = 1_000.0  # of a temperature, whose true bound each provider knows; inf and nan are no numbers
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def _is_number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _is_whole(low: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_stop(value: Any) -> bool:
    stops = [value] if isinstance(value, str) else value
    return isinstance(stops, (list, tuple)) and bool(stops) and all(isinstance(stop, str) and stop for stop in stops)


_OPTIONS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (_is_number(0, MOST), "a number, 0 or more"),
    "top_p": (_is_number(0, 1), "a number from 0 to 1"),
    "max_tokens": (_is_whole(1), "a whole number of tokens, at least 1"),
    "stop": (_is_stop, "a text, or a list of texts"),
    "seed": (lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number"),
    "reasoning_effort": (lambda value: value in EFFORTS, f"one of {', '.join(EFFORTS)}"),
    "extra_body": (lambda value: isinstance(value, Mapping), "a dict of further fields of the request"),
}
NAMES = tuple(_OPTIONS)


def checked(
    provider: str, sampling: Mapping[str, Any] | None, *, refused: Mapping[str, str] | None = None, reserved: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The options that are set, as a new dict.

    Args:
        provider: its name, for messages.
        sampling: options by name; None values are left out.
        refused: options that this provider does not have, each with the reason.
        reserved: fields of the request that ``extra_body`` may not change, because they change what a reply means.

    Raises:
        ConfigError: an option that does not exist, or not here, or whose value is none.
    """
    if not sampling:
        return {}
    refused = refused or {}
    for name in sampling:
        if name not in _OPTIONS:
            offered = [known for known in NAMES if known not in refused]
            raise ConfigError(
                f"unknown sampling option {name!r} for {provider!r}{did_you_mean(name, offered)}; there is: {', '.join(offered)}"
            )
    options = {name: value for name, value in sampling.items() if value is not None}
    for name, value in options.items():
        if name in refused:
            raise ConfigError(f"{provider!r} has no sampling option {name!r}: {refused[name]}")
        fits, what = _OPTIONS[name]
        if not fits(value):
            raise ConfigError(f"the sampling option {name!r} must be {what}, not {value!r}")
    if taken := [name for name in options.get("extra_body", {}) if name in reserved]:
        raise ConfigError(f"sampling's extra_body may not set {', '.join(taken)}: arlm writes {'it' if len(taken) == 1 else 'them'} itself")
    return options


def stops_of(options: Mapping[str, Any]) -> list[str]:
    """The stop texts as a list."""
    stop = options.get("stop", ())
    return [stop] if isinstance(stop, str) else list(stop)
