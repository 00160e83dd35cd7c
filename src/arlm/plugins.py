"""What is added from outside the core: entry points, found by group and loaded one at a time."""

from __future__ import annotations

import difflib
import functools
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING

from .errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CLIENTS = "arlm.clients"
ENVIRONMENTS = "arlm.environments"


@functools.cache
def load(group: str) -> Mapping[str, EntryPoint]:
    """The entry points of ``group`` by name, not imported yet. Where two packages claim a name, arlm's own wins, then the first found."""
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=group), key=lambda point: not point.value.startswith("arlm.")):
        found.setdefault(point.name, point)
    return MappingProxyType(found)


def resolve(group: str, name: str, *, what: str) -> object:
    """Import and return what ``name`` stands for in ``group``.

    Args:
        group: the entry-point group.
        name: the plugin's name.
        what: the noun for messages, such as ``"provider"``.

    Raises:
        ConfigError: there is no such name (the message lists what there is), or this one plugin cannot be imported. Others are not touched.
    """
    points = load(group)
    if name not in points:
        raise ConfigError(f"unknown {what} {name!r}{did_you_mean(name, points)}; there is: {', '.join(sorted(points)) or 'none'}")
    try:
        return points[name].load()
    except Exception as error:
        dist = points[name].dist
        origin = dist.name if dist is not None else points[name].value
        raise ConfigError(f"the {what} {name!r} (from {origin}) could not be loaded: {type(error).__name__}: {error}") from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'openai'?"``, or nothing when no known word is near."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
