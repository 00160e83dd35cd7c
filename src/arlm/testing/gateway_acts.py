"""Carries out the faults that need a whole request, and the copies that outlive it. Standard library only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, assert_never

from .gateway_faults import (
    AnswerInstead,
    Corrupt,
    CutReply,
    CutRequest,
    DelayReply,
    DelayRequest,
    DropReply,
    Duplicate,
    OldReply,
    Replay,
)
from .gateway_http import Answered, Broken, inverted, part
from .gateway_upstream import Absent, Ask, Kept, fetch, send_cut

Act: TypeAlias = DropReply | DelayRequest | DelayReply | Duplicate | Replay | CutRequest | CutReply | AnswerInstead | OldReply | Corrupt


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What a client gets before its connection is closed, or reset."""

    data: bytes = field(default=b"", repr=False)
    reset: bool = False


RESET: Final = Cut(reset=True)


@dataclass(slots=True, kw_only=True)
class _Stale:
    ask: Ask
    newer: int  # requests that have to be answered before the copy is sent


class Acts:
    """What a gateway does with whole requests. Exchanges that no client holds any more are tasks in ``strays``.

    Attributes:
        upstream: host and port; None: nowhere.
        kept: the last replies.
        strays: copies and delayed requests under way, also those whose client still waits.
        failures: errors that no exchange should raise.
    """

    def __init__(self, *, limit_s: float, on_copy: Callable[[Ask], object], on_change: Callable[[], object]) -> None:
        self.upstream: tuple[str, int] | None = None
        self.kept = Kept()
        self.strays: set[asyncio.Task[Any]] = set()
        self.failures: list[BaseException] = []
        self._limit_s = limit_s
        self._on_copy = on_copy
        self._on_change = on_change
        self._stale: list[_Stale] = []

    def answering(self, number: int) -> None:
        """Upstream has begun to answer this request: copies of older ones may be due."""
        for stale in [it for it in self._stale if it.ask.number < number]:
            stale.newer -= 1
            if stale.newer <= 0:
                self._stale.remove(stale)
                self._on_copy(stale.ask)
                self._start(self._fetch(stale.ask, is_copy=True))

    async def act(self, fault: Act, ask: Ask) -> Answered | Cut:
        """What the client gets. Raises Absent, Broken, TimeoutError; a cancel leaves copies and delayed requests on their way."""
        match fault:
            case AnswerInstead():
                return Answered.by_gateway(fault, ask.method)
            case OldReply(back=back):
                return self.kept.find(ask.method, ask.path, back) or await self._fetch(ask)
            case DropReply(status=status):
                await asyncio.shield(self._start(self._fetch(ask)))
                return _lost(status, ask)
            case DelayRequest(seconds=seconds):
                return await asyncio.shield(self._start(self._fetch(ask, after=seconds)))
            case DelayReply(seconds=seconds):
                answered = await self._fetch(ask)
                await asyncio.sleep(seconds)
                return answered
            case Duplicate():
                return await self._twice(fault, ask)
            case Replay(newer=newer):
                self._stale.append(_Stale(ask=ask, newer=newer))
                return await self._fetch(ask)
            case CutRequest():
                return await self._cut_request(fault, ask)
            case CutReply():
                return _cut(fault, await self._fetch(ask))
            case Corrupt(side="request"):
                return await self._fetch(ask.with_body(inverted(ask.body, fault.at, fault.count)))
            case Corrupt():
                answered = await self._fetch(ask)
                return answered.with_body(inverted(answered.body, fault.at, fault.count)) if answered.body else answered
            case _:
                assert_never(fault)

    async def _twice(self, fault: Duplicate, ask: Ask) -> Answered:
        first = self._start(self._fetch(ask))
        second = self._start(self._fetch(ask, after=fault.later, is_copy=True))
        return await asyncio.shield(first if fault.reply == "first" else second)

    async def _cut_request(self, fault: CutRequest, ask: Ask) -> Answered | Cut:
        if fault.reframed:
            return await self._fetch(ask.with_body(ask.body[: part(len(ask.body), fault.keep)]))
        await send_cut(self.upstream, ask, fault.keep)
        return _lost(fault.status, ask)

    async def _fetch(self, ask: Ask, *, after: float = 0.0, is_copy: bool = False) -> Answered:
        if after:
            await asyncio.sleep(after)
        async with asyncio.timeout(self._limit_s):
            answered = await fetch(self.upstream, ask, (lambda _number: None) if is_copy else self.answering)
        self.kept.keep(ask.method, ask.path, answered)
        return answered

    def _start(self, work: Coroutine[Any, Any, Answered]) -> asyncio.Task[Answered]:
        task = asyncio.create_task(work, name="a gateway's exchange")
        self.strays.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Answered]) -> None:
        self.strays.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, Absent | Broken | TimeoutError):
            self.failures.append(error)
        self._on_change()


def _lost(status: int | None, ask: Ask) -> Answered | Cut:
    return RESET if status is None else Answered.by_gateway(AnswerInstead(status=status), ask.method)


def _cut(fault: CutReply, answered: Answered) -> Answered | Cut:
    if not fault.reframed:
        return Cut(data=answered.cut(fault.keep))
    return answered.with_body(answered.body[: part(len(answered.body), fault.keep)]) if answered.body else answered
