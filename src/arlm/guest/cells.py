"""Cells: compile, run, stop, and say what happened. One namespace lives in memory for as long as the worker does."""

from __future__ import annotations

import ast
import asyncio
import builtins
import inspect
import linecache
import os
import sys
import threading
import traceback
import types
from typing import Any, Callable, Dict, List, Optional, Tuple

from .values import is_json

MAX_VARIABLES = 200  # names in a report: enough to say what was lost, few enough to read
ECHO_CHARS = 100_000  # a longer str is echoed by its beginning: its repr would cost a second copy
_HERE = os.path.dirname(os.path.abspath(__file__))
CODE_FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


class CellStopped(KeyboardInterrupt):
    """Raised in a cell by the host's interrupt. A KeyboardInterrupt, because asyncio lets those leave its loop and no other."""

    __module__ = "builtins"


class Interrupter:
    """The signal handler that stops a cell. It raises only while user code runs."""

    def __init__(self) -> None:
        self.armed = False
        self.reason = ""

    def handle(self, _signal: int, _frame: Any) -> None:
        """The handler itself; the signal may come again and again."""
        if self.armed:
            raise CellStopped(self.reason)

    def disarm(self) -> None:
        """From here on the handler is silent. One signal may still hit before; it is swallowed."""
        while True:
            try:
                self.armed = False
                return
            except CellStopped:
                continue


class Session:
    """The namespace of a REPL, and the cells run in it.

    Args:
        functions: names that are put back after every cell.
        interrupter: stops a running cell.
        restore_streams: puts ``sys.stdout`` and its like right after a cell.
    """

    def __init__(self, functions: Dict[str, Any], interrupter: Interrupter, restore_streams: Callable[[], None]) -> None:
        self._interrupter = interrupter
        self._restore_streams = restore_streams
        threading.excepthook = _print_thread_traceback
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._module = types.ModuleType("__main__")
        self._module.__dict__["__builtins__"] = builtins
        sys.modules["__main__"] = self._module
        self.namespace: Dict[str, Any] = self._module.__dict__
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
        filename = f"<cell {number}>"
        report: Dict[str, Any] = {"error": None, "ready": False, "content": None, "notes": []}
        try:
            try:
                self._interrupter.armed = True
                self._execute(code, filename)
                report["ready"], report["content"] = self._read_answer(report["notes"])
            finally:
                self._interrupter.disarm()
                self._restore_streams()
        except SystemExit as error:
            report["notes"].append(_exit_note(error))
        except BaseException as error:
            report["error"] = _summary(error)
            if self.answer.get("ready"):
                self.answer["ready"] = False
                report["notes"].append("the answer was not taken, because the cell raised; set it again")
            sys.stderr.write(_traceback(error))
        self.restore()
        report["variables"] = self.variables()
        return report

    def _execute(self, code: str, filename: str) -> None:
        lines = code.splitlines(keepends=True)
        linecache.cache[filename] = (len(code), None, lines, filename)
        parts = _compile(code, filename)
        if any(part.co_flags & inspect.CO_COROUTINE for part, _ in parts):
            self._run_in_loop(parts)
            return
        for part, echo in parts:
            value = eval(part, self.namespace)
            if echo:
                _echo(value)

    def _run_in_loop(self, parts: List[Tuple[types.CodeType, bool]]) -> None:
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        loop = self._loop

        async def body() -> None:
            for part, echo in parts:
                value = eval(part, self.namespace)
                if part.co_flags & inspect.CO_COROUTINE:
                    value = await value
                if echo:
                    _echo(value)

        asyncio.set_event_loop(loop)
        task = loop.create_task(body())
        try:
            loop.run_until_complete(task)
        except BaseException:
            if not task.done() or isinstance(sys.exc_info()[1], CellStopped):
                _cancel_all(loop)
            raise

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


def _echo(value: Any) -> None:
    if value is None:
        return
    if isinstance(value, (str, bytes)) and len(value) > ECHO_CHARS:
        print(f"{value[:ECHO_CHARS]!r}… [{type(value).__name__} of {len(value):,}]")
    else:
        print(repr(value))


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))


def _summary(error: BaseException) -> str:
    text = "".join(traceback.format_exception_only(type(error), error)).strip()
    lines = [line for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:500]


def _exit_note(error: SystemExit) -> str:
    return f"the cell ended by sys.exit({error.code!r}); the session goes on" if error.code else "the cell ended by sys.exit()"


def _traceback(error: BaseException) -> str:
    try:
        report = traceback.TracebackException.from_exception(error)
        _hide_our_frames(report)
        return "".join(report.format())
    except BaseException as broken:  # an exception whose __str__ raises must not end the session
        return f"{type(error).__name__} (its message could not be made: {type(broken).__name__})\n"


def _print_thread_traceback(args: Any) -> None:
    if not issubclass(args.exc_type, SystemExit):
        name = args.thread.name if args.thread is not None else "?"
        sys.stderr.write(f"Exception in thread {name}:\n{_traceback(args.exc_value or args.exc_type())}")


def _hide_our_frames(report: Optional[traceback.TracebackException]) -> None:
    """Leave what the cell's author can make sense of: from the first line of a cell on, without functions of ours."""
    if report is None:
        return
    frames = list(report.stack)
    first = next((place for place, frame in enumerate(frames) if frame.filename.startswith("<cell ")), 0)
    report.stack = traceback.StackSummary.from_list([frame for frame in frames[first:] if not frame.filename.startswith(_HERE)])
    for part in (report.__cause__, report.__context__, *(getattr(report, "exceptions", None) or ())):
        _hide_our_frames(part)


def _jsonable(value: Any) -> Any:
    try:
        return value if is_json(value) else str(value)
    except RecursionError:
        return str(value)
