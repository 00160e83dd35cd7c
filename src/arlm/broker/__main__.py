"""``python3 -I arlm-broker.pyz``: the broker. The first line of its standard input is what it is told, as JSON:

    {"token": the host's, "host": "0.0.0.0", "port": 8080, "idle_seconds": 120, "folder": where the guest is unpacked}

With port 0 it takes a free one. It says ``{"port": …}`` in a line on standard output when it listens, and nothing else there. It ends
when the host has not been heard of for ``idle_seconds``, or on SIGTERM, and with it the supervisor and all workers.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
import zipfile
from typing import Any

import uvicorn

from .app import Broker
from .relay import Relay

GUEST = "arlm/guest/"  # in the archive
STOP_SECONDS = 5.0
VARIABLES = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


def main() -> None:
    """Run until it is over."""
    told = json.loads(sys.stdin.readline())
    asyncio.run(serve(told))


async def serve(told: dict[str, Any]) -> None:
    """Run a broker as it was told to."""
    sock = listen(told.get("host", "127.0.0.1"), told["port"])
    supervisor = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        guest_folder(told["folder"]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=VARIABLES,
        cwd="/",
        start_new_session=True,
        limit=1024 * 1024,
    )
    relay = Relay(supervisor)
    broker = Broker(relay, told["token"])
    config = uvicorn.Config(
        broker.app,
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=0,
    )
    server = uvicorn.Server(config)
    reading = asyncio.ensure_future(relay.read_supervisor())
    watching = asyncio.ensure_future(_watch(broker, server, float(told.get("idle_seconds", 120))))
    sys.stdout.write(json.dumps({"port": sock.getsockname()[1]}) + "\n")
    sys.stdout.flush()
    try:
        await server.serve(sockets=[sock])
    finally:
        watching.cancel()
        await _end(supervisor)
        reading.cancel()
        await asyncio.wait({reading, watching})


async def _watch(broker: Broker, server: uvicorn.Server, seconds: float) -> None:
    """End the server when the host is not heard of any more."""
    while (left := broker.heard + seconds - time.monotonic()) > 0:  # noqa: ASYNC110 - the time moves on with each request
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
    """A listening socket. The protocol is named, as asyncio switches small packets' delay off only then: 44 ms a request else."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
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
