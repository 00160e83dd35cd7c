"""The supervisor: forks workers, kills them whole, ends with the host. Single-threaded, so that forking is safe.

It speaks frames over its standard input and output with the host that started it (that connection needs no token: it is inherited).

    host asks    spawn {worker, token, dir, address, memory_limit, confine} -> {pid}
                 kill {worker} -> {}               the whole tree is dead when this is answered
                 cpu {worker} -> {seconds}         CPU time of the worker's tree
    host notes   relay {worker, data}              bytes for a worker without an address of its own
                 scratch {folder}                  to be removed here if the host dies before it does so itself
    it notes     exited {worker, status, output}   status as subprocess gives it (negative: a signal); output: printed, not yet read
                 relay {worker, data}
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import sys
import time
from typing import Any, Dict, List, Optional, Set, Tuple

from . import capture, confine, processes, wire, worker
from .files import remove_tree

READ_BYTES = 256 * 1024
leave = os._exit  # the real one: a worker replaces os._exit for its cells
MAX_BACKLOG = 8 * 1024 * 1024  # bytes waiting for a slow host before relayed workers are no longer read
PARENT_CHECK_SECONDS = 0.5  # how often the parent is looked at where the kernel cannot tell of its death
MAX_DESCRIPTORS = os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") > 0 else 65536
MAX_UNSENT = 256 * 1024 * 1024  # bytes that may wait for one relayed worker
FORGET_AT = 64  # folders of runs before those that are gone are looked for
STEP_SECONDS = 0.005  # of collecting and killing in one turn of the loop: others' requests wait no longer for it
PAUSE_SECONDS = (0.002, 0.1)  # the first and the longest pause before looking again for what is to be killed; each is twice the last
BURY_SECONDS = 5.0  # a worker is said to have ended after this time even if what it left cannot be killed (it waits for a disk)
LAST_WORDS = 64 * 1024  # bytes of a dead worker's unread output that are passed on


class Child:
    """A worker as the supervisor sees it."""

    def __init__(self, name: str, pid: int, output: int, relay: Optional[socket.socket]) -> None:
        self.name = name
        self.pid = pid
        self.output = output
        self.relay = relay
        self.unsent = bytearray()
        self.waiting: List[int] = []  # kill requests to answer once it is dead
        self.doomed = False  # to be killed, with all below it


class Supervisor:
    """One host, many workers."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._decoder = wire.Decoder()
        self._outbox = bytearray()
        self._children: Dict[int, Child] = {}
        self._dead: List[Tuple[Child, int, float]] = []  # waited for at this time, with this status; what they left may still live
        self._ended = False  # a child has ended since they were last waited for
        self._hunting = False  # there may be something to kill
        self._pause = PAUSE_SECONDS[0]
        self._by_name: Dict[str, Child] = {}
        self._selector = selectors.DefaultSelector()
        self._parent: Optional[int] = None
        self._watching = False
        self._forget_at = FORGET_AT
        self._scratch: Set[str] = set()  # folders of runs: removed here if the host dies before it does it

    def run(self) -> None:
        """Serve until the host is gone; then leave nothing behind."""
        processes.become_subreaper()
        self._watch_signals()
        for number in {self._reader, self._writer}:
            os.set_blocking(number, False)
        self._selector.register(self._reader, selectors.EVENT_READ, self._read_host)
        if self._reader != self._writer:
            self._selector.register(self._writer, selectors.EVENT_WRITE, self._flush)
        confine.prepare()
        gc.collect()
        gc.freeze()
        try:
            while True:
                self._mind_writes()
                for key, _ in self._selector.select(self._patience()):
                    key.data()
                if self._ended or self._hunting:
                    self._clear_up()
                if self._parent is not None and os.getppid() != self._parent:
                    break
        except (HostGone, OSError, wire.WireError):
            pass
        finally:
            self._end()

    def _patience(self) -> Optional[float]:
        if self._ended:
            return 0.0
        if self._hunting:
            return self._pause
        return PARENT_CHECK_SECONDS if self._parent is not None else None

    # -- the host ---------------------------------------------------------------------------------------------------

    def _read_host(self) -> None:
        self._flush()
        try:
            data = os.read(self._reader, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise HostGone
        for message in self._decoder.feed(data):
            kind = wire.kind(message)
            if kind == "hello":
                self._welcome(message)
            elif kind == "call":
                self._serve(message["id"], message["call"], message["args"])
            elif kind == "note" and message["note"] == "relay":
                self._relay_in(message)
            elif kind == "note" and message["note"] == "scratch":
                self._remember(message["folder"])

    def _welcome(self, message: wire.Message) -> None:
        if message["hello"] != wire.VERSION:
            self._send({"bye": f"the supervisor speaks version {wire.VERSION} of the wire, not {message['hello']}"})
            self._flush()
            raise HostGone
        parent = message.get("parent")
        if parent is not None and parent == os.getppid() and not self._watching:
            self._watching = True  # one process may say hello again for each of its event loops
            self._watch_parent(parent)
        self._send({"hello": wire.VERSION, "pid": os.getpid(), "python": sys.version.split()[0]})

    def _watch_parent(self, parent: int) -> None:
        if hasattr(os, "pidfd_open"):
            try:
                watch = os.pidfd_open(parent)
            except OSError:
                self._parent = parent
            else:
                self._selector.register(watch, selectors.EVENT_READ, _host_gone)
        else:
            self._parent = parent

    def _serve(self, number: int, method: str, args: Dict[str, Any]) -> None:
        try:
            if method == "spawn":
                self._send({"id": number, "ok": {"pid": self._spawn(args)}})
            elif method == "kill":
                self._kill(number, args["worker"])
            elif method == "cpu":
                pids = [pid for pid, child in self._children.items() if child.name == args["worker"]]
                self._send({"id": number, "ok": {"seconds": processes.cpu_seconds(pids)}})
            else:
                raise LookupError(f"unknown method {method!r}")
        except (OSError, LookupError, ValueError) as error:
            self._send({"id": number, "error": {"type": type(error).__name__, "message": str(error)}})

    def _send(self, message: wire.Message) -> None:
        for frame in wire.encode(message):
            self._outbox += frame

    def _flush(self) -> None:
        while self._outbox:
            try:
                sent = os.write(self._writer, self._outbox[:READ_BYTES])
            except BlockingIOError:
                return
            del self._outbox[:sent]

    def _mind_writes(self) -> None:
        """Write what is due; ask to be woken for writing only while something is left; slow hosts stop relayed reads."""
        self._flush()
        left = bool(self._outbox)
        if self._reader == self._writer:
            self._selector.modify(self._reader, selectors.EVENT_READ | (selectors.EVENT_WRITE if left else 0), self._read_host)
        elif left and self._writer not in self._selector.get_map():
            self._selector.register(self._writer, selectors.EVENT_WRITE, self._flush)
        elif not left and self._writer in self._selector.get_map():
            self._selector.unregister(self._writer)
        for child in self._children.values():
            if child.relay is not None:
                self._mind_relay(child)

    # -- workers ----------------------------------------------------------------------------------------------------

    def _spawn(self, args: Dict[str, Any]) -> int:
        name = args["worker"]
        if name in self._by_name:
            raise ValueError(f"there is a worker {name!r} already")
        output = capture.open_pipe()
        ours: Optional[socket.socket] = None
        theirs: Optional[socket.socket] = None
        try:
            if args["address"].get("relay"):
                ours, theirs = socket.socketpair()
                ours.setblocking(False)
            self._flush()
            supervisor = os.getpid()
            pid = os.fork()
        except OSError:
            os.close(output[0])
            if ours is not None:
                ours.close()
            raise
        else:
            if pid == 0:
                self._become_worker(args, theirs, output, supervisor)
        finally:
            os.close(output[1])
            if theirs is not None:
                theirs.close()
        child = Child(name, pid, output[0], ours)
        self._children[pid] = self._by_name[name] = child
        return pid

    def _remember(self, scratch: str) -> None:
        """Keep a run's folder in mind; now and then forget those that are gone."""
        self._scratch.add(scratch)
        if len(self._scratch) > self._forget_at:
            self._scratch = {folder for folder in self._scratch if os.path.isdir(folder)}
            self._forget_at = 2 * len(self._scratch) + FORGET_AT

    def _become_worker(self, args: Dict[str, Any], sock: Optional[socket.socket], output: Any, supervisor: int) -> None:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            self._let_go({*output} | ({sock.fileno()} if sock else set()))
            worker.main(args, sock, output, supervisor)
        except BaseException as error:
            message = f"the worker could not start: {type(error).__name__}: {error}\n"
            os.write(output[1], message.encode("utf-8", "replace"))
        finally:
            leave(status)

    def _let_go(self, keep: Set[int]) -> None:
        """In a worker: close what belongs to the supervisor and to other workers."""
        self._selector.close()
        low = 3
        for number in sorted(number for number in keep if number > 2):
            os.closerange(low, number)
            low = number + 1
        os.closerange(low, MAX_DESCRIPTORS)
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.close(null)

    def _kill(self, number: int, name: str) -> None:
        child = self._by_name.get(name)
        if child is None:
            self._send({"id": number, "ok": {}})
            return
        child.waiting.append(number)
        if self._children.get(child.pid) is not child:
            return  # it has been waited for: only what it left is still hunted
        if not processes.ORPHANS_COME:
            processes.kill_trees([child.pid])
        processes.kill(child.pid)  # first of all: while it lives it keeps the dead below it, when it is gone they can be waited for here
        child.doomed = self._hunting = True

    def _on_signal(self) -> None:
        os.read(self._signals, 4096)
        self._ended = True

    def _clear_up(self) -> None:
        """One bounded step of collecting who ended and killing who is doomed and what dead workers left; more steps follow while needed."""
        self._ended = not self._collect(time.monotonic() + STEP_SECONDS)
        if not self._hunting or self._ended:
            return
        spare = [pid for pid, child in self._children.items() if not child.doomed]
        self._hunting = processes.kill_own(spare, STEP_SECONDS)
        self._pause = min(2 * self._pause, PAUSE_SECONDS[1]) if self._hunting else PAUSE_SECONDS[0]
        late = time.monotonic() - BURY_SECONDS
        over = [dead for dead in self._dead if not self._hunting or dead[2] < late]
        self._dead = [dead for dead in self._dead if dead not in over]
        for child, status, _ in over:
            self._bury(child, status)

    def _collect(self, deadline: float) -> bool:
        """Wait for children that have ended; False when time was up before the last."""
        while time.monotonic() < deadline:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return True
            self._pause = PAUSE_SECONDS[0]
            if pid in self._children:
                self._dead.append((self._children.pop(pid), os.waitstatus_to_exitcode(status), time.monotonic()))
                self._hunting = True
        return False

    def _bury(self, child: Child, status: int) -> None:
        del self._by_name[child.name]
        while self._relay_out(child):
            pass
        self._end_relay(child)
        self._send({"note": "exited", "worker": child.name, "status": status, "output": _last_words(child.output)})
        os.close(child.output)
        for number in child.waiting:
            self._send({"id": number, "ok": {}})

    def _end(self) -> None:
        """The host is gone: kill everything, remove what its runs kept on disk."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not processes.ORPHANS_COME:
            processes.kill_trees(self._children)
        while True:
            self._collect(float("inf"))
            if not processes.kill_own((), float("inf")):
                break
            time.sleep(PAUSE_SECONDS[0])
        for scratch in self._scratch:
            remove_tree(scratch)

    # -- relayed connections ----------------------------------------------------------------------------------------

    def _mind_relay(self, child: Child) -> None:
        assert child.relay is not None
        wanted = 0 if len(self._outbox) > MAX_BACKLOG else selectors.EVENT_READ
        wanted |= selectors.EVENT_WRITE if child.unsent else 0
        known = self._selector.get_map().get(child.relay)
        if known is None and wanted:
            self._selector.register(child.relay, wanted, lambda: self._relay(child))
        elif known is not None and not wanted:
            self._selector.unregister(child.relay)
        elif known is not None and known.events != wanted:
            self._selector.modify(child.relay, wanted, known.data)

    def _relay(self, child: Child) -> None:
        if child.relay is None:
            return  # it was buried by an earlier event of the same round
        try:
            while child.unsent:
                del child.unsent[: child.relay.send(child.unsent[:READ_BYTES])]
        except BlockingIOError:
            pass
        except OSError:
            child.unsent.clear()
        self._relay_out(child)

    def _relay_out(self, child: Child) -> bool:
        """Pass on what a worker has sent, one piece; False when nothing is there."""
        if child.relay is None:
            return False
        try:
            data = child.relay.recv(READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._end_relay(child)
            return False
        self._send({"note": "relay", "worker": child.name, "data": data.decode("latin-1")})
        return True

    def _end_relay(self, child: Child) -> None:
        if child.relay is not None:
            if child.relay in self._selector.get_map():
                self._selector.unregister(child.relay)
            child.relay.close()
            child.relay = None

    def _relay_in(self, message: wire.Message) -> None:
        child = self._by_name.get(message["worker"])
        if child is not None and child.relay is not None:
            child.unsent += message["data"].encode("latin-1")
            if len(child.unsent) > MAX_UNSENT:
                processes.kill(child.pid)  # it does not read; the other workers' memory is not its to fill

    def _watch_signals(self) -> None:
        self._signals, writer = os.pipe()
        os.set_blocking(self._signals, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _on_terminate)
        self._selector.register(self._signals, selectors.EVENT_READ, self._on_signal)


class HostGone(Exception):
    """The host closed its end, or died."""


def _host_gone() -> None:
    raise HostGone


def _on_terminate(*_: Any) -> None:
    raise HostGone


def _last_words(output: int) -> str:
    try:
        return os.read(output, LAST_WORDS).decode("utf-8", "replace")
    except OSError:
        return ""
