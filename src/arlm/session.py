"""Sessions: one living REPL for many questions."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from typing import Unpack

from .environments.opening import opening_for
from .errors import ConfigError
from .events import Emit
from .home import Home, find_environment, open_home
from .options import RunOptions, resolve
from .running import run_once
from .streaming import RunStream, open_stream
from .types import Result

OF_THE_SESSION = ("environment", "environment_options", "memory_limit", "tools")  # what the living REPL was opened with


class Session:
    """A REPL that stays between questions: variables, imports, contexts. Made by ``RLM.session``.

    The contexts given are ``context_0``, ``context_1``, …; ``context`` is the newest of them. A question without a context keeps the one
    there is (a question longer than 2,000 characters becomes a context itself). ``history`` lists earlier questions and answers.

    It answers one question at a time. Between questions it costs its worker and nothing else; a worker that dies is replaced, the contexts
    are loaded again, and the model is told which variables were lost. Cancelling a question stops its cell and leaves the session usable.
    The session may be entered in one task and left in another.
    """

    def __init__(self, options: RunOptions, home: Home) -> None:
        self._options = options
        self._home = home
        self._busy = False
        self._closed = False

    async def run(self, prompt: str, **options: Unpack[RunOptions]) -> Result:
        """Ask a question. Options and errors as with ``arlm.run``.

        Raises:
            ConfigError: a question is being answered already, or an option belongs to the session as a whole.
        """
        return await self._run(prompt, self._resolved(options), None)

    def stream(self, prompt: str, **options: Unpack[RunOptions]) -> AbstractAsyncContextManager[RunStream]:
        """Ask a question and iterate its events, as with ``arlm.stream``."""
        resolved = self._resolved(options)
        return open_stream(lambda emit: self._run(prompt, resolved, emit))

    async def _run(self, prompt: str, options: RunOptions, emit: Emit | None) -> Result:
        with self._one_at_a_time():
            return await run_once(prompt, options, listeners=() if emit is None else (emit,), home=self._home)

    def _resolved(self, options: RunOptions) -> RunOptions:
        for name in OF_THE_SESSION:
            if name in options:
                raise ConfigError(f"{name} belongs to the whole session; give it to rlm.session()")
        resolved = resolve(options, base=self._options)
        if "context" not in options and self._home.contexts:
            resolved["context"] = None  # the session's own was loaded with the first question
        return resolved

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        if self._closed:
            raise ConfigError("this session is over: its block was left")
        if self._busy:
            raise ConfigError("this session is answering a question; wait for it, or open another session (an RLM has any number)")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False


@asynccontextmanager
async def open_session(options: RunOptions) -> AsyncIterator[Session]:
    """Open a session. Raises ConfigError, SandboxError. Leaving it kills its worker and removes its files."""
    environment = find_environment(options["environment"], options["environment_options"])
    async with AsyncExitStack() as stack:
        with opening_for(f"session-{secrets.token_hex(6)}", lambda _: None):
            home = await stack.enter_async_context(open_home(environment, options))
        session = Session(options, home)
        try:
            yield session
        finally:
            session._closed = True
