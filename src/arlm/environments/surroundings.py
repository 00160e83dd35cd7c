"""What a cell finds around it on a thread of the host: streams of its own, in a process whose streams are not its own.

Nothing of the process is changed for it. The cell's namespace has builtins of its own (``print``, ``input``, …), and its ``import`` gives
views of the few modules that would reach the host's streams: the same modules, but for the names listed here. Libraries that the cell
calls see the real ones.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import ctypes
import functools
import inspect
import io
import pprint
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..guest import capture, cells

SLICE_SECONDS = 0.05  # a cell that sleeps looks so often whether it is to stop
STREAMED = {  # functions that print to a stream of the process unless told where, and the parameter that tells
    pprint: {"pprint": "stream", "pp": "stream"},
    traceback: {"print_exc": "file", "print_exception": "file", "print_tb": "file"},
}


class Output:
    """A capture that any thread may write to.

    Args:
        capture: keeps the text.
        on_text: called after a write that the host has not heard of; on the writing thread.

    Attributes:
        closed: set when nobody reads it any more; what is written then is dropped.
    """

    def __init__(self, capture: capture.Capture, on_text: Callable[[], None]) -> None:
        self._capture = capture
        self._on_text = on_text
        self.closed = False
        self._lock = threading.RLock()  # a destructor that prints may run inside a write of the same thread

    def write(self, text: str) -> None:
        """Take text; a lone surrogate, which no model could be sent, becomes its escape."""
        if self.closed:
            return
        if not text.isascii():
            text = text.encode("utf-8", "backslashreplace").decode()
        with self._lock:
            self._capture.add(text)
            waits = not self._capture.full
        if waits:
            self._on_text()

    def progress(self) -> str:
        """See Capture."""
        with self._lock:
            return self._capture.progress()

    def take(self) -> tuple[str, int]:
        """See Capture."""
        with self._lock:
            return self._capture.take()


class Stream(io.TextIOBase):
    """A cell's ``sys.stdout`` or ``sys.stderr``."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, output: Output) -> None:
        self._output = output
        self.buffer = _Buffer(output)

    def write(self, text: str) -> int:
        """Take text."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self._output.write(text)
        return len(text)

    def writable(self) -> bool:
        """It is."""
        return True


class _Buffer(io.RawIOBase):
    def __init__(self, output: Output) -> None:
        self._output = output

    def write(self, data: Any) -> int:
        self._output.write(bytes(data).decode("utf-8", "replace"))
        return len(data)

    def writable(self) -> bool:
        return True


class Interrupter(cells.Interrupter):
    """Stops a cell by an exception that Python raises in its thread, at the next bytecode that runs there."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()  # never held while user code runs
        self._thread: int | None = None

    def arm(self) -> None:
        """From here on user code runs, on this thread."""
        with self._lock:
            self._thread = threading.get_ident()
            super().arm()

    def disarm(self) -> None:
        """User code no longer runs; an exception on its way is called back."""
        while True:
            try:
                with self._lock:
                    self.armed = False
                    if self._thread is not None:
                        _raise_in(self._thread, None)
                return
            except cells.CellStopped:
                continue

    def interrupt(self, reason: str) -> None:
        """Stop the cell, if one runs; from any other thread. May be called again and again."""
        with self._lock:
            if self.armed and self._thread is not None and time.monotonic() >= self._next:
                _raise_in(self._thread, _stopped(reason, self.raised))
                _wake_loops(self._thread)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    set_error = ctypes.pythonapi.PyThreadState_SetAsyncExc
    set_error(ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error))


def _stopped(reason: str, on_raised: Callable[[], None]) -> type[cells.CellStopped]:
    """Python makes the exception itself, from a class and nothing else: so the reason is in the class."""

    def __init__(self: cells.CellStopped) -> None:
        on_raised()
        cells.CellStopped.__init__(self, reason)

    return type("CellStopped", (cells.CellStopped,), {"__init__": __init__, "__module__": "builtins"})


def _wake_loops(thread: int) -> None:
    """Have event loops that the thread waits in come back to Python code, where the exception is raised."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_name == "run_forever":
            loop = frame.f_locals.get("self")
            with contextlib.suppress(AttributeError, RuntimeError):  # no loop, or closed just now
                loop.call_soon_threadsafe(lambda: None)  # type: ignore[union-attr]
        frame = frame.f_back


class Surroundings(cells.Surroundings):
    """Builtins, module views and streams of one session.

    Args:
        output: where its streams write.
        label: what tells this session's cells from those of others; see the base class.
    """

    hidden = (*cells.Surroundings.hidden, str(Path(__file__)))

    def __init__(self, output: Output, label: str) -> None:
        self.label = label
        self._output = output
        self._sys = _view(sys, {"argv": [""]})
        self.restore()
        self._views = {
            "sys": self._sys,
            "time": _view(time, {"sleep": _sleep}),
            "contextlib": _view(contextlib, {f"redirect_{name}": self._redirect(name) for name in ("stdout", "stderr")}),
        }
        for module, functions in STREAMED.items():
            stream = "stderr" if module is traceback else "stdout"
            names = {name: self._streamed(getattr(module, name), parameter, stream) for name, parameter in functions.items()}
            self._views[module.__name__] = _view(module, names)
        own = {
            "print": self._print,
            "input": _no_input,
            "breakpoint": _no_input,
            "help": self._help,
            "exit": _exit,
            "quit": _exit,
            "__import__": self._import,
        }
        self._views["builtins"] = _view(builtins, own)
        self.builtins = {**vars(builtins), **own}

    def show(self, text: str) -> None:
        """See the base class."""
        self._print(text)

    def complain(self, text: str) -> None:
        """See the base class."""
        self._output.write(text)

    def on_loop_error(self, _loop: asyncio.AbstractEventLoop, what: dict[str, Any]) -> None:
        """A task that nobody waits for failed: the cell's output says so, and not the host's log."""
        if not self._output.closed:
            error = what.get("exception")
            trace = traceback.format_exception(error) if isinstance(error, BaseException) else []
            self._output.write("".join([f"{what.get('message')}\n", *trace]))

    def restore(self) -> None:
        """Put the session's ``sys.stdin``, ``stdout`` and ``stderr`` right."""
        for name in ("stdout", "stderr"):
            known = vars(self._sys).get(f"__{name}__")
            stream = known if isinstance(known, Stream) and not known.closed else Stream(self._output)
            setattr(self._sys, name, stream)
            setattr(self._sys, f"__{name}__", stream)
        self._sys.stdin = io.StringIO()  # type: ignore[attr-defined]

    def _print(self, *values: object, sep: str | None = " ", end: str | None = "\n", file: Any = None, flush: bool = False) -> None:
        target = self._sys.stdout if file is None else file
        if target is None:
            return  # as print does when there is no sys.stdout
        if type(target) is Stream and isinstance(sep, str) and isinstance(end, str):
            target.write(sep.join(map(str, values)) + end)  # in one piece: lines of several threads stay whole
        else:
            print(*values, sep=sep, end=end, file=target, flush=flush)

    def _help(self, *request: object) -> None:
        if not request:
            raise EOFError("help() without an argument asks questions, and nobody is there to ask; use help(thing)")
        import pydoc  # only here: it brings a web server along

        pydoc.Helper(io.StringIO(), self._sys.stdout)(*request)

    def _import(self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> types.ModuleType:  # noqa: A002
        module = builtins.__import__(name, globals, locals, fromlist, level)
        return self._views.get(name, module) if level == 0 else module

    def _redirect(self, stream: str) -> Callable[[Any], contextlib.AbstractContextManager[Any]]:
        @contextlib.contextmanager
        def redirect(target: Any) -> Iterator[Any]:
            before = getattr(self._sys, stream)
            setattr(self._sys, stream, target)
            try:
                yield target
            finally:
                setattr(self._sys, stream, before)

        redirect.__name__ = redirect.__qualname__ = f"redirect_{stream}"
        return redirect

    def _streamed(self, function: Callable[..., Any], parameter: str, stream: str) -> Callable[..., Any]:
        """The function, with this session's stream as its default one."""
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if parameter not in signature.bind_partial(*args, **kwargs).arguments:
                kwargs.setdefault(parameter, getattr(self._sys, stream))
            return function(*args, **kwargs)

        return call


def _view(module: types.ModuleType, own: dict[str, Any]) -> types.ModuleType:
    """A module that has ``own`` and, for all else, what ``module`` has. What is assigned to it stays in it."""

    def __getattr__(name: str) -> Any:
        if name == "__all__" and not hasattr(module, "__all__"):
            return [public for public in dir(module) if not public.startswith("_")]
        return getattr(module, name)

    view = types.ModuleType(module.__name__, module.__doc__)
    del view.__spec__, view.__loader__, view.__package__
    vars(view).update(own, __getattr__=__getattr__, __dir__=lambda: dir(module))
    return view


def _sleep(seconds: float) -> None:
    """Suspend execution for a number of seconds."""
    if seconds <= SLICE_SECONDS:
        return time.sleep(seconds)
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, SLICE_SECONDS))
    return None


def _no_input(*_args: object, **_kwargs: object) -> str:
    raise EOFError("nobody is there to ask")


def _exit(code: object = None) -> None:
    raise SystemExit(code)
