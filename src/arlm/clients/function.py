"""A plain async function as a model."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ..errors import ConfigError
from ..types import JSON, Completion, Message
from .base import BaseLM, Prompt, as_messages

LMFunction = Callable[[list[Message]], Awaitable[Completion | str]]


class FunctionLM(BaseLM):
    """Calls ``async def f(messages) -> str | Completion``; its usage key is ``"function/<name>"``.

    Raises:
        ConfigError: ``function`` is not an ``async def``: a blocking function would stop every other call of the run.
    """

    provider = "function"

    def __init__(self, function: LMFunction) -> None:
        if not is_async_callable(function):
            raise ConfigError(
                f"the model {_name(function)!r} is not an async function: write `async def {_name(function)}(messages)`; "
                "put blocking work behind `await asyncio.to_thread(...)`"
            )
        super().__init__(_name(function))
        self._function = function

    def check_sampling(self, sampling: Mapping[str, JSON]) -> None:
        """A function takes none. Raises ConfigError."""
        if sampling:
            raise ConfigError(f"{self.name} is a plain function and takes no sampling options; subclass BaseLM for a model that does")

    async def acompletion(
        self, prompt: Prompt, *, model: str | None = None, sampling: Mapping[str, JSON] | None = None
    ) -> Completion | str:
        """Await the function. It takes neither another model's name nor sampling options."""
        if model is not None:
            raise ConfigError(f"{self.name} is one function and has no model {model!r}; give each model its own function in models=")
        self.check_sampling(sampling or {})
        return await self._function(as_messages(prompt))


def is_async_callable(function: Any) -> bool:
    """Whether calling it gives a coroutine: an ``async def``, a partial of one, or an object whose ``__call__`` is one."""
    while hasattr(function, "func") and callable(function.func):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _name(function: Any) -> str:
    while not hasattr(function, "__name__") and callable(getattr(function, "func", None)):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))
