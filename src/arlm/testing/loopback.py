"""A sandbox on this machine: the broker's archive as a local process, reached by HTTP. For tests and documents, and a model of an adapter.

It shows what an adapter has to say of a cloud: how a sandbox is made, how files get there, how a program is started, how it is reached,
whether it is still there, how it ends. It protects no more than ``process`` does: its code runs on this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import ClassVar

from ..environments.sandbox import Reach, Sandbox, SandboxEnvironment
from ..errors import SandboxError
from ..shortages import told as told_of

START_SECONDS = 30.0
STOP_SECONDS = 10.0  # for a broker that was told to end
REMOVE_SECONDS = 5.0  # for a folder, in which those who are ending may still write


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
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)  # in a thread, it might come after the folder's removal
            with Path(path).open("wb") as file:  # noqa: ASYNC230 - a cancel would lose a file that a thread has opened
                async for piece in data:
                    await asyncio.to_thread(file.write, piece)
        except OSError as error:
            raise SandboxError(f"{path} could not be written: {told_of(error)}") from error

    async def start(self, archive: str, told: bytes) -> Reach:
        """See Sandbox."""
        try:
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
        except OSError as error:
            raise SandboxError(f"the broker could not be started with {self._python}: {told_of(error)}") from error
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
        if self.process is not None:
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    self._signal(signal.SIGTERM)
                    await self.process.wait()
            except TimeoutError:
                self._signal(signal.SIGKILL)
                await self.process.wait()
        await asyncio.to_thread(_remove, self.folder)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


def _remove(folder: str) -> None:
    """Remove a folder. Those who lost their broker need a moment to end, and may write in it meanwhile."""
    deadline = time.monotonic() + REMOVE_SECONDS
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder) or time.monotonic() > deadline:
            return
        time.sleep(0.01)
