"""The public surface: ``run``, ``run_sync``, ``stream`` and ``RLM``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Unpack

from .clients.base import BaseLM, Prompt, as_messages
from .errors import ConfigError
from .options import RunOptions, resolve
from .running import run_once
from .session import Session, open_session
from .streaming import RunStream, open_stream
from .sync import run_blocking
from .types import JSON, Completion, Result, TokenUsage


async def run(prompt: str, **options: Unpack[RunOptions]) -> Result:
    """Answer a question over a context of any size.

    Args:
        prompt: the question, not empty.
        **options: see ``RunOptions``; an unknown one is an error.

    Returns:
        The answer with what it took.

    Raises:
        ConfigError: an option, name, key or context is wrong; nothing was sent.
        LimitError: a limit ended the run without an answer; ``partial`` has what there is. ``RunTimeout`` is also a TimeoutError.
        ProviderError: the root model failed for good.
        SandboxError: code could not run.

    Cancelled, it leaves no worker, connection, file or LM call behind before the cancellation goes on.
    """
    return await run_once(prompt, resolve(options))


def run_sync(prompt: str, **options: Unpack[RunOptions]) -> Result:
    """``run`` for synchronous code; in a running loop (Jupyter) it uses a loop of its own in a thread. Ctrl-C cancels it."""
    return run_blocking(lambda: run(prompt, **options))


def stream(prompt: str, **options: Unpack[RunOptions]) -> AbstractAsyncContextManager[RunStream]:
    """A run whose events can be iterated: ``async with arlm.stream(...) as run: async for event in run: ...; run.result``.

    Leaving the block, also by break or an error, ends the run there and then.
    """
    resolved = resolve(options)
    return open_stream(lambda emit: run_once(prompt, resolved, listeners=(emit,)))


class RLM(BaseLM):
    """A recursive language model: options that are kept, for any number of runs, also at once. Itself a language model.

    Args:
        **options: see ``RunOptions``; a run may give further ones.

    Raises:
        ConfigError: an option is unknown or wrong.
    """

    provider = "rlm"

    def __init__(self, **options: Unpack[RunOptions]) -> None:
        self._options = resolve(options)
        super().__init__(_name_of(self._options["model"]))

    async def run(self, prompt: str, **options: Unpack[RunOptions]) -> Result:
        """Like ``arlm.run``, with this object's options under those given here."""
        return await run_once(prompt, resolve(options, base=self._options))

    def run_sync(self, prompt: str, **options: Unpack[RunOptions]) -> Result:
        """Like ``arlm.run_sync``."""
        return run_blocking(lambda: self.run(prompt, **options))

    def stream(self, prompt: str, **options: Unpack[RunOptions]) -> AbstractAsyncContextManager[RunStream]:
        """Like ``arlm.stream``."""
        resolved = resolve(options, base=self._options)
        return open_stream(lambda emit: run_once(prompt, resolved, listeners=(emit,)))

    def session(self, **options: Unpack[RunOptions]) -> AbstractAsyncContextManager[Session]:
        """One living REPL for many questions: ``async with rlm.session() as s: await s.run(...); await s.run(...)``. See ``Session``."""
        return open_session(resolve(options, base=self._options))

    async def acompletion(self, prompt: Prompt, *, model: str | None = None, sampling: Mapping[str, JSON] | None = None) -> Completion:
        """Answer the last user message by a run; earlier messages, if any, are its context.

        Args:
            prompt: text, or messages.
            model: another root model for this call.
            sampling: sampling options of the root calls, over this object's own.
        """
        messages = as_messages(prompt)
        if not messages or messages[-1]["role"] != "user":
            raise ConfigError("the last message must be the user's")
        changed = RunOptions(sampling={**self._options["sampling"], **(sampling or {})})
        if model is not None:
            changed["model"] = model
        if len(messages) > 1:
            changed["context"] = [dict(message) for message in messages[:-1]]
        result = await self.run(messages[-1]["content"], **changed)
        total = result.usage.total
        usage = TokenUsage(
            input_tokens=total.input_tokens,
            output_tokens=total.output_tokens,
            cached_tokens=total.cached_tokens,
            cache_write_tokens=total.cache_write_tokens,
            reasoning_tokens=total.reasoning_tokens,
            cost_usd=total.cost_usd,
        )
        return Completion(text=str(result.answer), usage=usage, finish_reason="stop" if result.stop_reason == "answered" else "length")


def _name_of(model: Any) -> str:
    match model:
        case None:
            return "default"
        case str():
            return model
        case BaseLM():
            return model.name
        case _:
            return getattr(model, "__name__", type(model).__name__)
