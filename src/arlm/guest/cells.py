"""Cells: compile, run, stop, and say what happened. One namespace lives in memory for as long as the worker does."""

from __future__ import annotations

import ast
import asyncio
import builtins
import inspect
import linecache
import os
import sys
import traceback
import types
from time import monotonic
from typing import Any, Callable, Dict, List, Optional, Tuple

from .values import is_json

MAX_VARIABLES = 200  # names in a report: enough to say what was lost, few enough to read
ECHO_CHARS = 100_000  # a longer str is echoed by its beginning: its repr would cost a second copy
_HERE = os.path.dirname(os.path.abspath(__file__))
CODE_FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
AGAIN_SECONDS = 0.5  # from one interrupt that was raised to the next: `finally` blocks, asyncio.run's too, have half of the grace


class CellStopped(KeyboardInterrupt):
    """Raised in a cell by the host's interrupt. A KeyboardInterrupt, because asyncio lets those leave its loop and no other."""

    __module__ = "builtins"


class Interrupter:
    """The signal handler that stops a cell. It raises only while user code runs."""

    def __init__(self) -> None:
        self.armed = False
        self.reason = ""
        self._next = 0.0  # when one may be raised again

    def arm(self) -> None:
        """From here on user code runs."""
        self._next = 0.0
        self.armed = True

    def handle(self, _signal: int, _frame: Any) -> None:
        """The handler itself; the signal may come again and again."""
        if self.armed and monotonic() >= self._next:
            self.raised()
            raise CellStopped(self.reason)

    def raised(self) -> None:
        """An interrupt was raised: what it ends has AGAIN_SECONDS for itself."""
        self._next = monotonic() + AGAIN_SECONDS

    def disarm(self) -> None:
        """From here on the handler is silent. One signal may still hit before; it is swallowed."""
        while True:
            try:
                self.armed = False
                return
            except CellStopped:
                continue


class Surroundings:
    """What the cells of a session find around them: here, a process that is all theirs.

    Attributes:
        builtins: what their namespace has as ``__builtins__``.
        label: stands in the file names of cells, where one process runs several sessions; nobody gets to see it.
        hidden: beginnings of the file names whose frames a traceback leaves out.
        on_loop_error: the exception handler of the loop that runs cells with an ``await``; None: asyncio's own, which logs.
    """

    builtins: Any = builtins
    label = ""
    hidden: Tuple[str, ...] = (_HERE,)
    on_loop_error: Optional[Callable[[asyncio.AbstractEventLoop, Dict[str, Any]], object]] = None

    def show(self, text: str) -> None:
        """Print the value of a cell's last expression."""
        print(text)

    def complain(self, text: str) -> None:
        """Print a traceback; called after ``restore``."""
        sys.stderr.write(text)

    def restore(self) -> None:
        """Put ``sys.stdout`` and its like right after a cell, whatever the cell did to them."""


class Session:
    """The namespace of a REPL, and the cells run in it.

    Args:
        functions: names that are put back after every cell.
        interrupter: stops a running cell.
        surroundings: where its cells print, and what else is around them.
    """

    def __init__(self, functions: Dict[str, Any], interrupter: Interrupter, surroundings: Surroundings) -> None:
        self._interrupter = interrupter
        self._around = surroundings
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._files: List[str] = []
        self.module = types.ModuleType("__main__")
        self._own = {"__name__": "__main__", "__builtins__": surroundings.builtins}
        self.namespace: Dict[str, Any] = self.module.__dict__
        self.namespace.update(self._own)
        self.answer: Dict[str, Any] = {}
        self.reserved: Dict[str, Any] = {**functions, "SHOW_VARS": self._make_show_vars(), "history": []}
        self.reset_answer()
        self._builtin_names = frozenset(self.namespace)

    def reset_answer(self) -> None:
        """Give the cell a fresh ``answer``."""
        self.answer = {"content": "", "ready": False}
        self.reserved["answer"] = self.answer
        self.restore()

    def restore(self) -> None:
        """Put the reserved names back."""
        self.namespace.update(self._own)
        self.namespace.update(self.reserved)

    def variables(self) -> Dict[str, str]:
        """The user's names and the names of their types; at most MAX_VARIABLES."""
        names = [
            name
            for name in list(self.namespace)
            if isinstance(name, str) and not name.startswith("_") and name not in self.reserved and name not in self._builtin_names
        ]
        return {name: type(self.namespace[name]).__name__ for name in names[:MAX_VARIABLES] if name in self.namespace}

    def run(self, code: str, number: int) -> Dict[str, Any]:
        """Run a cell; never raises. Returns ``error``, ``ready``, ``content``, ``notes`` and ``variables``."""
        filename = f"<cell {number}{self._around.label}>"
        report: Dict[str, Any] = {"error": None, "ready": False, "content": None, "notes": []}
        try:
            try:
                self._interrupter.arm()
                self._execute(code, filename)
                report["ready"], report["content"] = self._read_answer(report["notes"])
            finally:
                self._interrupter.disarm()
                self._around.restore()
        except SystemExit as error:
            report["notes"].append(_exit_note(error))
        except BaseException as error:
            self._interrupter.disarm()  # again: the interrupt may have struck on the way to the first
            report["error"] = _summary(error)
            if self.answer.get("ready"):
                self.answer["ready"] = False
                report["notes"].append("the answer was not taken, because the cell raised; set it again")
            self._around.complain(self.explain(error))
        self.restore()
        report["variables"] = self.variables()
        return report

    def close(self) -> None:
        """End what the session holds: its event loop with the tasks in it, the source of its cells, the namespace's contents."""
        for filename in self._files:
            linecache.cache.pop(filename, None)
        try:
            self._interrupter.arm()
            if self._loop is not None and not self._loop.is_closed():
                _cancel_all(self._loop)
        except BaseException:
            pass  # a task that went on to its own error, or was interrupted in it
        finally:
            self._interrupter.disarm()
        if self._loop is not None:
            self._loop.close()
            asyncio.set_event_loop(None)
        self.namespace.clear()
        self.reserved.clear()

    def explain(self, error: BaseException) -> str:
        """A traceback as the cells' author can make sense of it: from the first line of a cell on, without functions of ours."""
        try:
            report = traceback.TracebackException.from_exception(error)
            self._trim(report)
            return "".join(report.format())
        except BaseException as broken:  # an exception whose __str__ raises must not end the session
            return f"{type(error).__name__} (its message could not be made: {type(broken).__name__})\n"

    def thread_traceback(self, args: Any) -> None:
        """For ``threading.excepthook``, where all threads are the session's."""
        if not issubclass(args.exc_type, SystemExit):
            name = args.thread.name if args.thread is not None else "?"
            sys.stderr.write(f"Exception in thread {name}:\n{self.explain(args.exc_value or args.exc_type())}")

    def _trim(self, report: Optional[traceback.TracebackException]) -> None:
        if report is None:
            return
        frames = list(report.stack)
        first = next((place for place, frame in enumerate(frames) if frame.filename.startswith("<cell ")), 0)
        frames = [frame for frame in frames[first:] if not frame.filename.startswith(self._around.hidden)]
        for frame in frames:
            frame.line  # noqa: B018 - reads the source, which is known by the file name that is about to be shortened
            frame.filename = self._shown(frame.filename)
        report.stack = traceback.StackSummary.from_list(frames)
        if getattr(report, "filename", None):  # a SyntaxError's
            report.filename = self._shown(report.filename)
        for part in (report.__cause__, report.__context__, *(getattr(report, "exceptions", None) or ())):
            self._trim(part)

    def _shown(self, filename: str) -> str:
        label = self._around.label
        return filename[: -len(label) - 1] + ">" if label and filename.endswith(f"{label}>") else filename

    def _execute(self, code: str, filename: str) -> None:
        lines = code.splitlines(keepends=True)
        linecache.cache[filename] = (len(code), None, lines, filename)
        self._files.append(filename)
        parts = _compile(code, filename)
        if any(part.co_flags & inspect.CO_COROUTINE for part, _ in parts):
            self._run_in_loop(parts)
            return
        for part, echo in parts:
            value = eval(part, self.namespace)
            if echo:
                self._echo(value)

    def _run_in_loop(self, parts: List[Tuple[types.CodeType, bool]]) -> None:
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
            self._loop.set_exception_handler(self._around.on_loop_error)
        loop = self._loop

        async def body() -> None:
            for part, echo in parts:
                value = eval(part, self.namespace)
                if part.co_flags & inspect.CO_COROUTINE:
                    value = await value
                if echo:
                    self._echo(value)

        asyncio.set_event_loop(loop)
        task = loop.create_task(body())
        try:
            loop.run_until_complete(task)
        except BaseException:
            _read_outcome(task)
            if not task.done() or isinstance(sys.exc_info()[1], CellStopped):
                _cancel_all(loop)
            raise

    def _echo(self, value: Any) -> None:
        if isinstance(value, (str, bytes)) and len(value) > ECHO_CHARS:
            self._around.show(f"{value[:ECHO_CHARS]!r}… [{type(value).__name__} of {len(value):,}]")
        elif value is not None:
            self._around.show(repr(value))

    def _read_answer(self, notes: List[str]) -> Tuple[bool, Any]:
        answer = self.namespace.get("answer")
        if not isinstance(answer, dict):
            notes.append('`answer` was replaced and has been restored; set answer["content"] and answer["ready"] instead')
            return False, None
        if answer is not self.answer:
            self.answer.update(answer)
        if not self.answer.get("ready"):
            return False, None
        self.answer["ready"] = False
        return True, _jsonable(self.answer.get("content"))

    def _make_show_vars(self) -> Callable[[], str]:
        def SHOW_VARS() -> str:
            """Names, types and sizes of your variables."""
            rows = []
            for name, kind in self.variables().items():
                try:
                    size = f", {len(self.namespace[name]):,} long"
                except Exception:
                    size = ""
                rows.append(f"{name}: {kind}{size}")
            return "\n".join(rows) if rows else "no variables yet"

        SHOW_VARS.__module__ = "arlm"
        return SHOW_VARS


def _compile(code: str, filename: str) -> List[Tuple[types.CodeType, bool]]:
    tree = compile(code, filename, "exec", ast.PyCF_ONLY_AST | CODE_FLAGS, dont_inherit=True)
    parts = []
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        if tree.body[:-1]:
            head = ast.Module(body=tree.body[:-1], type_ignores=[])
            parts.append((compile(head, filename, "exec", CODE_FLAGS, dont_inherit=True), False))
        parts.append((compile(ast.Expression(body=last.value), filename, "eval", CODE_FLAGS, dont_inherit=True), True))
    elif tree.body:
        parts.append((compile(tree, filename, "exec", CODE_FLAGS, dont_inherit=True), False))
    return parts


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    for _ in tasks:
        try:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            break
        except CellStopped:
            continue  # one task passed the interrupt on, which leaves the loop; the others have not ended yet
    for task in tasks:
        _read_outcome(task)


def _read_outcome(task: asyncio.Task[Any]) -> None:
    """Have asyncio know that nobody will ask for it."""
    if task.done() and not task.cancelled():
        task.exception()


def _summary(error: BaseException) -> str:
    text = "".join(traceback.format_exception_only(type(error), error)).strip()
    lines = [line for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:500]


def _exit_note(error: SystemExit) -> str:
    return f"the cell ended by sys.exit({error.code!r}); the session goes on" if error.code else "the cell ended by sys.exit()"


def _jsonable(value: Any) -> Any:
    try:
        return value if is_json(value) else str(value)
    except RecursionError:
        return str(value)
