"""A scripted provider on a loopback socket, in this process or in one of its own. Standard library only.

One port speaks the wires of OpenAI (Chat Completions, Responses; Azure's paths too), Anthropic and Gemini, told apart by path and headers.
``python -m arlm.testing.provider --latency 0.2`` prints its base URL, ready for ``OPENAI_BASE_URL``, as its first line; without the ``/v1``
at its end it fits ``ANTHROPIC_BASE_URL``, ``GOOGLE_GEMINI_BASE_URL`` and ``AZURE_OPENAI_ENDPOINT``. Beside the wires it
serves ``GET /_stats``, ``GET /_requests``, ``POST /_script`` and ``POST /_reset``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from ..guest.processes import open_files
from .provider_board import Board
from .provider_http import Connection
from .provider_script import BUILTINS, FAULTS, Script

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

BACKLOG = 4_096  # connections that may wait to be accepted when a whole batch arrives at once
STOP_S = 5.0  # for the provider's process to end by itself once its stdin is closed


class ScriptedProvider:
    """The provider inside this process: ``async with ScriptedProvider(Script(...)) as provider``.

    Attributes:
        url: the base URL that OpenAI's clients want, ``http://127.0.0.1:PORT/v1``.
        board: counters, last requests and the script that plays.
    """

    def __init__(self, script: Script | None = None, *, port: int = 0) -> None:
        self.board = Board(script or Script())
        self.url = ""
        self._port = port
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self.board), "127.0.0.1", self._port, backlog=BACKLOG)
        self._port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}/v1"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self.board.connections):
            connection.close()
        await self._server.wait_closed()

    @property
    def root(self) -> str:
        """The base URL that the clients of Anthropic, Gemini and Azure want: ``http://127.0.0.1:PORT``."""
        return self.url.removesuffix("/v1")

    async def stats(self) -> dict[str, Any]:
        """The counters."""
        return self.board.stats()

    async def until(self, condition: Callable[[Mapping[str, Any]], bool]) -> None:
        """Wait until the counters meet ``condition``, such as ``lambda stats: stats["in_flight"] == 50``."""
        await self.board.until(condition)

    async def requests(self) -> list[dict[str, Any]]:
        """The last requests that could be parsed, oldest first: wire, path, query, headers, body."""
        return list(self.board.requests)

    async def configure(self, script: Mapping[str, Any]) -> None:
        """Replace the script by the one these fields describe."""
        self.board.configure(script)

    async def reset(self) -> None:
        """Set the counters to zero."""
        self.board.reset()


class ProviderProcess:
    """A provider in its own process; made by :func:`start_provider`.

    Attributes:
        url: the base URL that OpenAI's clients want.
        pid: of its process.
    """

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid

    @property
    def root(self) -> str:
        """The base URL that the clients of Anthropic, Gemini and Azure want: ``http://127.0.0.1:PORT``."""
        return self.url.removesuffix("/v1")

    async def stats(self) -> dict[str, Any]:
        """The counters."""
        stats: dict[str, Any] = await self._call("GET", "/_stats")
        return stats

    async def requests(self) -> list[dict[str, Any]]:
        """The last requests that could be parsed, oldest first: wire, path, query, headers, body."""
        requests: list[dict[str, Any]] = await self._call("GET", "/_requests")
        return requests

    async def configure(self, script: Mapping[str, Any]) -> None:
        """Replace the script by the one these fields describe."""
        await self._call("POST", "/_script", dict(script))

    async def reset(self) -> None:
        """Set the counters to zero."""
        await self._call("POST", "/_reset")

    async def _call(self, method: str, path: str, body: object = None) -> Any:
        address = urlsplit(self.url)
        payload = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            writer.write(f"{method} {path} HTTP/1.1\r\nContent-Length: {len(payload)}\r\n\r\n".encode() + payload)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = int(head.lower().partition("content-length:")[2].partition("\r\n")[0])
            answer = json.loads(await reader.readexactly(length))
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        if not head.startswith("HTTP/1.1 200"):
            raise ValueError(answer["error"]["message"])
        return answer


@contextlib.asynccontextmanager
async def start_provider(script: Mapping[str, Any] | None = None) -> AsyncIterator[ProviderProcess]:
    """Run the provider in its own process; it ends with the block, or with this process.

    Args:
        script: the fields of a Script.
    """
    arguments = ["-m", "arlm.testing.provider", "--exit-with-stdin"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        provider = ProviderProcess((await process.stdout.readline()).decode().strip(), process.pid)
        if not provider.url:
            raise RuntimeError("the scripted provider did not start; its reason is on stderr")
        if script:
            await provider.configure(script)
        yield provider
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def main(arguments: list[str] | None = None) -> None:
    """The command line: serve until killed, or until stdin closes."""
    options = _parser().parse_args(arguments)
    with contextlib.suppress(ValueError, OSError):  # then with as many connections as there may be
        open_files()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m arlm.testing.provider", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--latency", type=float, default=0.0, metavar="S", help="seconds before each reply")
    parser.add_argument("--jitter", type=float, default=0.0, metavar="S", help="seconds added at most")
    parser.add_argument(
        "--error-rate", action="append", default=[], metavar="FAULT=RATE", help=f"may be repeated; faults: {', '.join(FAULTS)}"
    )
    parser.add_argument("--sub", default="echo", choices=sorted(BUILTINS), help="how sub-calls are answered")
    parser.add_argument("--key", help="the only key that is let in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--script", type=Path, help="a JSON file with the fields of a Script; the options above win over it")
    parser.add_argument("--exit-with-stdin", action="store_true", help="end when stdin closes, so that no server outlives its parent")
    return parser


def _script(options: argparse.Namespace) -> Script:
    fields: dict[str, Any] = json.loads(options.script.read_text("utf-8")) if options.script else {}
    for name in ("latency", "jitter", "sub", "key", "seed"):
        if (value := getattr(options, name)) != _parser().get_default(name):
            fields[name] = value
    rates = {fault: float(rate) for fault, _, rate in (pair.partition("=") for pair in options.error_rate)}
    return Script.from_dict({**fields, "error_rates": rates} if rates else fields)


async def _serve(options: argparse.Namespace) -> None:
    async with ScriptedProvider(_script(options), port=options.port) as provider:
        print(provider.url, flush=True)  # noqa: T201 - the address is this program's output
        await (_stdin_closed() if options.exit_with_stdin else asyncio.Event().wait())


async def _stdin_closed() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(1_024):
        pass


if __name__ == "__main__":
    main()
