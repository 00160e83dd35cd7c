"""What a gateway can do to a request, as values; and plans, which say what it does to which. Standard library only."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A request as a plan sees it: its number, from 1 in order of arrival, its method, its path without the query."""

    number: int
    method: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DropRequest:
    """The client's connection is reset; upstream sees nothing of the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DropReply:
    """Upstream has answered; the client's connection is reset, or it is told ``status``."""

    status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayRequest:
    """The request waits before it goes upstream, and goes there even if its client has left meanwhile. Later ones overtake it."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayReply:
    """The reply waits before it goes to the client. Later ones overtake it."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """The request goes upstream twice, on two connections, the second time ``later`` seconds after the first. ``reply`` is passed on."""

    later: float = 0.0
    reply: Literal["first", "second"] = "first"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A copy of the request goes upstream once more, after ``newer`` requests that came later have been answered there."""

    newer: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CutRequest:
    """Upstream gets the first ``keep`` (a share) of the body: then the connection ends, or, ``reframed``, the length says it was all.

    Where it ends, the client's connection is reset, or it is told ``status``. A request without a body passes.
    """

    keep: float = 0.5
    reframed: bool = False
    status: int | None = None

    def __post_init__(self) -> None:
        _share(self.keep)


@dataclass(frozen=True, slots=True, kw_only=True)
class CutReply:
    """The client gets the first ``keep`` (a share) of the body: then the connection closes, or, ``reframed``, the length says it was all.

    A reply without a body is cut in its head; reframed, it passes.
    """

    keep: float = 0.5
    reframed: bool = False

    def __post_init__(self) -> None:
        _share(self.keep)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerInstead:
    """The gateway answers, and upstream sees nothing: this request and those after it, ``requests`` in all, and all within ``seconds``.

    The body is a JSON object with an ``error``, or a page of HTML.
    """

    status: int = 502
    html: bool = False
    requests: int = 1
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OldReply:
    """The client gets what an earlier request of this method and path was answered, ``back`` replies ago; upstream sees nothing.

    Where nothing is kept yet the request passes; where less is kept, the oldest is taken.
    """

    back: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseIdle:
    """The request passes; right after its reply the connection closes, unannounced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupt:
    """``count`` bytes of a body, from the share ``at`` on, are inverted: ASCII becomes what is no UTF-8."""

    side: Literal["request", "reply"] = "reply"
    at: float = 0.5
    count: int = 1

    def __post_init__(self) -> None:
        _share(self.at)


Fault: TypeAlias = (
    DropRequest
    | DropReply
    | DelayRequest
    | DelayReply
    | Duplicate
    | Replay
    | CutRequest
    | CutReply
    | AnswerInstead
    | OldReply
    | CloseIdle
    | Corrupt
)
Decide: TypeAlias = Callable[[Seen], Fault | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """A random plan: the share of requests that meets each fault, at most one fault a request. The same ``seed`` draws the same faults.

    Attributes:
        seconds: delays, and the distance of duplicates, are drawn from 0 to this.
        statuses: what ``answer`` draws from; 200 is a page of HTML.
        outage: how many requests one ``answer`` is for, drawn from 1 to this.
    """

    drop_request: float = 0.0
    drop_reply: float = 0.0
    delay_request: float = 0.0
    delay_reply: float = 0.0
    duplicate: float = 0.0
    replay: float = 0.0
    cut_request: float = 0.0
    cut_reply: float = 0.0
    answer: float = 0.0
    old_reply: float = 0.0
    close_idle: float = 0.0
    corrupt: float = 0.0
    seconds: float = 0.1
    statuses: tuple[int, ...] = (502, 503, 504)
    outage: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        shares = [getattr(self, name) for name in _DRAWN]
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:  # ten times 0.1 is more than 1 to a computer
            raise ValueError(f"rates are shares of all requests, from 0 to 1 together; these are {sum(shares):g}")


Plan: TypeAlias = Decide | Iterable[Fault | None] | Rates


def decider(plan: Plan | None) -> Decide:
    """The plan as a function: values are taken one a request and end with passing everything, rates are drawn, None passes all."""
    if isinstance(plan, Rates):
        return _drawing(plan)
    if callable(plan):
        return plan
    faults = iter(plan or ())
    return lambda _seen: next(faults, None)


def only(plan: Plan, *, path: str | None = None, method: str | None = None) -> Decide:
    """The plan for the requests of this path or method alone: the others pass and take nothing from it."""
    decide = decider(plan)

    def decide_some(seen: Seen) -> Fault | None:
        return decide(seen) if path in (None, seen.path) and method in (None, seen.method) else None

    return decide_some


def _drawing(rates: Rates) -> Decide:
    dice = random.Random(rates.seed)

    def draw(_seen: Seen) -> Fault | None:
        point = dice.random()
        for name, make in _DRAWN.items():
            point -= getattr(rates, name)
            if point < 0:
                return make(rates, dice)
        return None

    return draw


def _answer(rates: Rates, dice: random.Random) -> Fault:
    status = dice.choice(rates.statuses)
    return AnswerInstead(status=status, html=status == 200, requests=dice.randint(1, rates.outage))


_DRAWN: dict[str, Callable[[Rates, random.Random], Fault]] = {
    "drop_request": lambda _rates, _dice: DropRequest(),
    "drop_reply": lambda _rates, dice: DropReply(status=dice.choice((None, 502))),
    "delay_request": lambda rates, dice: DelayRequest(seconds=dice.uniform(0, rates.seconds)),
    "delay_reply": lambda rates, dice: DelayReply(seconds=dice.uniform(0, rates.seconds)),
    "duplicate": lambda rates, dice: Duplicate(
        later=dice.choice((0.0, dice.uniform(0, rates.seconds))), reply=dice.choice(("first", "second"))
    ),
    "replay": lambda _rates, dice: Replay(newer=dice.randint(1, 5)),
    "cut_request": lambda _rates, dice: CutRequest(keep=dice.random(), reframed=dice.random() < 0.5),
    "cut_reply": lambda _rates, dice: CutReply(keep=dice.random(), reframed=dice.random() < 0.5),
    "answer": _answer,
    "old_reply": lambda _rates, dice: OldReply(back=dice.randint(1, 4)),
    "close_idle": lambda _rates, _dice: CloseIdle(),
    "corrupt": lambda _rates, dice: Corrupt(side=dice.choice(("request", "reply")), at=dice.random()),
}

assert set(_DRAWN) < {field.name for field in fields(Rates)}


def _share(value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"a share of a body is from 0 to below 1, not {value}")
