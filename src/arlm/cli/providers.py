"""What is known here of every provider, without asking one: for ``arlm models`` and ``arlm doctor`` alike."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint

from ..clients.endpoint import variable
from ..clients.packages import install_command, installed_version, is_installed
from ..clients.resolve import resolve_model
from ..clients.rows import ROWS, Row
from ..clients.servers import Server
from ..errors import ConfigError
from ..plugins import CLIENTS, load, resolve
from ..types import JSON

STAND_IN = "demo"
NAMED_VARIABLES = "VARIABLES"  # what a plug-in's module may call the names of the variables that it reads


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One provider, built in or added by a package.

    Attributes:
        name: the part before the slash in a model's name.
        row: what arlm knows of it; None of one that a package has added.
        added_by: that package, with its version; None: built in.
        variables: what it reads from the environment, and whether each is set.
        package: its SDK's name as pip knows it.
        version: of the SDK that is installed; None: none, or not known.
        install: what installs the SDK; None: it is there.
        problem: why no call can be made now; None: one can, as far as can be seen from here.
        broken: whether the problem is a fault, rather than something that nobody has set up.
        server: what the server of one's own said; None of any other provider.
    """

    name: str
    row: Row | None = None
    added_by: str | None = None
    variables: Mapping[str, bool]
    package: str | None = None
    version: str | None = None
    install: str | None = None
    problem: str | None = None
    broken: bool = False
    server: Server | None = None

    @property
    def default_model(self) -> str | None:
        """The model that it is taken with when none is given, with the provider's name."""
        model = self.row.default_model if self.row else None
        if self.server is not None:
            model = self.server.chat_model
        return f"{self.name}/{model}" if model else None

    def state(self) -> str:
        """Whether it can be used, in words, and what to do where it cannot."""
        given = [name for name, is_set in self.variables.items() if is_set]
        known = f"set: {', '.join(given)}" if given else ""
        if self.server is not None and self.server.answers:
            models = self.server.models
            shown = ", ".join(models[:5]) + (", …" if len(models) > 5 else "")
            known = f"answers at {self.server.at}; models: {shown or 'none'}"
        if self.name == STAND_IN:
            known = "built in, needs no key; a rule-based stand-in"
        return "; ".join(filter(None, [known, self.problem])) or "nothing to set"

    def facts(self) -> dict[str, JSON]:
        """The same for programs."""
        return {
            "usable": self.problem is None,
            "problem": self.problem,
            "added_by": self.added_by,
            "variables": dict(self.variables),
            "package": self.package,
            "version": self.version,
            "install": self.install,
            "default_model": self.default_model,
            "local": self.server is not None,
            "at": self.server.at if self.server else None,
            "models": [*self.server.models] if self.server and self.server.answers else None,
        }


def providers(servers: Sequence[Server]) -> list[Provider]:
    """All that there are: the built-in ones in the order in which a default is looked for, then the others by name.

    Args:
        servers: what the servers of one's own said.
    """
    by_name = {server.row.name: server for server in servers}
    built_in = [_built_in(row, by_name.get(row.name)) for row in ROWS.values()]
    return [*built_in, *(_added(point) for name, point in sorted(load(CLIENTS).items()) if name not in ROWS)]


def _built_in(row: Row, server: Server | None) -> Provider:
    there = is_installed(row)
    return Provider(
        name=row.name,
        row=row,
        variables={name: variable(name) is not None for name in row.all_variables},
        package=row.package,
        version=installed_version(row.package) if there else None,
        install=None if there else install_command(row),
        problem="; ".join(_problems(row, server)) or None,
        server=server,
    )


def _problems(row: Row, server: Server | None) -> Iterator[str]:
    try:
        resolve_model(f"{row.name}/{row.default_model or 'any'}")
    except ConfigError as error:
        yield str(error).removeprefix(f"the provider {row.name!r} ")
    else:
        if server is not None and server.problem:
            yield server.problem
    if not is_installed(row):
        yield f"{row.package} is not installed: {install_command(row)}"


def _added(point: EntryPoint) -> Provider:
    """One that a package has added. It is imported, and not asked for a model: that may be more than a look."""
    problem = None
    names: Sequence[str] = ()
    try:
        resolve(CLIENTS, point.name, what="provider")
        names = getattr(sys.modules[point.module], NAMED_VARIABLES, ())
    except ConfigError as error:
        problem = str(error)
    dist = point.dist
    return Provider(
        name=point.name,
        added_by=None if point.name == STAND_IN or dist is None else f"{dist.name} {dist.version}",
        variables={str(name): variable(str(name)) is not None for name in names},
        problem=problem,
        broken=problem is not None,
    )
