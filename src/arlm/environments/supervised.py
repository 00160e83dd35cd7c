"""Places whose workers one supervisor forks: this machine's processes, containers. They differ in where the supervisor runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import SandboxError
from ..server.handler import LMHandler, Ticket
from .base import Place, Worker
from .control import Control, ForkedWorker
from .holders import Holders

RELAYED_HELLO_SECONDS = 60.0  # from the order to fork it, which goes the same road: as long as a REPL waits for its worker


class SupervisedPlace(Place):
    """What such places share: workers are spawned, replaced together with a lost supervisor, and killed.

    Args:
        control: the supervisor's connection.
        handler: what workers connect to.
        folder: of the place, as workers see it; each gets one of its own below it.
        address: where they connect, as they see it; None: their frames travel inside the supervisor's connection.
        confine: see ``guest.confine``; None: not at all.
        processes: how many processes and threads a worker may have; None: the default.
        holders: of large contexts.
    """

    def __init__(
        self,
        control: Control,
        handler: LMHandler,
        *,
        folder: str,
        address: Mapping[str, Any] | None,
        confine: Mapping[str, Any] | None,
        processes: int | None,
        holders: Holders,
    ) -> None:
        self._control = control
        self._handler = handler
        self._folder = folder
        self._address = address
        self._confine = confine
        self._processes = processes
        self._holders = holders
        self._workers: list[ForkedWorker] = []
        self._count = 0

    async def start_worker(self, ticket: Ticket, *, memory_limit: int | None, contexts: Sequence[tuple[str, str]] = ()) -> Worker:
        """See Place. Large contexts are loaded once, in a process that workers are forked from."""
        await self._renew()
        try:
            return await self._start(ticket, memory_limit, contexts)
        except SandboxError:
            if not self._is_lost():
                raise
            await self._renew()  # the supervisor had died and nobody knew yet; a new one takes over
            if self._is_lost():
                raise
            return await self._start(ticket, memory_limit, contexts)

    async def _start(self, ticket: Ticket, memory_limit: int | None, contexts: Sequence[tuple[str, str]]) -> Worker:
        contexts = [(self.where(path), kind) for path, kind in contexts]  # after the renewal
        if self._address is None:
            await self._control.nurse()
        holder = await self._holders.find(self._control, contexts, memory_limit)
        if holder is not None:
            try:
                worker = await self._spawn(self._args(ticket, memory_limit, holder.worker.name))
            except SandboxError:
                self._holders.release(holder)  # it was killed meanwhile: the worker loads by itself
            except BaseException:
                self._holders.release(holder)
                raise
            else:
                worker.exited.add_done_callback(lambda _: self._holders.release(holder))
                return worker
        worker = await self._spawn(self._args(ticket, memory_limit))
        self._holders.loads_alone(worker, contexts)
        return worker

    def _args(self, ticket: Ticket, memory_limit: int | None, holder: str | None = None) -> dict[str, Any]:
        """What the supervisor is told of a worker."""
        self._prepare(ticket)
        self._count += 1
        folder = f"{self._folder}/w{self._count}"
        return {
            "token": ticket.token,
            "dir": folder,
            "confine": self._doors(folder),
            "address": {"relay": True} if self._address is None else dict(self._address),
            "memory_limit": memory_limit,
            "processes": self._processes,
            **({} if holder is None else {"holder": holder}),
        }

    @abstractmethod
    async def _renew(self) -> None:
        """Have a supervisor again where the last one is lost. Raises SandboxError."""

    def _prepare(self, ticket: Ticket) -> None:
        """Add what workers of this place are told besides."""

    def _is_lost(self) -> bool:
        return self._control.peer is None or self._control.peer.lost is not None

    async def _spawn(self, args: dict[str, Any]) -> ForkedWorker:
        worker = self._control.worker(self._handler.connection(RELAYED_HELLO_SECONDS) if self._address is None else None)
        self._workers = [*(known for known in self._workers if not known.exited.done()), worker]
        await self._control.spawn(worker, args)
        return worker

    def _doors(self, folder: str) -> dict[str, Any] | None:
        """What a worker may reach: its own folder, and what the place opened."""
        if self._confine is None:
            return None
        return {**self._confine, "write": [*self._confine["write"], folder]}

    async def close(self) -> None:
        """Kill all workers; all orders go out before the first is waited for."""
        orders = [order for worker in self._workers if (order := worker.order_kill()) is not None] + self._holders.order_kill()
        if orders:
            await self._control.answered(set(orders))
