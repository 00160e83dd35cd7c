"""A REPL: one worker's cells, seen from the host. The same for every environment; it needs only a place that starts workers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeGuard

import anyio
from anyio.abc import TaskGroup

from ..errors import SandboxError
from ..guest.link import LOST_CONNECTION
from ..server.handler import LMHandler, Ticket
from ..server.peer import Answer, CallError, Peer, PeerLost
from ..types import JSON, CellResult
from .base import Exit, Loaded, Place, Worker
from .clock import CellClock, Stop
from .report import ERROR_CHARS, OUTPUT_CHARS, Streamed, read_report

START_SECONDS = 60.0  # from the order to a worker's hello
GRACE_SECONDS = 1.0  # from the first interrupt to the kill: enough for `finally` blocks, short enough for a loop that ignores it
INTERRUPT_SECONDS = 0.1  # interrupts are repeated: one may hit where Python cannot raise (a destructor, a C call)
LIMIT_SECONDS = 2.0  # after a limit of the run refused a call, the cell has this long to end by itself
EXIT_SECONDS = 5.0  # a worker whose connection ended is dead within milliseconds; its death notice is awaited this long
LOAD_SECONDS = 120.0  # a context of a gigabyte takes two seconds as text and ten as JSON
IDLE_SECONDS = 10.0  # for a worker between two questions, which has nothing to do, to take the next one


class REPL:
    """A namespace that lives over many cells, in a worker that is replaced when it has to be killed.

    Args:
        place: where workers are started.
        handler: what they connect to.
        name: for messages.
        functions: the specs of its REPL functions.
        cell_timeout: seconds of a cell's own time (waiting for calls does not count).
        memory_limit: bytes per worker, or None.
        on_output: called with pieces of a running cell's output, as they come; a run brings its own.
    """

    def __init__(
        self,
        place: Place,
        handler: LMHandler,
        *,
        name: str,
        functions: list[dict[str, Any]],
        cell_timeout: float,
        memory_limit: int | None,
        on_output: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self._place = place
        self._handler = handler
        self._functions = functions
        self._cell_timeout = cell_timeout
        self._memory_limit = memory_limit
        self._show = on_output
        self.contexts: list[Loaded] = []
        self._history: list[dict[str, JSON]] = []
        self._serving: tuple[TaskGroup, Answer] | None = None
        self._worker: Worker | None = None
        self._peer: Peer | None = None
        self._ticket: Ticket | None = None
        self._doors: list[Peer] = []  # further connections that ask in this REPL's name
        self._clock: CellClock | None = None
        self._streamed = Streamed()
        self.variables: dict[str, str] = {}
        self._starting = asyncio.Lock()
        self._running: asyncio.Future[JSON] | None = None
        self._lost_between: tuple[str, ...] | None = None  # what a worker that ended between two cells took with it

    # -- lifetime ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Have a worker, with all contexts loaded. Does nothing when there is one.

        Raises:
            SandboxError: it could not be started, or ended while loading.
        """
        async with self._starting:
            if not _is_there(self._peer):
                if self._peer is not None:
                    self._lost_between, self.variables = tuple(self.variables), {}
                await self.close()
                contexts = list(self.contexts)
                try:
                    await self._start()
                except SandboxError:
                    if not await self._lost_with_its_place():
                        raise
                    self.contexts = contexts
                    await self._start()  # in the place's successor

    async def _lost_with_its_place(self) -> bool:
        """Whether the worker that was lost just now ended because its place did: then a place that can has another one next time."""
        worker = self._worker
        if worker is None:
            return False
        await asyncio.wait({worker.exited}, timeout=EXIT_SECONDS)
        return worker.exited.done() and worker.exited.result().status is None

    async def _start(self) -> None:
        ticket = self._ticket = self._handler.expect(self.name, self._functions)
        ticket.on_door = self._open_door
        try:
            files = [(context.path, context.kind) for context in self.contexts if context.value is None]
            self._worker = await self._place.start_worker(ticket, memory_limit=self._memory_limit, contexts=files)
            peer = await self._connected(ticket, self._worker)
            peer.on_note = self._on_note
            for context in list(self.contexts):
                await self._load_context(peer, context)
            if self._history:
                await self._load(peer, {"history": self._history}, "history")
        except BaseException:
            ticket.give_up("the worker did not start")
            if self._worker is not None:
                with anyio.CancelScope(shield=True):
                    await self._worker.kill()
            raise
        self._peer = peer
        if self._serving is not None:
            peer.serve(self._serving[0], self._counted)

    async def _connected(self, ticket: Ticket, worker: Worker) -> Peer:
        """Wait for the worker's connection, or for its end."""
        connecting = asyncio.ensure_future(ticket.peer())
        awaited: set[asyncio.Future[Any]] = {connecting, worker.exited}
        try:
            await asyncio.wait(awaited, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if connecting.done():
                return connecting.result()
            if worker.exited.done():
                how = worker.exited.result()
                raise SandboxError(f"the worker ended while starting: {how}. {how.output[:OUTPUT_CHARS]}".strip())
            raise SandboxError(f"the worker did not connect within {START_SECONDS:g} s")
        except PeerLost as error:
            raise SandboxError(f"the worker's connection was lost while starting: {error}") from error
        finally:
            connecting.cancel()

    async def _load_context(self, peer: Peer, context: Loaded) -> None:
        """Load a context, and forget it if it cannot be: what cannot be loaded now would also stop every later worker."""
        try:
            there = replace(context, path=self._place.where(context.path))
            await self._load(peer, there.args(), context.name)
        except SandboxError:
            self.contexts.remove(context)
            raise

    async def _load(self, peer: Peer, args: dict[str, JSON], name: str) -> None:
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                await peer.call("load", args)
        except TimeoutError:
            peer.break_off(f"{name} was not loaded within {LOAD_SECONDS:g} s")
            raise SandboxError(f"the worker did not load {name} within {LOAD_SECONDS:g} s") from None
        except CallError as error:
            hint = f"; memory_limit is {self._memory_limit:,} bytes" if error.kind == "MemoryError" and self._memory_limit else ""
            raise SandboxError(f"{name} could not be loaded: {error.kind}: {error}{hint}") from error
        except PeerLost as error:
            raise SandboxError(f"the worker was lost while it loaded {name}: {error}") from error

    async def close(self) -> None:
        """Kill the worker with everything below it."""
        worker = self._worker
        self._peer = self._worker = self._running = None
        if self._ticket is not None:
            self._ticket.shut_doors()
        doors, self._doors = self._doors, []
        for door in doors:
            door.lose("the REPL is over")
        if worker is not None:
            await worker.kill()

    async def load(self, context: Loaded) -> None:
        """Add a context, for this worker and its successors. Raises SandboxError."""
        self.contexts.append(context)
        peer = self._peer
        if _is_there(peer):
            try:
                await self._load_context(peer, context)
            except SandboxError:
                if _is_there(peer) or not await self._lost_with_its_place():
                    raise
                self.contexts.append(context)  # the next worker has it

    async def begin_run(self, *, cell_timeout: float, on_output: Callable[[str], None], history: list[dict[str, JSON]]) -> None:
        """A run begins, with a fresh ``answer`` in the namespace.

        Args:
            cell_timeout: seconds of each of its cells.
            on_output: gets pieces of their output as they come.
            history: what ``history`` lists.
        """
        self._cell_timeout, self._show, self._history = cell_timeout, on_output, history
        peer, worker = self._peer, self._worker
        if worker is None or not _is_there(peer):
            return
        loading = peer.start_call("load", {"history": history})
        try:
            await _arrived(worker)
            async with asyncio.timeout(IDLE_SECONDS):
                await loading
        except (TimeoutError, CallError, PeerLost):  # an earlier cell left it so: the next cell gets a new one, and says what was lost
            await worker.kill()
            peer.lose("it did not answer between two questions")
        finally:
            peer.forget(loading)

    def show(self, on_output: Callable[[str], None]) -> None:
        """From now on, pass pieces of a running cell's output on."""
        self._show = on_output

    def stop_serving(self) -> None:
        """A run is over: refuse calls until the next one."""
        self._show = self._serving = None
        for peer in self._peers():
            peer.stop_serving()

    async def end_cell(self) -> None:
        """Stop the cell that a cancelled ``run_cell`` left running, so that the next one finds the worker free."""
        peer, worker, request = self._peer, self._worker, self._running
        self._running = None
        if request is None or peer is None or worker is None:
            return
        try:
            await self._stop(request, "the run is over", peer, worker)
        except PeerLost:
            pass  # it ended by itself meanwhile
        finally:
            peer.forget(request)

    def serve(self, task_group: TaskGroup, answer: Answer) -> None:
        """Answer the functions that cells call; see ``Peer.serve``."""
        self._serving = (task_group, answer)
        for peer in self._peers():
            peer.serve(task_group, self._counted)

    def _peers(self) -> list[Peer]:
        self._doors = [door for door in self._doors if door.lost is None]
        return self._doors if self._peer is None else [self._peer, *self._doors]

    def _open_door(self, peer: Peer) -> None:
        self._doors.append(peer)
        if self._serving is not None:
            peer.serve(self._serving[0], self._counted)

    async def _counted(self, method: str, args: dict[str, Any]) -> JSON:
        if self._serving is None:  # it arrived in the turn of the loop in which the run ended
            raise CallError("RuntimeError", f"{method}: no run is active")
        answer, clock = self._serving[1], self._clock
        if clock is not None:
            clock.pause()
        try:
            return await answer(method, args)
        finally:
            if clock is not None:
                clock.resume()

    # -- cells ------------------------------------------------------------------------------------------------------

    async def run_cell(self, code: str, number: int) -> CellResult:
        """Run one cell to its end, or stop it: interrupt, grace, kill.

        A worker that ends in the cell, or ended since the last one, is replaced; ``lost`` names the variables that went with it.

        Raises:
            SandboxError: no worker could be started.

        Cancelled, it leaves the cell running: ``end_cell`` stops it, ``close`` kills it.
        """
        await self.start()
        lost, self._lost_between = self._lost_between, None
        assert self._peer is not None
        assert self._worker is not None
        result = await self._run_cell(code, number, self._peer, self._worker)
        return result if lost is None else replace(result, lost=lost + (result.lost or ()))

    async def _run_cell(self, code: str, number: int, peer: Peer, worker: Worker) -> CellResult:
        # close() may take self._peer and self._worker away while the cell runs.
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._streamed = Streamed()
        clock = self._clock = CellClock(self._cell_timeout)
        stopped: Stop | None = None
        try:
            request = self._running = peer.start_call("exec", {"code": code, "cell": number, "output_chars": OUTPUT_CHARS})
        except PeerLost as error:  # it went in the moment in which the cell was to begin
            clock.stop()
            self._clock = None
            return await self._lost(error, None, loop.time() - began, peer, worker)
        try:
            stopped = await self._watch(request, clock, worker)
            if stopped is not None:
                await self._stop(request, self._why(stopped), peer, worker)
            report = request.result()
        except CallError as error:
            self._settled(peer, request)
            return CellResult(error=f"{error.kind}: {error}"[:ERROR_CHARS], stopped=stopped, duration_s=loop.time() - began)
        except PeerLost as error:
            self._settled(peer, request)
            return await self._lost(error, stopped, loop.time() - began, peer, worker)
        finally:
            clock.stop()
            self._clock = None
        self._settled(peer, request)
        result = read_report(report, self.variables)
        self.variables = dict(result.variables)
        return replace(result, stopped=stopped, duration_s=loop.time() - began)

    def _settled(self, peer: Peer, request: asyncio.Future[JSON]) -> None:
        self._running = None
        peer.forget(request)

    def _why(self, stopped: Stop) -> str:
        return f"cell_timeout of {self._cell_timeout:g} s" if stopped == "timeout" else "a limit of the run"

    def end_cell_soon(self) -> None:
        """A limit of the run was reached: the running cell gets errors from now on, and little time."""
        if self._clock is not None:
            self._clock.shorten(LIMIT_SECONDS, "limit")

    async def _watch(self, request: asyncio.Future[JSON], clock: CellClock, worker: Worker) -> Stop | None:
        """Wait for the cell's end or the clock's. A cell that waits for calls and burns CPU all the while is stopped too."""
        allowed = self._cell_timeout * ((os.cpu_count() or 1) + 1)
        at_start: float | None = None
        while True:
            await asyncio.wait({request, clock.expired}, timeout=max(1.0, self._cell_timeout), return_when=asyncio.FIRST_COMPLETED)
            if request.done():
                return None
            if clock.expired.done():
                return clock.expired.result()
            used = await worker.cpu_seconds()
            at_start = used if at_start is None else at_start
            if used - at_start > allowed:
                clock.expire()

    async def _stop(self, request: asyncio.Future[JSON], why: str, peer: Peer, worker: Worker) -> None:
        text = f"the cell was stopped: {why}"
        for asking in {peer, *self._doors}:
            asking.cancel_calls()
        if not request.done():
            interrupt = peer.start_call("interrupt", {"reason": text})
            try:
                await _arrived(worker)
            finally:
                peer.forget(interrupt)
        deadline = asyncio.get_running_loop().time() + GRACE_SECONDS
        while not request.done() and (left := deadline - asyncio.get_running_loop().time()) > 0:
            interrupt = peer.start_call("interrupt", {"reason": text})
            await asyncio.wait({request}, timeout=min(left, INTERRUPT_SECONDS))
            peer.forget(interrupt)
        if not request.done():
            await worker.kill()
            await asyncio.wait({request}, timeout=EXIT_SECONDS)
            if not request.done():
                peer.lose("the worker was killed")

    def _on_note(self, message: dict[str, Any]) -> None:
        piece = self._streamed.take(message)
        if piece and self._show is not None:
            self._show(piece)

    async def _lost(self, error: PeerLost, stopped: Stop | None, duration: float, peer: Peer, worker: Worker) -> CellResult:
        """The worker ended in the cell."""
        await asyncio.wait({worker.exited}, timeout=EXIT_SECONDS)
        lives = not worker.exited.done()
        if lives:
            await worker.kill()  # it broke the wire
        how = worker.exited.result() if worker.exited.done() else Exit(status=None)
        why = str(error) if lives else f"{how} ({error})" if how.status == LOST_CONNECTION else str(how)
        if self._peer is peer:
            self._peer = None
        lost, self.variables = tuple(self.variables), {}
        output = f"{self._streamed}{how.output[:OUTPUT_CHARS]}"
        if stopped is None:
            reason = f"the REPL ended in this cell: {why}"
        else:
            reason = f"the cell was ended by force: {self._why(stopped)}, and it did not react to the interrupt"
        return CellResult(
            output=output, output_chars=len(output), error=reason, stopped=stopped or "exited", lost=lost, duration_s=duration
        )


def _is_there(peer: Peer | None) -> TypeGuard[Peer]:
    return peer is not None and peer.lost is None


async def _arrived(worker: Worker) -> None:
    """Wait until what was sent to a worker is there, by however long a road: what is asked about it afterwards comes after that."""
    await worker.cpu_seconds()
