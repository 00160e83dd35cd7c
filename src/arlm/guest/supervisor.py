"""The supervisor: forks workers, kills them whole, ends with the host. Single-threaded, so that forking is safe.

It speaks frames over its standard input and output with the host that started it (that connection needs no token: it is inherited).

    host asks    spawn {worker, token, dir, address, memory_limit, processes, confine, holder} -> {pid}
                 hold {worker, files, memory_limit, holder} -> {bytes}   files: [path, kind] each; others may then be forked from it
                 kill {worker} -> {}               the whole tree is dead when this is answered
                 cpu {worker} -> {seconds}         CPU time of the worker's tree
    host notes   relay {worker, data}              bytes for a worker without an address of its own
                 scratch {folder}                  to be removed here if the host dies before it does so itself
    it notes     exited {worker, status, output, reason}   status as subprocess gives it (negative: a signal); output: printed, not yet
                                                   read; reason: the limit that it exceeded, in words, or nothing
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
from typing import Any, Dict, List, Optional, Tuple

from . import confine, holder, processes, wire, worker
from .bounds import Bounds
from .children import READ_BYTES, Child, Relays
from .files import Folders
from .holder import Holder

PARENT_CHECK_SECONDS = 0.5  # how often the parent is looked at where the kernel cannot tell of its death
STEP_SECONDS = 0.005  # of collecting and killing in one turn of the loop: others' requests wait no longer for it
PAUSE_SECONDS = (0.002, 0.1)  # the first and the longest pause before looking again for what is to be killed; each is twice the last
BURY_SECONDS = 5.0  # a worker is said to have ended after this time even if what it left cannot be killed (it waits for a disk)


class Supervisor:
    """One host, many workers."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._decoder = wire.Decoder()
        self._outbox = bytearray()
        self._children: Dict[int, Child] = {}
        self._holders: Dict[str, Holder] = {}
        self._bounds = Bounds()
        self._dead: List[Tuple[Child, int, float]] = []  # waited for at this time, with this status; what they left may still live
        self._ended = False  # a child has ended since they were last waited for
        self._hunting = False  # there may be something to kill
        self._pause = PAUSE_SECONDS[0]
        self._by_name: Dict[str, Child] = {}
        self._selector = selectors.DefaultSelector()
        self._relays = Relays(self._selector, self._send)
        self._parent: Optional[int] = None
        self._watching = False
        self._scratch = Folders()  # of runs: removed here if the host dies before it does it

    def run(self) -> None:
        """Serve until the host is gone; then leave nothing behind."""
        processes.become_subreaper()
        processes.open_files()
        self._watch_signals()
        for number in {self._reader, self._writer}:
            os.set_blocking(number, False)
        self._selector.register(self._reader, selectors.EVENT_READ, self._read_host)
        if self._reader != self._writer:
            self._selector.register(self._writer, selectors.EVENT_WRITE, self._flush)
        confine.prepare()
        worker.prepare()
        gc.collect()
        gc.freeze()
        try:
            while True:
                self._mind_writes()
                for key, _ in self._selector.select(self._patience()):
                    key.data()
                self._mind_bounds()
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
        waits = [self._bounds.patience(child.bound for child in self._children.values())]
        waits.append(PARENT_CHECK_SECONDS if self._parent is not None else None)
        return min((wait for wait in waits if wait is not None), default=None)

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
                self._scratch.add(message["folder"])

    def _welcome(self, message: wire.Message) -> None:
        if message["hello"] != wire.VERSION:
            self._send({"bye": f"the supervisor speaks version {wire.VERSION} of the wire, not {message['hello']}"})
            self._flush()
            raise HostGone
        if message.get("seal"):
            confine.seal()
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
                self._spawn(number, args)
            elif method == "hold":
                self._hold(number, args)
            elif method == "kill":
                self._kill(number, args["worker"])
            elif method == "cpu":
                child = self._by_name.get(args["worker"])
                pids = [child.pid] if child is not None and child.pid in self._children else []
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
        self._relays.mind(self._children.values(), len(self._outbox))

    # -- workers ----------------------------------------------------------------------------------------------------

    def _spawn(self, number: int, args: Dict[str, Any]) -> None:
        child = self._expect(number, args)
        if args.get("holder") is not None and args["holder"] not in self._holders:
            raise LookupError(f"there is no holder {args['holder']!r}")
        child.bound = self._bounds.expect(args)
        if args.get("holder") is not None:
            self._by_name[child.name] = child
            self._holders[args["holder"]].fork(child, args)
            return
        output, theirs = child.open()
        supervisor = os.getpid()
        try:
            if self._fork(child) == 0:
                self._selector.close()
                worker.begin(args, theirs, output, supervisor)
        finally:
            os.close(output[1])
            if theirs is not None:
                theirs.close()
        self._send({"id": number, "ok": {"pid": child.pid}})

    def _hold(self, number: int, args: Dict[str, Any]) -> None:
        if not processes.ORPHANS_COME:
            raise OSError("a process cannot hand its children over on this system")
        child = self._expect(number, args)
        if args.get("holder") is not None and args["holder"] not in self._holders:
            raise LookupError(f"there is no holder {args['holder']!r}")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if args.get("holder") is not None:
            child.channel = theirs
            self._by_name[child.name] = child
            self._keep_holder(child, ours)
            self._holders[args["holder"]].fork(child, args)
            return
        output, _ = child.open()
        supervisor = os.getpid()
        try:
            if self._fork(child) == 0:
                self._selector.close()
                files = [(path, kind) for path, kind in args["files"]]
                holder.main(files, args["memory_limit"], theirs, output[1], supervisor)
        except OSError:
            ours.close()
            raise
        finally:
            os.close(output[1])
            theirs.close()
        self._keep_holder(child, ours)

    def _keep_holder(self, child: Child, ours: socket.socket) -> None:
        self._holders[child.name] = Holder(
            ours, started=self._started, failed=self._failed, loaded=lambda outcome: self._loaded(child, outcome)
        )
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._hear(child.name))

    def _expect(self, number: int, args: Dict[str, Any]) -> Child:
        if args["worker"] in self._by_name:
            raise ValueError(f"there is a worker {args['worker']!r} already")
        return Child(args["worker"], number, relayed=bool(args.get("address", {}).get("relay")))

    def _fork(self, child: Child) -> int:
        """Fork; 0 in the child. On an error the child's descriptors are closed."""
        self._flush()
        try:
            pid = os.fork()
        except OSError:
            child.close()
            raise
        if pid != 0:
            child.pid = pid
            self._children[pid] = self._by_name[child.name] = child
        return pid

    # -- workers that are forked from a holder ----------------------------------------------------------------------

    def _started(self, child: Child, pid: int) -> None:
        child.pid = pid
        self._children[pid] = child
        if child.name not in self._holders:  # a holder's request is answered when it has loaded
            self._send({"id": child.request, "ok": {"pid": pid}})
        if child.doomed:
            self._doom(child)

    def _failed(self, child: Child, reason: str) -> None:
        self._hunting = True  # it may have been forked without anybody having been told
        del self._by_name[child.name]
        if child.name in self._holders:
            self._selector.unregister(self._holders[child.name].sock)
            self._holders.pop(child.name).sock.close()
        child.close()
        self._send({"id": child.request, "error": {"type": "OSError", "message": reason}})
        for number in child.waiting:
            self._send({"id": number, "ok": {}})

    def _loaded(self, child: Child, outcome: Dict[str, Any]) -> None:
        if "ready" in outcome:
            self._send({"id": child.request, "ok": {"bytes": outcome["ready"]}})
        else:
            self._send({"id": child.request, "error": outcome["error"]})

    def _hear(self, name: str) -> None:
        known = self._holders.get(name)
        if known is not None and not known.hear():
            del self._holders[name]
            self._selector.unregister(known.sock)
            known.gone("the process that held its contexts has ended")

    def _hear_all(self) -> None:
        """Learn of every worker that may be a child of this process by now."""
        for name in list(self._holders):
            self._hear(name)

    def _kill(self, number: int, name: str) -> None:
        child = self._by_name.get(name)
        if child is None:
            self._send({"id": number, "ok": {}})
            return
        child.waiting.append(number)
        if child.pid == 0:
            child.doomed = True  # a holder is about to fork it
        elif self._children.get(child.pid) is child:  # else it has been waited for: only what it left is still hunted
            self._doom(child)

    def _mind_bounds(self) -> None:
        """Look for workers that have more processes than they may; remove the groups of dead ones."""
        for pid in self._bounds.look({pid: child.bound for pid, child in self._children.items() if not child.doomed}):
            self._doom(self._children[pid])
        self._bounds.tidy()

    def _doom(self, child: Child) -> None:
        if child.bound is not None:
            child.bound.kill(child.pid)
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
        self._hunting = processes.kill_own(self._spared, STEP_SECONDS)
        self._pause = min(2 * self._pause, PAUSE_SECONDS[1]) if self._hunting else PAUSE_SECONDS[0]
        late = time.monotonic() - BURY_SECONDS
        over = [dead for dead in self._dead if not self._hunting or dead[2] < late]
        self._dead = [dead for dead in self._dead if dead not in over]
        for child, status, _ in over:
            self._bury(child, status)

    def _spared(self) -> List[int]:
        self._hear_all()
        return [pid for pid, child in self._children.items() if not child.doomed]

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
            if os.WIFSTOPPED(status):
                processes.kill(pid)  # it has asked to be traced by its parent, and has not ended
                continue
            if pid not in self._children:
                self._hear_all()
            if pid in self._children:
                child = self._children.pop(pid)
                if child.bound is not None:
                    child.bound.kill_rest()
                self._dead.append((child, os.waitstatus_to_exitcode(status), time.monotonic()))
                self._hunting = True
        return False

    def _bury(self, child: Child, status: int) -> None:
        del self._by_name[child.name]
        self._relays.end(child)
        self._hear(child.name)
        reason = child.bound.why(status) if child.bound is not None else ""
        self._send({"note": "exited", "worker": child.name, "status": status, "output": child.last_words(), "reason": reason})
        self._bounds.end(child.bound)
        child.close()
        for number in child.waiting:
            self._send({"id": number, "ok": {}})

    def _end(self) -> None:
        """The host is gone: kill everything, remove what its runs kept on disk."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not processes.ORPHANS_COME:
            processes.kill_trees(self._children)
        while True:
            self._collect(float("inf"))
            if not processes.kill_own(tuple, float("inf")):
                break
            time.sleep(PAUSE_SECONDS[0])
        self._bounds.close(child.bound for child in self._by_name.values())
        self._scratch.remove()

    def _relay_in(self, message: wire.Message) -> None:
        child = self._by_name.get(message["worker"])
        if child is not None:
            self._relays.pass_in(child, message["data"].encode("latin-1"))

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
