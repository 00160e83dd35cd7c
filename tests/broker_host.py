"""A broker started from the archive, and a host that speaks to it by hand: raw HTTP, packets, frames."""

import asyncio
import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil

from arlm.broker.streams import COMMANDS, FIRST_DOOR, SUPERVISOR, TOKEN, Incoming, Outgoing, Packet, unpack
from arlm.environments.archive import NAME, archive
from arlm.guest import wire

TOKEN_HOST = "the-token-of-the-host-in-tests"
TOKEN_DOOR = "the-token-of-a-door-in-tests"
END_SECONDS = 20.0
MEASURED = "COVERAGE_PROCESS_CONFIG"


@dataclass
class Program:
    """A broker that runs.

    Attributes:
        process: it.
        url: without a path.
        folder: where it has the guest.
    """

    process: subprocess.Popen[bytes]
    url: str
    folder: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def below(self) -> list[psutil.Process]:
        """The processes that it has started, and theirs."""
        return psutil.Process(self.process.pid).children(recursive=True)


def begin(
    folder: Path, *, python: str = sys.executable, flags: tuple[str, ...] = ("-I",), error: int = subprocess.DEVNULL, measured: bool = False
):
    """The program, which waits to be told what to do. ``measured``: under coverage, if this is, from files instead of the archive."""
    (folder / NAME).write_bytes(archive())
    if MEASURED in os.environ and (python, flags) == (sys.executable, ("-I",)) and measured:
        return subprocess.Popen(
            [python, "-I", "-m", "arlm.broker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=error, cwd=folder
        )
    return subprocess.Popen(
        [python, *flags, str(folder / NAME)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=error, env={}, cwd=folder
    )


def told(folder: Path, **others) -> bytes:
    """The first line."""
    return json.dumps({"token": TOKEN_HOST, "port": 0, "folder": str(folder), **others}).encode() + b"\n"


@contextlib.contextmanager
def run_broker(folder: Path, *, python: str = sys.executable, flags: tuple[str, ...] = ("-I",), **others) -> Iterator[Program]:
    """Have a broker; leaving it ends it, and fails when something of it is left."""
    process = begin(folder, python=python, flags=flags, measured=True)
    left: list[psutil.Process] = []
    try:
        process.stdin.write(told(folder, **others))
        process.stdin.flush()
        port = json.loads(process.stdout.readline())["port"]
        program = Program(process, f"http://127.0.0.1:{port}", folder)
        yield program
        if process.poll() is None:
            left = program.below()
    finally:
        process.terminate()
        assert process.wait(END_SECONDS) is not None
        process.stdin.close()
        process.stdout.close()
    assert gone(left)


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all of them end, in a moment."""
    _, alive = psutil.wait_procs(processes, timeout=END_SECONDS)
    return all(it.status() == psutil.STATUS_ZOMBIE for it in alive)


class Host:
    """The true host of a broker."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str = TOKEN_HOST) -> None:
        self.session = session
        self.url = url
        self.token = token
        self.epoch = ""
        self.incoming = Incoming()
        self.outgoing = Outgoing()
        self._decoders: dict[int, wire.Decoder] = defaultdict(wire.Decoder)
        self._heard: dict[int, deque[wire.Message]] = defaultdict(deque)

    async def ask(self, method: str, path: str, *, token: str | None = None, query=None, **others) -> tuple[int, bytes]:
        """One request: status and body."""
        if isinstance(others.get("data"), bytes):
            others["data"] = io.BytesIO(others["data"])  # aiohttp writes it in pieces, and bytes in one
        headers = {TOKEN: self.token if token is None else token, **others.pop("headers", {})}
        async with self.session.request(method, self.url + path, headers=headers, params=query or {}, **others) as answer:
            return answer.status, await answer.read()

    async def poll(self, wait: float = 0.0, *, after: int | None = None, epoch: str | None = None) -> Packet:
        """What waits, without taking it."""
        query = {
            "epoch": self.epoch if epoch is None else epoch,
            "after": str(self.incoming.after if after is None else after),
            "wait": f"{wait:g}",
        }
        status, body = await self.ask("GET", "/pending", query=query)
        assert status == 200, body
        return unpack(body)

    async def meet(self) -> None:
        """Learn the epoch, and greet the supervisor."""
        self.epoch = (await self.poll()).epoch
        await self.tell(SUPERVISOR, {"hello": wire.VERSION})

    def packet(self) -> Packet:
        """What is to be posted."""
        return Packet(self.epoch, self.incoming.after, *self.outgoing.next())

    async def post(self, packet: Packet) -> Packet:
        """Send one packet."""
        status, body = await self.ask("POST", "/respond", data=packet.pack())
        assert status == 200, body
        return unpack(body)

    async def flush(self) -> None:
        """Send until all is taken."""
        while self.outgoing.size:
            self.outgoing.taken((await self.post(self.packet())).after)

    async def say(self, channel: int, data: bytes) -> None:
        """Send bytes."""
        self.outgoing.put(channel, data)
        await self.flush()

    async def tell(self, channel: int, message: wire.Message) -> None:
        """Send a message of the wire."""
        await self.say(channel, b"".join(wire.encode(message)))

    async def hear(self, channel: int) -> wire.Message:
        """The next message that comes on a channel: of the wire, or a command."""
        while not self._heard[channel]:
            for from_channel, data in self.incoming.take(await self.poll(10.0)):
                new = [json.loads(data)] if from_channel == COMMANDS else self._decoders[from_channel].feed(data)
                self._heard[from_channel].extend(new)
        return self._heard[channel].popleft()

    async def open_door(self, token: str = TOKEN_DOOR, channel: int = FIRST_DOOR) -> None:
        """Let programs there ask."""
        await self.say(COMMANDS, json.dumps({"door": hashlib.sha256(token.encode()).hexdigest(), "channel": channel}).encode())

    async def shut_door(self, token: str = TOKEN_DOOR) -> None:
        """Its token is worth nothing any more."""
        await self.say(COMMANDS, json.dumps({"shut": hashlib.sha256(token.encode()).hexdigest()}).encode())

    async def enqueue(self, asked, token: str = TOKEN_DOOR, **others) -> tuple[int, bytes]:
        """What a program there does."""
        data = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
        return await self.ask("POST", "/enqueue", token=token, data=data, **others)


@contextlib.asynccontextmanager
async def open_host(program: Program) -> AsyncIterator[Host]:
    """Its host, before the first word."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield Host(session, program.url)
        await asyncio.sleep(0)


def call(prompt: str, **others) -> dict:
    """A request to ``/enqueue``."""
    return {"call": "llm_query", "args": {"prompt": prompt}, **others}
