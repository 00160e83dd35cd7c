"""The events of a run: one schema for ``stream``, ``on_event`` and the log. VERSION rises when a field changes its meaning or goes.

Every event names its run and the node of the run tree it belongs to (``"root"``; children are ``"root.1"``, …) and when it happened.
No event carries a key, and none carries the context itself.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from .types import JSON, Message

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What all events have.

    Attributes:
        run_id: the run.
        node: the node of its tree.
        time: seconds since 1970 (UTC).
    """

    type: ClassVar[str] = "event"
    run_id: str
    node: str = "root"
    time: float = field(default_factory=time.time)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        cls.type = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    def to_dict(self) -> dict[str, JSON]:
        """``type`` and all fields, as plain JSON types."""
        return {"type": self.type, **{item.name: _plain(getattr(self, item.name)) for item in fields(self)}}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A run began. ``limits``: those that are set, by option name. ``context``: its description. ``model_reason``: where no model was
    given, why it is this one."""

    prompt: str
    context: str
    model: str
    sub_model: str
    environment: str
    limits: Mapping[str, JSON]
    model_reason: str | None = None
    version: int = VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentProgress(Event):
    """What takes long before code can run: an image is being pulled, and how far that is. It may come before RunStarted."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesAdded(Event):
    """Messages were appended to the root history; each message appears once, in order."""

    messages: Sequence[Message]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnStarted(Event):
    """A root turn began. ``left``: what is left of each limit, by option name."""

    iteration: int
    max_iterations: int
    left: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnAnswered(Event):
    """The root model replied (the text is the assistant message in the next MessagesAdded)."""

    iteration: int
    model: str
    finish_reason: str | None
    usage: Mapping[str, JSON]
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CellStarted(Event):
    """A code block began to run. ``cell`` counts over the whole session."""

    iteration: int
    cell: int
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellOutput(Event):
    """A running cell printed this; for display. CellEnded has the whole; the log leaves these out."""

    cell: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellEnded(Event):
    """A cell ended; the fields are those of CellResult."""

    iteration: int
    cell: int
    output: str
    output_chars: int
    error: str | None
    stopped: str | None
    lost: Sequence[str] | None
    answer_ready: bool
    calls: int
    failures: Sequence[str]
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SubcallStarted(Event):
    """Code called a model. ``call`` counts over the run; ``function`` is the REPL function."""

    call: int
    function: str
    model: str
    prompt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubcallEnded(Event):
    """A sub-call ended: with ``text``, or with ``error`` (the text code got in its place). ``usage`` is empty where a child run answered:
    the events of its node have it."""

    call: int
    text: str | None
    error: str | None
    usage: Mapping[str, JSON]
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCalled(Event):
    """A tool was called and has ended. ``arguments``: as JSON text, cut; ``error``: what the cell saw, as text."""

    name: str
    arguments: str
    error: str | None
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStarted(Event):
    """A child run began: a sub-call became a node of its own, ``node``. Its ``SubcallStarted`` is the last number of that name, in its
    parent. ``context``: its description."""

    depth: int
    model: str
    prompt: str
    context: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildEnded(Event):
    """A child run is over; the fields are those of RunEnded. ``usage`` is its own and that of all below it."""

    depth: int
    answer: JSON
    stop_reason: str
    error: str | None
    usage: Mapping[str, JSON]
    iterations: int
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRetried(Event):
    """An LM call failed and will be tried again after ``wait_s`` seconds."""

    model: str
    error: str
    wait_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitReached(Event):
    """A limit refused a call for the first time, or ended the run."""

    limit: str
    used: float
    allowed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """The run is over. ``error``: the exception that ended it, as text; then there is no answer."""

    answer: JSON
    stop_reason: str | None
    error: str | None
    usage: Mapping[str, JSON]
    iterations: int
    duration_s: float


AnyEvent = (
    RunStarted
    | EnvironmentProgress
    | MessagesAdded
    | TurnStarted
    | TurnAnswered
    | CellStarted
    | CellOutput
    | CellEnded
    | SubcallStarted
    | SubcallEnded
    | ToolCalled
    | ChildStarted
    | ChildEnded
    | CallRetried
    | LimitReached
    | RunEnded
)
Emit = Callable[[AnyEvent], None]
TYPES: Mapping[str, type[Event]] = {kind.type: kind for kind in Event.__subclasses__()}


def _plain(value: Any) -> JSON:
    match value:
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case str() | int() | float() | None:
            return value
        case Sequence():
            return [_plain(item) for item in value]
        case _:
            return str(value)


def documentation() -> str:
    """The schema as Markdown, from the classes themselves."""
    parts = [f"Schema version {VERSION}. Every event has `type`, `run_id`, `node` and `time` (seconds since 1970, UTC)."]
    common = {item.name for item in fields(Event)}
    for name, kind in TYPES.items():
        rows = [f"| `{item.name}` | `{item.type}` |" for item in fields(kind) if item.name not in common]
        parts.append("\n".join([f"## `{name}`", "", str(kind.__doc__), "", "| field | type |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"
