"""What a REPL needs to live: a private folder, the handler its worker connects to, and a place. Owned by whoever opens it."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import functions
from .context import FOLDER, write_context
from .environments.base import Environment, Place
from .environments.repl import REPL, Loaded
from .errors import ConfigError
from .guest.files import remove_tree
from .guest.wire import dumps
from .lifetimes import finish
from .options import RunOptions, unknown
from .plugins import ENVIRONMENTS, resolve
from .server.handler import LMHandler
from .tools import Tools
from .types import JSON

KEPT_CHARS = 1_000_000  # of a question and of its answer in `history`


@dataclass(slots=True, kw_only=True)
class Home:
    """An open place with one REPL, and what its runs have in common.

    Attributes:
        environment: the environment's name.
        contexts: how many contexts were given; the newest is also ``context``.
        cells: how many cells were run.
        history: earlier questions and answers, oldest first.
        tools, values: the user's own functions and values, and what each value is.
    """

    scratch: Path
    environment: str
    place: Place
    repl: REPL
    contexts: int = 0
    cells: int = 0
    history: list[dict[str, JSON]] = field(default_factory=list)
    tools: Tools = field(default_factory=Tools)
    values: dict[str, str] = field(default_factory=dict)
    _descriptions: dict[str, str] = field(default_factory=dict)
    _files: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def description(self) -> str:
        """What ``context`` is now; empty when there is none."""
        names = [loaded.name for loaded in self.repl.contexts if "context" in loaded.aliases]
        return self._descriptions[names[-1]] if names else ""

    async def add_values(self) -> None:
        """Put the tools that are values in place. Raises ConfigError, SandboxError."""
        for name, tool in self.tools.values.items():
            file = await write_context(tool.tool, self.scratch / FOLDER / f"tool_{name}", may_be_empty=True)
            await self.repl.load(Loaded(name=name, aliases=(), path=await self.place.put(file), kind=file.kind))
            self.values[name] = file.description

    async def add_context(self, value: Any) -> None:
        """Put a context in place as ``context_N`` and ``context``. Raises ConfigError, SandboxError."""
        # A new file each time: the thread that wrote for a cancelled question may still be at it.
        file = await write_context(value, self.scratch / FOLDER / f"context.{next(self._files)}")
        name = f"context_{self.contexts}"
        self._descriptions[name] = file.description
        await self.repl.load(Loaded(name=name, aliases=("context",), path=await self.place.put(file), kind=file.kind))
        self.contexts += 1

    def remember(self, prompt: str, answer: JSON) -> None:
        """Add a question and its answer to ``history``."""
        kept = answer if len(dumps(answer)) <= KEPT_CHARS else f"{str(answer)[:KEPT_CHARS]}… [cut]"
        self.history.append({"prompt": prompt[:KEPT_CHARS], "answer": kept})


@asynccontextmanager
async def open_home(environment: Environment, options: RunOptions) -> AsyncIterator[Home]:
    """Open a place of ``environment`` with a REPL that is not started yet.

    It may be left in another task than it was entered in. Leaving it kills the worker with everything below it and removes the folder, also
    when the block is cancelled, once or twice.

    Raises:
        ConfigError: a tool cannot be one.
        SandboxError: the place cannot be opened.
    """
    tools = Tools.of(options["tools"])
    environment.check(memory_limit=options["memory_limit"])
    scratch = Path(tempfile.mkdtemp(prefix="arlm-", dir=_short_folder()))
    try:
        (scratch / FOLDER).mkdir()
        async with LMHandler(transport=environment.transport, directory=scratch) as handler, environment.open(handler, scratch) as place:
            repl = REPL(
                place,
                handler,
                name="the REPL",
                functions=functions.specs() + tools.specs(),
                cell_timeout=options["cell_timeout"],
                memory_limit=options["memory_limit"],
            )
            try:
                home = Home(scratch=scratch, environment=environment.name, place=place, repl=repl, tools=tools)
                await home.add_values()
                yield home
            finally:
                await finish(repl.close, what="the REPL")
    finally:
        await finish(lambda: asyncio.to_thread(remove_tree, str(scratch)), what=str(scratch))


def find_environment(environment: str | Environment, options: Mapping[str, Any]) -> Environment:
    """The environment that ``environment=`` names, with its options.

    Raises:
        ConfigError: unknown environment or option, or a wrong value of one.
    """
    if isinstance(environment, Environment):
        if options:
            raise ConfigError("environment_options go with an environment's name; give them to the object itself")
        return environment
    if not isinstance(environment, str):
        raise ConfigError(f"environment must be a name or an Environment, not {type(environment).__name__}")
    made: Any = resolve(ENVIRONMENTS, environment, what="environment")
    known = list(inspect.signature(made).parameters)
    for name in options:
        if name not in known:
            raise ConfigError(unknown(f"option of the environment {environment!r}", name, known))
    found = made(**options)
    if not isinstance(found, Environment):
        raise ConfigError(f"the plug-in for environment {environment!r} made {type(found).__name__}, which is not an Environment")
    return found


def _short_folder() -> str | None:
    """Where a Unix socket's path stays short enough: the usual temp folder, or /tmp when that is deep."""
    usual = tempfile.gettempdir()
    return usual if len(usual) <= 60 or not Path("/tmp").is_dir() else "/tmp"  # noqa: S108 - mkdtemp makes a private folder in it
