"""A model that plays a script: for tests of arlm and of what is built on it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from ..clients.base import BaseLM, Prompt, as_messages
from ..errors import ConfigError
from ..types import JSON, Completion, Message

Reply = str | Completion
Step = Reply | BaseException | Callable[[list[Message]], Reply | Awaitable[Reply]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedCall:
    """One call that was made.

    Attributes:
        messages: what was sent.
        model: the ``model=`` of the call.
        sampling: the ``sampling=`` of the call.
        is_root: whether the messages began with a system message.
    """

    messages: list[Message]
    model: str | None
    sampling: Mapping[str, JSON] | None
    is_root: bool


class ScriptedLM(BaseLM):
    """Plays ``replies`` one after the other to root calls, and lets ``sub`` answer all others.

    A root call is one whose messages begin with a system message. A step may be a str, a Completion, an exception to raise, or a
    function of the messages, async or not, that returns one of them.

    Attributes:
        calls: every call so far, in the order they began.
        in_flight: calls being answered now.
        max_in_flight: the most at once.

    Args:
        replies: the script.
        sub: one step for every call that is not a root call; without it they take from the script too.
        latency: seconds before each reply.
        model: the name, also the usage key.
    """

    def __init__(
        self, replies: Iterable[Step] = (), *, sub: Step | None = None, latency: float = 0.0, model: str = "scripted/model"
    ) -> None:
        super().__init__(model)
        self._replies = list(replies)
        self._played = 0
        self._sub = sub
        self._latency = latency
        self.calls: list[ScriptedCall] = []
        self.in_flight = 0
        self.max_in_flight = 0

    @property
    def root_calls(self) -> list[ScriptedCall]:
        """The calls whose messages began with a system message."""
        return [call for call in self.calls if call.is_root]

    @property
    def sub_calls(self) -> list[ScriptedCall]:
        """All other calls."""
        return [call for call in self.calls if not call.is_root]

    @property
    def left(self) -> int:
        """Steps of the script that were not played."""
        return len(self._replies) - self._played

    async def acompletion(self, prompt: Prompt, *, model: str | None = None, sampling: Mapping[str, JSON] | None = None) -> Reply:
        """Play the next step.

        Raises:
            ConfigError: the script has run out.
        """
        messages = as_messages(prompt)
        is_root = bool(messages) and messages[0]["role"] == "system"
        self.calls.append(ScriptedCall(messages=messages, model=model, sampling=sampling, is_root=is_root))
        step = self._sub if self._sub is not None and not is_root else self._next(messages)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self._latency)
            return await _play(step, messages)
        finally:
            self.in_flight -= 1

    def _next(self, messages: list[Message]) -> Step:
        if self._played >= len(self._replies):
            last = messages[-1]["content"][:200] if messages else ""
            raise ConfigError(
                f"the script of {self.name} has run out: it has {len(self._replies)} replies and this is call {len(self.calls)}, "
                f"whose last message begins with {last!r}"
            )
        self._played += 1
        return self._replies[self._played - 1]


async def _play(step: Step, messages: list[Message]) -> Reply:
    if isinstance(step, BaseException):
        raise step
    if isinstance(step, (str, Completion)):
        return step
    reply = step(messages)
    return await reply if inspect.isawaitable(reply) else reply
