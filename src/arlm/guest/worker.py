"""A worker: one REPL. Forked by the supervisor, connected to the host, alive until its session ends.

Main thread: cells. I/O thread (``link``): frames and output. Nothing else runs unless a cell starts it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal.signal makes enums of both handlers, which touches 45 pages
import gc
import os
import queue
import resource
import signal
import socket
import sys
import threading
import warnings
from typing import Any, Callable, Dict, List, Optional, Tuple

from . import bounds, capture, cgroups, confine, processes, stubs, values, wire
from .cells import Interrupter, Session, Surroundings
from .link import LOST_CONNECTION, Calls, Link

ENQUEUE = ".enqueue"  # in a worker's folder, where there is a broker: its URL and a token, a line each, for programs that are no worker
HELLO_SECONDS = 30.0  # a host that does not answer the hello in this time is gone
INTERRUPT = signal.SIGUSR1
DEFAULT_OUTPUT_CHARS = 20_000


def prepare() -> None:
    """What all workers have in common, done once, in the process that forks them: what is called before the fork costs no page after it."""
    os.environ.clear()
    os.environ.update(PATH="/usr/local/bin:/usr/bin:/bin", LANG="C.UTF-8")
    sys.argv = [""]
    warnings.filterwarnings("ignore", "This process .* is multi-threaded, use of fork", DeprecationWarning)  # a worker's thread is ours
    capture.prepare()


def begin(
    spec: Dict[str, Any], sock: Optional[socket.socket], output: Tuple[int, int], supervisor: int, held: Optional[Dict[Any, Any]] = None
) -> None:
    """``main`` in a fresh fork of a process that has descriptors of its own; does not return."""
    try:
        confine.unseal()
        signal.set_wakeup_fd(-1)
        processes.let_go({*output} | ({sock.fileno()} if sock else set()))
        main(spec, sock, output, supervisor, held or {})
    except BaseException as error:
        os.write(output[1], f"the worker could not start: {type(error).__name__}: {error}\n".encode("utf-8", "replace"))
    finally:
        _leave(1)


def main(
    spec: Dict[str, Any], sock: Optional[socket.socket], output: Tuple[int, int], supervisor: int, held: Dict[Tuple[str, str], Any]
) -> None:
    """Run a worker in a freshly forked process; ends with the process.

    Args:
        spec: ``dir`` (the working directory), ``address``, ``token``, ``memory_limit`` (bytes or None), ``confine`` (the arguments of
            ``confine.confine``, or None), ``held_bytes`` (what ``held`` takes).
        sock: a connected socket, or None to connect to ``spec["address"]``.
        output: read and write end of the output pipe.
        supervisor: the parent.
        held: values of files, by path and kind, that need not be loaded any more.
    """
    processes.die_with_parent(supervisor)
    processes.become_subreaper()
    os.setsid()
    _settle_in(spec)
    stdio = capture.Stdio(output[1])
    sock = sock or connect(spec["address"])
    decoder = wire.Decoder()
    hello, rest = _say_hello(sock, decoder, spec["token"])
    if hello.get("enqueue"):
        with open(ENQUEUE, "w", encoding="utf-8", opener=_private) as file:
            file.write("".join(f"{line}\n" for line in hello["enqueue"]))
    group = bounds.prepare(spec)
    if spec.get("confine") is not None:
        confine.confine(**spec["confine"])
    _limit_memory(spec.get("memory_limit"), spec.get("held_bytes", 0))
    Worker(sock, decoder, rest, hello, stdio, output[0], held, group).run()


def connect(address: Dict[str, Any]) -> socket.socket:
    """Connect to ``{"unix": path}`` or ``{"tcp": [host, port]}``."""
    if "unix" in address:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(HELLO_SECONDS)
        sock.connect(address["unix"])
        return sock
    sock = socket.create_connection(tuple(address["tcp"]), timeout=HELLO_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _settle_in(spec: Dict[str, Any]) -> None:
    home = spec["dir"]
    try:
        os.mkdir(home, 0o700)  # and not what is above it: the run that it belonged to may be over, and its folder removed
    except FileExistsError:
        pass
    os.chdir(home)
    os.environ["HOME"] = os.environ["TMPDIR"] = home
    sys.path.insert(0, home)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        _signal.signal(number, _signal.SIG_DFL)
    _signal.signal(signal.SIGINT, _signal.default_int_handler)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _limit_memory(limit: Optional[int], held: int) -> None:
    """Cap the address space at ``limit`` bytes above what the bare worker maps: code, stacks and shared libraries are not the cell's.

    A context counts, whether it is loaded later or held already.
    """
    if limit is not None:
        most = max(0, processes.mapped_bytes() - held) + bounds.THREAD_BYTES + limit
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _say_hello(sock: socket.socket, decoder: wire.Decoder, token: str) -> Tuple[wire.Message, List[wire.Message]]:
    sock.settimeout(HELLO_SECONDS)
    sock.sendall(b"".join(wire.encode({"hello": wire.VERSION, "token": token})))
    messages: List[wire.Message] = []
    while not messages:
        data = sock.recv(64 * 1024)
        if not data:
            os._exit(LOST_CONNECTION)
        messages = decoder.feed(data)
    if messages[0].get("hello") != wire.VERSION:
        os._exit(LOST_CONNECTION)
    return messages[0], messages[1:]


class Requests:
    """Cells and contexts: what the host asks for, done in the order it came, on the thread that calls ``serve``.

    Args:
        link: where calls and answers go.
        capture: where the output is kept.
        session: where the cells run.
        read: gives a context's value for its path and kind.
    """

    def __init__(self, link: Calls, capture: capture.Capture, session: Session, read: Callable[[str, str], Any] = values.load) -> None:
        self._todo: queue.SimpleQueue[Optional[Tuple[int, str, Dict[str, Any]]]] = queue.SimpleQueue()
        self._pid = os.getpid()
        self._link = link
        self._capture = capture
        self._session = session
        self._read = read

    def put(self, number: int, method: str, args: Dict[str, Any]) -> None:
        """One more request; on any thread."""
        self._todo.put((number, method, args))

    def end(self) -> None:
        """No more: ``serve`` returns after what it does now. On any thread."""
        self._todo.put(None)

    def serve(self) -> None:
        """Do what is asked for, until ``end``."""
        while True:
            request = self._todo.get()
            if request is None:
                return
            number, method, args = request
            self._before(method)
            try:
                if method == "exec":
                    self._exec(number, args)
                elif method == "load":
                    self._load(number, args)
                else:
                    raise LookupError(f"unknown method {method!r}")
            except Exception as error:
                self._link.fail(number, error)

    def _exec(self, number: int, args: Dict[str, Any]) -> None:
        self._capture.limit = args.get("output_chars", DEFAULT_OUTPUT_CHARS)
        report = self._session.run(args["code"], args["cell"])
        report["notes"] += self._after_cell()
        if os.getpid() != self._pid:
            _leave(0)  # the cell forked, and this is the child that ran on to the end of the cell

        def finish() -> Dict[str, Any]:
            report["output"], report["output_chars"] = self._link.take_output()
            return report

        self._link.answer(number, finish)

    def _load(self, number: int, args: Dict[str, Any]) -> None:
        """Put a context in place (``name``, ``aliases``; ``path`` and ``kind``, or ``value``), or ``history``; gives a fresh ``answer``."""
        if "name" in args:
            value = args["value"] if "value" in args else self._read(args["path"], args["kind"])
            self._link.loaded[args["name"]] = value
            for name in (args["name"], *args.get("aliases", ())):
                self._session.reserved[name] = value
        if "history" in args:
            self._session.reserved["history"] = args["history"]
        self._session.reset_answer()
        self._after_load()
        self._link.answer(number, lambda: None)

    def _before(self, method: str) -> None:
        """A request is about to be done."""

    def _after_cell(self) -> List[str]:
        """A cell has ended, its report is not sent yet; returns what to add to its notes."""
        return []

    def _after_load(self) -> None:
        """The namespace holds something that will stay."""


class _Process(Surroundings):
    def __init__(self, stdio: capture.Stdio) -> None:
        self._stdio = stdio

    def restore(self) -> None:
        self._stdio.flush()
        self._stdio.restore()


class Worker(Requests):
    """Requests of the host on the main thread; interrupts at once, on the I/O thread."""

    def __init__(
        self,
        sock: socket.socket,
        decoder: wire.Decoder,
        early: List[wire.Message],
        hello: wire.Message,
        stdio: capture.Stdio,
        output: int,
        held: Dict[Tuple[str, str], Any],
        group: Optional[cgroups.Group],
    ) -> None:
        self._held = held
        self._group = group
        self._early = early
        self._stdio = stdio
        self._main_thread = threading.get_ident()
        self._interrupter = Interrupter()
        kept = capture.Capture(DEFAULT_OUTPUT_CHARS)
        link = self._socket_link = Link(sock, decoder, output, kept, self._on_request)
        session = Session(stubs.build(hello["functions"], link), self._interrupter, _Process(stdio))
        super().__init__(link, kept, session, self._take_held)

    def _take_held(self, path: str, kind: str) -> Any:
        """A held value, which is given away once, as a second name must not change the first one's list; else the file's."""
        return self._held.pop((path, kind)) if (path, kind) in self._held else values.load(path, kind)

    def run(self) -> None:
        """Serve until the connection ends; does not return."""
        sys.modules["__main__"] = self._session.module
        threading.excepthook = self._session.thread_traceback
        _signal.signal(INTERRUPT, self._interrupter.handle)
        os.register_at_fork(after_in_child=self._after_fork)
        os._exit = self._exit  # type: ignore[assignment]
        for message in self._early:
            self._on_request(message["id"], message["call"], message["args"])
        self._socket_link.start()
        if self._group is not None:
            self._group.begin_to_enter()
        self.serve()

    def _on_request(self, number: int, method: str, args: Dict[str, Any]) -> None:
        if method == "interrupt":
            self._interrupter.reason = args.get("reason", "")
            signal.pthread_kill(self._main_thread, INTERRUPT)
            self._link.answer(number, lambda: None)
        else:
            self.put(number, method, args)

    def _before(self, method: str) -> None:
        if self._group is not None and method == "exec":
            self._group.wait()

    def _after_cell(self) -> List[str]:
        self._stdio.flush()
        return self._group.remarks() if self._group is not None else []

    def _after_load(self) -> None:
        gc.freeze()

    def _exit(self, status: int) -> None:
        """Stands for ``os._exit`` in cells: what was printed still reaches the host."""
        self._stdio.flush()
        self._socket_link.flush_and_exit(status)

    def _after_fork(self) -> None:
        os._exit = _leave
        self._interrupter.armed = False
        signal.signal(INTERRUPT, signal.SIG_DFL)
        self._socket_link.close_in_child()


_leave = os._exit
