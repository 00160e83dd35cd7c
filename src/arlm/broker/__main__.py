"""``python3 -I arlm-broker.pyz``: the broker. The first line of its standard input is what it is told, as JSON:

    {"token": the host's, "host": "0.0.0.0", "port": 8080, "idle_seconds": 120, "folder": where the guest is unpacked}

With port 0 it takes a free one. It says ``{"port": …}`` in a line on standard output when it listens, and nothing else there; on standard
error why it cannot run, and then its status is 1. It ends when the host has not been heard of for ``idle_seconds``, or on SIGTERM, and with
it, before it, the supervisor and all workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import signal
import socket
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

import uvicorn

from ..guest.confine import seal
from . import connections
from .app import Broker
from .relay import MAX_ASKED_IN_ALL, Relay
from .streams import CONTEXTS

GUEST = "arlm/guest/"  # in the archive
STOP_SECONDS = 5.0
TOLD_BYTES = 64 * 1024
TOKEN_CHARS = 16  # at least
KEEP_ALIVE_SECONDS = 120  # between two requests: longer than gateways keep a connection (nginx 60, Go 90), so that it is theirs to close
RECORDS = 50  # of faults on standard error, which perhaps nobody reads: a pipe holds 64 KiB, and would stop it then
RECORD_CHARS = 1_000  # of one: the end, which says what it was
VARIABLES = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # some Python builds find their own library by it


@dataclass(frozen=True)
class Told:
    """What the first line says. Raises ValueError when it is something else."""

    token: str
    port: int
    folder: str
    host: str = "127.0.0.1"
    idle_seconds: float = 120.0

    def __post_init__(self) -> None:
        if not isinstance(self.token, str) or len(self.token) < TOKEN_CHARS or not self.token.isascii():
            raise ValueError(f"token must be at least {TOKEN_CHARS} ASCII characters")
        if type(self.port) is not int or not 0 <= self.port < 65536:
            raise ValueError("port must be a whole number from 0 to 65535")
        if not isinstance(self.folder, str) or not os.path.isabs(self.folder):
            raise ValueError("folder must be an absolute path")
        if not isinstance(self.host, str):
            raise ValueError("host must be an address")
        if type(self.idle_seconds) not in (int, float) or not 0 < self.idle_seconds < math.inf:
            raise ValueError("idle_seconds must be a positive number")


def read(line: bytes) -> Told:
    """Read the first line. Raises ValueError; nothing of the line is in its text."""
    try:
        facts = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    names = Told.__dataclass_fields__
    if not isinstance(facts, dict) or not {"token", "port", "folder"} <= facts.keys() <= names.keys():
        raise ValueError(f"it must be an object with token, port and folder, and of others may have only {', '.join(names)}")
    return Told(**facts)


def main() -> None:
    """Run until it is over."""
    try:
        told = read(sys.stdin.buffer.readline(TOLD_BYTES))
    except ValueError as error:
        sys.exit(f"arlm's broker is told on the first line of its standard input what to do, as JSON: {error}")
    handler = logging.StreamHandler()
    handler.addFilter(_Few())
    handler.setFormatter(_Short())
    logging.basicConfig(level=logging.ERROR, handlers=[handler])
    try:
        asyncio.run(serve(told))
    except OSError as error:
        sys.exit(f"arlm's broker cannot run: {error}")


class _Few(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._left = RECORDS

    def filter(self, record: logging.LogRecord) -> bool:
        self._left -= 1
        return self._left >= 0


class _Short(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).encode("ascii", "backslashreplace").decode()[-RECORD_CHARS:]


async def serve(told: Told) -> None:
    """Run a broker as it was told to. Raises OSError when it cannot."""
    sock = listen(told.host, told.port)
    os.makedirs(os.path.join(told.folder, CONTEXTS), exist_ok=True)  # a worker may read later only what was there when it began
    supervisor = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        guest_folder(told.folder),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**VARIABLES, **{name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}},
        cwd="/",
        start_new_session=True,
        limit=1024 * 1024,
    )
    seal()  # the host's token is in this process, and cells may have its user
    most = connections.open_files()
    relay = Relay(supervisor, min(MAX_ASKED_IN_ALL, most // 2))  # so that the host has connections left whoever asks here
    broker = Broker(relay, told.token)
    config = uvicorn.Config(
        broker.app,
        http=connections.limited(most),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    server = _Server(config)
    reading = asyncio.ensure_future(relay.read_supervisor())
    watching = asyncio.ensure_future(_watch(broker, server, told.idle_seconds))
    with contextlib.suppress(OSError):  # nobody wants to know
        print(json.dumps({"port": sock.getsockname()[1]}), flush=True)  # noqa: T201
    try:
        await server.serve(sockets=[sock])
    finally:
        watching.cancel()
        await _end(supervisor)
        reading.cancel()
        await asyncio.wait({reading, watching})


class _Server(uvicorn.Server):
    """Told to end, it returns at once. The original ends the process by the same signal again, before the supervisor has ended."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.close()  # who asks here learns of it, and nobody will answer any more


async def _watch(broker: Broker, server: uvicorn.Server, seconds: float) -> None:
    """End the server when the host is not heard of any more."""
    while (left := broker.heard() + seconds - time.monotonic()) > 0:  # noqa: ASYNC110 - the time moves on with each request
        await asyncio.sleep(left)
    server.should_exit = True


async def _end(supervisor: asyncio.subprocess.Process) -> None:
    assert supervisor.stdin is not None
    supervisor.stdin.close()  # it kills its workers, and ends
    try:
        await asyncio.wait_for(supervisor.wait(), STOP_SECONDS)
    except asyncio.TimeoutError:  # noqa: UP041 - another class on Python 3.10
        supervisor.kill()
        await supervisor.wait()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. The protocol is named, as asyncio switches small packets' delay off only then: 44 ms a request else.

    Raises OSError.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        raise OSError(f"it cannot listen at {host}:{port}: {error.strerror}") from error
    sock.listen(1024)
    return sock


def guest_folder(folder: str) -> str:
    """Where the supervisor's programs are as files: unpacked from this archive, or where they lie."""
    archive = sys.argv[0]
    if not zipfile.is_zipfile(archive):
        return os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "guest")
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder, [name for name in opened.namelist() if name.startswith(GUEST)])
    return os.path.join(folder, GUEST)


if __name__ == "__main__":
    main()
