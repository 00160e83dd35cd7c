"""What a conformance case works with: an open environment with one REPL, and the model functions answered by a script."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from ..context import FOLDER, write_context
from ..environments.base import Loaded
from ..environments.repl import REPL
from ..lifetimes import finish
from ..scratch import open_scratch
from ..server.handler import LMHandler
from ..server.peer import CallError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from ..environments.base import Environment, Place
    from ..types import JSON, CellResult

PATIENCE_SECONDS = 20.0  # how long a case waits for something that takes milliseconds; reached only by a failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An environment under test.

    Attributes:
        name: as the test report shows it.
        environment: makes one, with its options.
        unmet: cases that it cannot meet, each with the reason; a name that is no case is an error.
        alive: whether a process of the place, by its id as the cell sees it, still runs; None where the host cannot look.
    """

    name: str
    environment: Callable[[], Environment]
    unmet: Mapping[str, str] = field(default_factory=dict)
    alive: Callable[[int], bool] | None = None

    def __str__(self) -> str:
        return self.name


class Script:
    """Answers the model functions. A prompt says what becomes of it; every other one is its own reply.

    ``"fail…"`` gives a failed reply, ``"hang…"`` none until cancelled, ``"hold…"`` its own after ``release`` is set.

    Attributes:
        prompts: each prompt asked for, in order of arrival.
        cancelled: the prompts whose answering was cancelled.
        in_flight, most_in_flight: prompts being answered now, and the most at once.
        release: lets held prompts go.
    """

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.cancelled: list[str] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.release = asyncio.Event()
        self._changed = asyncio.Event()

    async def answer(self, method: str, args: dict[str, Any]) -> JSON:
        """What ``REPL.serve`` is given."""
        match method:
            case "llm_query" | "rlm_query":
                return await self._one(args["prompt"], args["model"])
            case "llm_query_batched" | "rlm_query_batched":
                return list(await asyncio.gather(*[self._one(prompt, args["model"]) for prompt in args["prompts"]]))
            case "add":
                return args["left"] + args["right"]
            case "refuse":
                raise CallError(args["kind"], args["message"])
            case _:
                raise CallError("LookupError", f"unknown function {method!r}")

    async def _one(self, prompt: str, model: str | None) -> JSON:
        self.prompts.append(prompt)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.tell()
        try:
            if prompt.startswith("hang"):
                await asyncio.Event().wait()
            if prompt.startswith("hold"):
                await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.append(prompt)
            raise
        finally:
            self.in_flight -= 1
            self.tell()
        if prompt.startswith("fail"):
            return {"failed": f"Error: {prompt}"}
        return {"text": prompt if model is None else f"{model}: {prompt}"}

    def tell(self) -> None:
        """Something changed that ``until`` may wait for."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds of this script. Raises TimeoutError after PATIENCE_SECONDS."""
        with anyio.fail_after(PATIENCE_SECONDS):
            while not condition():
                await self._changed.wait()


def _spec(
    name: str, method: str, *params: list[Any], returns: str = "reply", split: str | None = None, awaitable: bool = False
) -> dict[str, Any]:
    return {
        "name": name,
        "method": method,
        "doc": f"{name}, as the conformance script answers it.",
        "params": [*params],
        "returns": returns,
        "split": split,
        "context": None,
        "awaitable": awaitable,
    }


_PROMPT, _PROMPTS, _MODEL = ["prompt"], ["prompts"], ["model", None]

FUNCTIONS: list[dict[str, Any]] = [
    *(_spec(f"{kind}_query", f"{kind}_query", _PROMPT, _MODEL) for kind in ("llm", "rlm")),
    *(_spec(f"{kind}_query_async", f"{kind}_query", _PROMPT, _MODEL, awaitable=True) for kind in ("llm", "rlm")),
    *(
        _spec(f"{kind}_query_batched", f"{kind}_query_batched", _PROMPTS, _MODEL, returns="replies", split="prompts")
        for kind in ("llm", "rlm")
    ),
    _spec("add", "add", ["left"], ["right"], returns="json"),
    _spec("refuse", "refuse", ["kind"], ["message"], returns="json"),
    _spec("no_such_thing", "no_such_thing", returns="json"),
]


@dataclass(slots=True, kw_only=True)
class Bench:
    """An open place with one REPL in it.

    Attributes:
        script: what answers the model functions.
        repl: the REPL; ``cell`` numbers its cells.
        streamed: the pieces of output that arrived while cells ran.
        contexts: those put in place so far.
    """

    subject: Subject
    handler: LMHandler
    place: Place
    script: Script
    scratch: Path
    tasks: anyio.abc.TaskGroup
    cell_timeout: float
    memory_limit: int | None
    repl: REPL
    streamed: list[str]
    contexts: list[Loaded] = field(default_factory=list)
    _cells: int = 0

    async def cell(self, code: str) -> CellResult:
        """Run a cell."""
        self._cells += 1
        return await self.repl.run_cell(code, self._cells)

    async def out(self, code: str) -> str:
        """Run a cell that must end well; returns its output."""
        result = await self.cell(code)
        assert result.error is None, f"{result.error}\n{result.output}"
        assert result.stopped is None, result.stopped
        return result.output

    @asynccontextmanager
    async def running(self, code: str) -> AsyncIterator[asyncio.Task[CellResult]]:
        """Have a cell running in the block; leaving the block waits for its end, or by an error gives it up."""
        task = asyncio.ensure_future(self.cell(code))
        try:
            yield task
            await task
        finally:
            task.cancel()

    async def until_streamed(self, text: str) -> None:
        """Wait until a running cell has printed this. Raises TimeoutError after PATIENCE_SECONDS."""
        await self.script.until(lambda: text in "".join(self.streamed))

    async def fails(self, code: str, error: str) -> CellResult:
        """Run a cell that must raise, with an error that begins so, and must not be stopped."""
        result = await self.cell(code)
        assert result.stopped is None, result
        assert result.error is not None, result.output
        assert result.error.startswith(error), result.error
        return result

    async def context(self, value: Any) -> None:
        """Put a context in place, as ``context_0`` …, the newest also as ``context``."""
        name = f"context_{len(self.contexts)}"
        folder = self.scratch / FOLDER
        folder.mkdir(exist_ok=True)
        file = await write_context(value, folder / name)
        loaded = Loaded(name=name, aliases=("context",), path=await self.place.put(file), kind=file.kind)
        self.contexts.append(loaded)
        await self.repl.load(loaded)

    def another(self) -> REPL:
        """A second REPL in the same place; whoever asks closes it."""
        return _repl(self.place, self.handler, self.script, self.tasks, self.cell_timeout, self.memory_limit, None)

    async def gone(self, pid: int) -> None:
        """Wait until a process of the place is gone. Raises TimeoutError after PATIENCE_SECONDS."""
        assert self.subject.alive is not None, f"{self.subject} cannot look at processes: declare the case as unmet"
        with anyio.fail_after(PATIENCE_SECONDS):
            while self.subject.alive(pid):  # noqa: ASYNC110 - nobody tells of a process that is not ours
                await asyncio.sleep(0.01)


@asynccontextmanager
async def open_bench(subject: Subject, *, cell_timeout: float = 60.0, memory_limit: int | None = None) -> AsyncIterator[Bench]:
    """Open an environment with a REPL in it; leaving closes both."""
    async with AsyncExitStack() as stack:
        scratch = await stack.enter_async_context(open_scratch())
        environment = subject.environment()
        handler = await stack.enter_async_context(LMHandler(directory=scratch, transport=environment.transport))
        place = await stack.enter_async_context(environment.open(handler, scratch))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        script = Script()
        streamed: list[str] = []

        def on_output(text: str) -> None:
            streamed.append(text)
            script.tell()

        repl = _repl(place, handler, script, tasks, cell_timeout, memory_limit, on_output)
        stack.push_async_callback(finish, repl.close, what="a REPL")
        yield Bench(
            subject=subject,
            handler=handler,
            place=place,
            script=script,
            scratch=scratch,
            tasks=tasks,
            cell_timeout=cell_timeout,
            memory_limit=memory_limit,
            repl=repl,
            streamed=streamed,
        )


def _repl(
    place: Place,
    handler: LMHandler,
    script: Script,
    tasks: anyio.abc.TaskGroup,
    cell_timeout: float,
    memory_limit: int | None,
    on_output: Callable[[str], None] | None,
) -> REPL:
    repl = REPL(
        place, handler, name="bench", functions=FUNCTIONS, cell_timeout=cell_timeout, memory_limit=memory_limit, on_output=on_output
    )
    repl.serve(tasks, script.answer)
    return repl


def alive_here(pid: int) -> bool:
    """Whether a process of this machine runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        if os.path.isdir("/proc/self"):
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
