"""``arlm clean``: remove what dead runs left, on this machine and where environments keep containers or sandboxes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from .. import scratch
from ..environments.base import Environment
from ..errors import ArlmError, ConfigError, describe
from ..guest import cgroups
from ..home import find_environment
from ..plugins import ENVIRONMENTS, did_you_mean, load, resolve
from ..shielding import in_own_task
from .exits import Code, Interrupted, code_of
from .output import say, write, write_json
from .signals import signals
from .text import one_line

SWEEP_S = 30.0  # for one environment: an engine removes a container in a second, and tens of them at once
GRACE_S = 2.0  # for one that was stopped to close its connections
TOLD_CHARS = 400
QUESTION = "Remove the containers and sandboxes of all runs, of living ones too, on any machine? [y/N] "


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What came of looking in one place.

    Attributes:
        removed: a line for each thing.
        skipped: why it could not be looked at; empty where it could.
        code: the exit code of that, where it was asked for by name.
    """

    removed: tuple[str, ...] = ()
    skipped: str = ""
    code: int = 0


KEEPS_NOTHING = Swept(skipped="it keeps nothing outside this machine; temporary folders are looked at without --environment")


def clean(names: Sequence[str], *, everything: bool, yes: bool, as_json: bool) -> int:
    """Remove what dead runs left, and print it.

    Args:
        names: the environments to ask; none: all there are, and this machine's temporary folders and control groups.
        everything: have environments remove what belongs to living runs too.
        yes: without a question.

    Returns:
        the exit code: that of the first of ``names`` that could not be asked, else 0.

    Raises:
        ConfigError: no such environment, or ``everything`` with nobody there to confirm it; nothing was removed.
        Interrupted: a signal came, or the answer was no.
    """
    names = list(dict.fromkeys(names))
    _check(names)
    if everything and not yes:
        _confirm()
    found = signals.run(lambda: _sweep(names, everything=everything))
    for place, swept in found.items():
        if swept.skipped:
            say(f"arlm: {place}: {swept.skipped}")
    if as_json:
        removed = {place: [*swept.removed] for place, swept in found.items() if not swept.skipped}
        write_json({"removed": removed, "skipped": {place: swept.skipped for place, swept in found.items() if swept.skipped}})
    else:
        write(_report(found))
    return next((found[name].code for name in names if found[name].code), int(Code.ANSWERED))


def _check(names: Sequence[str]) -> None:
    known = load(ENVIRONMENTS)
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown environment {name!r}{did_you_mean(name, known)}; there is: {', '.join(sorted(known))}")


def _confirm() -> None:
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigError("--all also removes what living runs hold, and there is no terminal to ask on; add --yes if that is meant")
    print(QUESTION, end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Interrupted(signal.SIGINT)


async def _sweep(names: Sequence[str], *, everything: bool) -> dict[str, Swept]:
    """By place, in order: this machine, then the environments, which are asked all at once."""
    found: dict[str, Swept] = {}
    if not names:
        found = {place: await _tried(partial(_in_thread, look)) for place, look in HERE.items()}
    async with asyncio.TaskGroup() as tasks:
        asked = {
            name: tasks.create_task(_tried(partial(_ask, name, everything=everything))) for name in names or sorted(load(ENVIRONMENTS))
        }
    answers = {name: task.result() for name, task in asked.items()}
    return found | {name: swept for name, swept in answers.items() if names or swept is not KEEPS_NOTHING}


async def _ask(name: str, *, everything: bool) -> Swept:
    """Have one environment remove what it finds."""
    await asyncio.to_thread(resolve, ENVIRONMENTS, name, what="environment")  # its package may take a second to import
    environment = find_environment(name, {})
    if type(environment).sweep is Environment.sweep:
        return KEEPS_NOTHING
    say(f"arlm: {name}: looking for what is left")
    lines = await in_own_task(lambda: environment.sweep(everything=everything), grace=GRACE_S)
    return Swept(removed=tuple(one_line(line, TOLD_CHARS) for line in lines))


async def _in_thread(look: Callable[[], list[str]]) -> Swept:
    return Swept(removed=tuple(await asyncio.to_thread(look)))


async def _tried(work: Callable[[], Awaitable[Swept]]) -> Swept:
    """What comes of it, within SWEEP_S; a failure is told and is nobody else's."""
    try:
        async with asyncio.timeout(SWEEP_S) as limit:
            return await work()
    except ArlmError as error:
        return Swept(skipped=one_line(str(error), TOLD_CHARS), code=code_of(error))
    except Exception as error:  # a plug-in of somebody else's may raise anything
        late = limit.expired()
        reason = f"not done within {SWEEP_S:g} s; what it had removed by then stays removed" if late else describe(error)
        return Swept(skipped=one_line(reason, TOLD_CHARS), code=int(Code.SANDBOX))


def _folders() -> list[str]:
    """Remove the folders of dead hosts from where one's own runs would have theirs. Raises SandboxError."""
    parents = {scratch.parent_folder(), tempfile.gettempdir()}
    return [path for parent in sorted(parents) for path in scratch.sweep(parent)]


def _groups() -> list[str]:
    """Kill what supervisors that were killed had left running, and remove its groups."""
    places = cgroups.roots()
    left = [path for place in set(places.values()) for path in cgroups.abandoned(place.folder)]
    cgroups.sweep(places)
    return sorted(path for path in left if not os.path.exists(path))


HERE: Mapping[str, Callable[[], list[str]]] = {"temporary folders": _folders, "control groups": _groups}


def _report(found: Mapping[str, Swept]) -> str:
    lines = [f"{place}: removed {line}" for place, swept in found.items() for line in swept.removed]
    if lines:
        return "\n".join(lines)
    return "nothing was left where it could be asked" if any(swept.skipped for swept in found.values()) else "nothing was left"
