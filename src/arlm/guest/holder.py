"""A holder: a process that loads large contexts once. Workers forked from it share its memory, so that the second costs no second copy.

One without files is a nursery: where the supervisor relays what workers say, a fork of it would have that in its memory; so workers, and
the holders of files, are forked from a process that it forked before.

It runs no model code: it reads files that the host wrote, and forks. A worker is forked twice, so that it becomes the supervisor's child as
any other (``become_subreaper``): the process in between tells the number, and ends. Whatever the supervisor then sees of the worker, it has
been told of it before. Linux only.

    supervisor asks   {worker, ...}, with the worker's descriptors       as the host's ``spawn``
    holder says       {ready: bytes} or {error: {type, message}}         once, when the contexts are loaded
                      {worker, pid} or {worker, failed: reason}
"""

from __future__ import annotations

import collections
import contextlib
import gc
import json
import os
import resource
import signal
import socket
from typing import Any, Callable, Deque, Dict, Iterator, List, Optional, Tuple

from . import processes, values, worker
from .children import Child

MESSAGE_BYTES = 128 * 1024  # of one request; a socket pair takes no larger one
leave = os._exit
Held = Dict[Tuple[str, str], Any]  # by path and kind


class Holder:
    """The supervisor's end of a holder.

    Args:
        sock: connected to it.
        started: called with a worker and its process number.
        failed: called with a worker that was not forked, and why.
        loaded: called with the outcome of loading.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        started: Callable[[Child, int], None],
        failed: Callable[[Child, str], None],
        loaded: Callable[[Dict[str, Any]], None],
    ) -> None:
        self.sock = sock
        sock.setblocking(False)
        self._started, self._failed, self._loaded = started, failed, loaded
        self._queue: Deque[Tuple[Child, Dict[str, Any]]] = collections.deque()
        self._current: Optional[Child] = None
        self._has_loaded = False

    def fork(self, child: Child, spec: Dict[str, Any]) -> None:
        """Have a worker forked, after those asked for before."""
        self._queue.append((child, spec))
        self._next()

    def hear(self) -> bool:
        """Take what the holder has said; False when it has gone."""
        while True:
            try:
                data = self.sock.recv(MESSAGE_BYTES)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            self._take(json.loads(data))

    def _take(self, message: Dict[str, Any]) -> None:
        if "worker" not in message:
            self._has_loaded = True
            self._loaded(message)
            return
        child, self._current = self._current, None
        if child is None or child.name != message["worker"]:
            self._current = child
        elif "pid" in message:
            self._started(child, message["pid"])
        else:
            self._failed(child, message["failed"])
        self._next()

    def _next(self) -> None:
        while self._current is None and self._queue:
            child, spec = self._queue.popleft()
            if child.doomed:
                self._failed(child, "it was killed before it was started")
                continue
            try:
                self._ask(child, spec)
                self._current = child
            except OSError as error:
                self._failed(child, str(error))

    def _ask(self, child: Child, spec: Dict[str, Any]) -> None:
        output, theirs = child.open()
        if child.channel is not None:
            theirs, child.channel = child.channel, None
        try:
            numbers = [*output] if theirs is None else [*output, theirs.fileno()]
            socket.send_fds(self.sock, [json.dumps(spec).encode()], numbers)
        finally:
            os.close(output[1])
            if theirs is not None:
                theirs.close()

    def gone(self, reason: str) -> None:
        """The holder has ended: what it was asked for will not be."""
        waiting = [child for child, _ in self._queue]
        if self._current is not None:
            waiting.insert(0, self._current)
        self._queue.clear()
        self._current = None
        self.sock.close()
        if not self._has_loaded:
            self._loaded({"error": {"type": "OSError", "message": reason}})
        for child in waiting:
            self._failed(child, reason)


def main(files: List[Tuple[str, str]], memory_limit: Optional[int], sock: socket.socket, output: int, supervisor: int) -> None:
    """Load the files (path, kind), then fork workers until the supervisor's end is closed; ends with the process.

    Args:
        memory_limit: bytes that loading may map, or None.
        sock: connected to the supervisor.
        output: where last words go.
        supervisor: the process that forked this one.
    """
    status = 1
    try:
        processes.let_go({sock.fileno(), output})
        processes.die_with_parent(supervisor)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _serve(files, memory_limit, sock, supervisor)
        status = 0
    except BaseException as error:
        os.write(output, f"the holder ended: {type(error).__name__}: {error}\n".encode("utf-8", "replace"))
    finally:
        leave(status)


def _serve(files: List[Tuple[str, str]], memory_limit: Optional[int], sock: socket.socket, supervisor: int) -> None:
    bare = processes.mapped_bytes()
    try:
        with _limited(memory_limit):
            held: Held = {(path, kind): values.load(path, kind) for path, kind in files}
    except Exception as error:
        _tell(sock, error={"type": type(error).__name__, "message": str(error)[:2000]})
        return
    gc.collect()
    gc.freeze()
    taken = processes.mapped_bytes() - bare
    _tell(sock, ready=taken)
    while True:
        data, numbers, _, _ = socket.recv_fds(sock, MESSAGE_BYTES, 3)
        if not data:
            return
        _fork({**json.loads(data), "held_bytes": taken}, numbers, sock, supervisor, held)


@contextlib.contextmanager
def _limited(limit: Optional[int]) -> Iterator[None]:
    """Cap the address space in the block at ``limit`` bytes above what is mapped now."""
    if limit is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = processes.mapped_bytes() + limit
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _fork(spec: Dict[str, Any], numbers: List[int], sock: socket.socket, supervisor: int, held: Held) -> None:
    try:
        between = os.fork()
        if between == 0:
            _fork_worker(spec, numbers, sock, supervisor, held)
        if os.waitpid(between, 0)[1] != 0:
            _tell(sock, worker=spec["worker"], failed="the process that forked it was killed")
    except OSError as error:
        _tell(sock, worker=spec["worker"], failed=str(error))
    finally:
        for number in numbers:
            os.close(number)


def _fork_worker(spec: Dict[str, Any], numbers: List[int], sock: socket.socket, supervisor: int, held: Held) -> None:
    """In the process between; does not return."""
    status = 1
    try:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            processes.await_adoption(parent)
            for number in numbers:
                os.set_inheritable(number, False)
            relay = socket.socket(fileno=numbers[2]) if len(numbers) > 2 else None
            if "files" in spec:
                assert relay is not None
                main([(path, kind) for path, kind in spec["files"]], spec["memory_limit"], relay, numbers[1], supervisor)
            worker.begin(spec, relay, (numbers[0], numbers[1]), supervisor, held)
        _tell(sock, worker=spec["worker"], pid=pid)
        status = 0
    except BaseException as error:
        _tell(sock, worker=spec["worker"], failed=f"{type(error).__name__}: {error}")
        status = 0
    finally:
        leave(status)


def _tell(sock: socket.socket, **message: Any) -> None:
    sock.send(json.dumps(message).encode())
