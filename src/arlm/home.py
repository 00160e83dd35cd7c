"""Where a run lives: a site (a place with a folder and a handler) and, in it, homes: a REPL each. Owned by whoever opens it."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import functions
from .context import FOLDER, ContextFile, describe_short, write_context
from .environments.base import Environment, Loaded, Place
from .environments.repl import REPL
from .errors import ConfigError
from .guest.wire import dumps
from .lifetimes import CLEANUP_SECONDS, finish
from .options import RunOptions, unknown
from .plugins import ENVIRONMENTS, resolve
from .scratch import open_scratch
from .server.handler import LMHandler
from .tools import Tool, Tools
from .types import JSON

KEPT_CHARS = 1_000_000  # of a question and of its answer in `history`


@dataclass(slots=True, kw_only=True)
class Site:
    """An open place, with the private folder and the handler that go with it. It holds any number of homes.

    Attributes:
        environment: the environment's name.
        scratch: the folder, removed with the site.
    """

    environment: str
    scratch: Path
    handler: LMHandler
    place: Place
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _paths: dict[Path, str] = field(default_factory=dict)
    _values: dict[int, tuple[Tool, ContextFile]] = field(default_factory=dict)

    async def write(self, value: Any, *, may_be_empty: bool = False) -> ContextFile:
        """Write a value into a file of its own. Raises ConfigError, SandboxError."""
        # A new file each time: the thread that wrote for a cancelled question may still be at it.
        return await write_context(value, self.scratch / FOLDER / f"context.{next(self._numbers)}", may_be_empty=may_be_empty)

    async def put(self, file: ContextFile) -> str:
        """The path of a file as workers see it; each file is put in place once."""
        if file.path not in self._paths:
            self._paths[file.path] = await self.place.put(file)
        return self._paths[file.path]

    async def value_of(self, tool: Tool) -> ContextFile:
        """The file of a tool that is a value, written once. Raises ConfigError, SandboxError."""
        if id(tool) not in self._values:
            self._values[id(tool)] = (tool, await self.write(tool.tool, may_be_empty=True))
        return self._values[id(tool)][1]

    async def remove(self, file: ContextFile) -> None:
        """Remove a file that nobody reads any more; of one that is the user's own, what the place has of it."""
        inside = self._paths.pop(file.path, None)
        if inside is not None:
            await self.place.drop(inside)
        if file.path.is_relative_to(self.scratch):
            await asyncio.to_thread(file.path.unlink, missing_ok=True)


@dataclass(slots=True, kw_only=True)
class Home:
    """One REPL in a site, and what its runs have in common.

    Attributes:
        files: the contexts that came as files, by name.
        contexts: how many contexts were given; the newest is also ``context``.
        cells: how many cells were run.
        history: earlier questions and answers, oldest first.
        tools, values: the user's own functions and values, and what each value is.
    """

    site: Site
    repl: REPL
    tools: Tools
    files: dict[str, ContextFile] = field(default_factory=dict)
    contexts: int = 0
    cells: int = 0
    history: list[dict[str, JSON]] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    _descriptions: dict[str, str] = field(default_factory=dict)
    _own: list[ContextFile] = field(default_factory=list)

    @property
    def description(self) -> str:
        """What ``context`` is now; empty when there is none."""
        names = [loaded.name for loaded in self.repl.contexts if "context" in loaded.aliases]
        return self._descriptions[names[-1]] if names else ""

    async def add_values(self) -> None:
        """Put the tools that are values in place. Raises ConfigError, SandboxError."""
        for name, tool in self.tools.values.items():
            file = await self.site.value_of(tool)
            await self.repl.load(Loaded(name=name, aliases=(), path=await self.site.put(file), kind=file.kind))
            self.values[name] = file.description

    async def add_context(self, value: Any) -> None:
        """Put a context in place as ``context_N`` and ``context``. Raises ConfigError, SandboxError."""
        if (description := describe_short(value)) is not None:
            await self._add(Loaded(name=f"context_{self.contexts}", aliases=("context",), value=value), description)
            return
        file = await self.site.write(value)
        self._own.append(file)
        await self.add_file(file)

    async def add_file(self, file: ContextFile) -> None:
        """The same for a context that is a file already: another home's, for instance. Raises SandboxError."""
        name = f"context_{self.contexts}"
        self.files[name] = file
        await self._add(Loaded(name=name, aliases=("context",), path=await self.site.put(file), kind=file.kind), file.description)

    async def _add(self, loaded: Loaded, description: str) -> None:
        self._descriptions[loaded.name] = description
        await self.repl.load(loaded)
        self.contexts += 1

    def remember(self, prompt: str, answer: JSON) -> None:
        """Add a question and its answer to ``history``."""
        kept = answer if len(dumps(answer)) <= KEPT_CHARS else f"{str(answer)[:KEPT_CHARS]}… [cut]"
        self.history.append({"prompt": prompt[:KEPT_CHARS], "answer": kept})

    async def close(self) -> None:
        """Kill the worker with everything below it, then remove the contexts that were written for it."""
        await self.repl.close()
        for file in self._own:
            await self.site.remove(file)


@asynccontextmanager
async def open_site(environment: Environment, *, memory_limit: int | None) -> AsyncIterator[Site]:
    """Open a place of ``environment``.

    It may be left in another task than it was entered in. Leaving it kills every worker of the place and removes the folder, also when the
    block is cancelled, once or twice.

    Raises:
        ConfigError: the environment cannot do what is asked.
        SandboxError: the place cannot be opened.
    """
    environment.check(memory_limit=memory_limit)
    async with (
        open_scratch(FOLDER) as scratch,
        LMHandler(transport=environment.transport, directory=scratch) as handler,
        environment.open(handler, scratch) as place,
    ):
        yield Site(environment=environment.name, scratch=scratch, handler=handler, place=place)


@asynccontextmanager
async def settle(site: Site, tools: Tools, options: RunOptions, *, name: str = "the REPL") -> AsyncIterator[Home]:
    """A home in a site, with a REPL that is not started yet. Leaving it kills its worker with everything below it, as ``open_site`` does.

    Raises:
        ConfigError: a tool's value cannot be one.
        SandboxError: it could not be written.
    """
    repl = REPL(
        site.place,
        site.handler,
        name=name,
        functions=functions.specs() + tools.specs(),
        cell_timeout=options["cell_timeout"],
        memory_limit=options["memory_limit"],
    )
    home = Home(site=site, repl=repl, tools=tools)
    try:
        await home.add_values()
        yield home
    finally:
        await finish(home.close, what=name)


@asynccontextmanager
async def open_home(environment: Environment, options: RunOptions) -> AsyncIterator[Home]:
    """``open_site`` and ``settle`` in one, for a root."""
    tools = Tools.of(options["tools"])
    async with open_site(environment, memory_limit=options["memory_limit"]) as site, settle(site, tools, options) as home:
        yield home


class SubSite:
    """The site of a run's children where ``sub_environment`` names one: opened by the first child, for all of them.

    Use it as an async context manager; leaving it closes the site.
    """

    def __init__(self, environment: Environment, options: RunOptions) -> None:
        environment.check(memory_limit=options["memory_limit"])
        self.environment = environment.name
        self._environment = environment
        self._memory_limit = options["memory_limit"]
        self._stack = AsyncExitStack()
        self._lock = asyncio.Lock()
        self._site: Site | None = None

    async def get(self) -> Site:
        """The site. Raises SandboxError; the next child tries again."""
        async with self._lock:
            if self._site is None:
                opening = open_site(self._environment, memory_limit=self._memory_limit)
                self._site = await self._stack.enter_async_context(opening)
            return self._site

    async def __aenter__(self) -> SubSite:
        return self

    async def __aexit__(self, *_: object) -> None:
        await finish(self._stack.aclose, what="the children's place", seconds=self._environment.close_seconds + CLEANUP_SECONDS)


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
