"""A sandbox on this machine: the broker's archive as a local process, reached by HTTP. For tests and documents, and a model of an adapter.

It shows what an adapter has to say of a cloud: how a sandbox is made, how files get there, how a program is started, how it is reached,
whether it is still there, how it ends. It protects no more than ``process`` does: its code runs on this machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import ClassVar

from ..environments.brokered import Sandbox
from ..environments.sandbox import Reach, SandboxEnvironment
from ..errors import SandboxError

START_SECONDS = 30.0


class LoopbackREPL(SandboxEnvironment):
    """Each place is a folder with a process in it.

    Args:
        python: the interpreter of the sandbox; 3.10 or later.
        reach: the URL under which a gateway has the one of a broker; None: without a gateway.
        network: leave sockets open to cells.
        idle_seconds: see SandboxEnvironment.

    Attributes:
        made: every sandbox that was made, in order.
    """

    name: ClassVar[str] = "loopback"
    own_image = False

    def __init__(
        self,
        *,
        python: str = sys.executable,
        reach: Callable[[str], str] | None = None,
        network: bool = False,
        idle_seconds: float = 120.0,
    ) -> None:
        self.python = python
        self.network = network
        self.idle_seconds = idle_seconds
        self.made: list[LoopbackSandbox] = []
        self._reach = reach

    async def create(self) -> Sandbox:
        """See SandboxEnvironment."""
        sandbox = LoopbackSandbox(self.python, self._reach)
        self.made.append(sandbox)
        return sandbox


class LoopbackSandbox(Sandbox):
    """One of them.

    Attributes:
        process: the broker's, once it is started.
    """

    def __init__(self, python: str, reach: Callable[[str], str] | None) -> None:
        self.folder = tempfile.mkdtemp(prefix="arlm-loopback-")
        self.process: asyncio.subprocess.Process | None = None
        self._python = python
        self._reach = reach

    async def upload(self, path: str, data: AsyncIterator[bytes]) -> None:
        """See Sandbox."""
        await asyncio.to_thread(os.makedirs, os.path.dirname(path), exist_ok=True)
        with Path(path).open("wb") as file:  # noqa: ASYNC230 - a cancel would lose a file that a thread has opened
            async for piece in data:
                await asyncio.to_thread(file.write, piece)

    async def start(self, archive: str, told: bytes) -> Reach:
        """See Sandbox."""
        self.process = await asyncio.create_subprocess_exec(
            self._python,
            "-I",
            archive,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": os.defpath},
            cwd=self.folder,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(told)
        try:
            async with asyncio.timeout(START_SECONDS):
                port = json.loads(await self.process.stdout.readline())["port"]
        except (TimeoutError, ValueError) as error:
            raise SandboxError(f"the broker did not start with {self._python}; it needs Python 3.10 or later") from error
        url = f"http://127.0.0.1:{port}"
        return Reach(url=url if self._reach is None else self._reach(url), port=port)

    async def is_gone(self) -> str | None:
        """See Sandbox."""
        if self.process is not None and self.process.returncode is not None:
            return f"its broker ended with status {self.process.returncode}"
        return None

    async def destroy(self) -> None:
        """See Sandbox. The supervisor, in a session of its own, ends when the broker does."""
        if self.process is not None and self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            await self.process.wait()
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)
