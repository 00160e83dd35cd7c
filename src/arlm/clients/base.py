"""The contract of a language model: one coroutine method; everything else is inherited."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Self, cast

from ..errors import ConfigError
from ..sync import run_blocking
from ..types import JSON, Completion, Message, TokenUsage, UsageSummary
from .tally import Tally

Prompt = str | Sequence[Message]
time_limit: ContextVar[float | None] = ContextVar(
    "arlm_time_limit", default=None
)  # seconds that a run gives this call; it is the run's to keep


class BaseLM(ABC):
    """A language model: text in, text out.

    A subclass writes one method, :meth:`acompletion`; the rest is inherited. arlm calls it with a list of messages, many calls at once,
    each in a task that may be cancelled. It may return a plain str, and it is called with a str too: both are normalised around it.

    Attributes:
        model: the model's name as given.
        provider: the part before the slash in ``name``; empty for a model that has no provider.
    """

    provider: str = ""
    model: str = ""
    _tally: Tally

    def __new__(cls, *_args: object, **_kwargs: object) -> Self:
        """Give every model its tally, that of a subclass which forgets ``super().__init__()`` too."""
        lm = super().__new__(cls)
        lm._tally = Tally()
        return lm

    def __init__(self, model: str) -> None:
        self.model = model

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        method = cls.acompletion
        if not hasattr(method, "__arlm_recorded__") and not getattr(method, "__isabstractmethod__", False):
            cls.acompletion = _recorded(method)  # type: ignore[assignment,method-assign]

    @abstractmethod
    async def acompletion(
        self, prompt: Prompt, *, model: str | None = None, sampling: Mapping[str, JSON] | None = None
    ) -> Completion | str:
        """Answer one prompt.

        Args:
            prompt: the messages, oldest first; a str stands for one user message.
            model: another model of the same provider for this call alone.
            sampling: options such as ``temperature``; a name that the model does not know is an error.

        Returns:
            A Completion, or the bare text.

        Raises:
            ProviderError: the call failed; the caller retries it by class. Any other exception counts as failed and is not retried.
            ConfigError: nothing was sent.
        """

    @property
    def name(self) -> str:
        """The name under which usage is kept: ``"provider/model"``, or the model alone where there is no provider."""
        model = self.model or type(self).__name__
        return f"{self.provider}/{model}" if self.provider else model

    @property
    def rate_key(self) -> Hashable:
        """Calls of models with equal keys share one rate limit. By default the name; an account or an address belongs to it too."""
        return self.name

    def check_sampling(self, sampling: Mapping[str, JSON]) -> None:
        """Raise ConfigError for an option that this model does not have. Called before a run begins; sends nothing."""
        if sampling and "sampling" not in type(self).acompletion.__arlm_accepts__:  # type: ignore[attr-defined]
            raise ConfigError(_not_taken(self, "sampling"))

    def completion(self, prompt: Prompt, *, model: str | None = None, sampling: Mapping[str, JSON] | None = None) -> Completion:
        """:meth:`acompletion` for synchronous code. Works inside a running loop too; Ctrl-C cancels the call."""

        async def call() -> Completion:
            return cast("Completion", await self.acompletion(prompt, model=model, sampling=sampling))

        completion = run_blocking(call)
        self._tally.remember(completion.usage)
        return completion

    def get_usage_summary(self) -> UsageSummary:
        """What all calls of this object used, by model. Exact under concurrency: every call adds what it returned, once."""
        return self._tally.summary()

    def get_last_usage(self) -> TokenUsage:
        """What this task's last call of this object used; a view for people, all fields None before the first call."""
        return self._tally.last()

    async def aclose(self) -> None:  # noqa: B027 - having nothing to close is the common case
        """Let go of what this object holds. By default nothing: shared clients end with their event loop."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


def as_messages(prompt: Prompt) -> list[Message]:
    """The prompt as a new list of messages; a str becomes one user message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _recorded(method: Callable[..., Awaitable[Completion | str]]) -> Callable[..., Awaitable[Completion]]:
    """Wrap one class's ``acompletion``: normalise what goes in and comes out, and count it.

    Only the outermost class counts: a wrapper reached through ``super().acompletion()`` is not the one that the type resolves to.
    """
    accepted = _accepted_keywords(method)

    @functools.wraps(method)
    async def acompletion(
        self: BaseLM, prompt: Prompt, *, model: str | None = None, sampling: Mapping[str, JSON] | None = None
    ) -> Completion:
        keywords = {"model": model, "sampling": sampling}
        for name in keywords.keys() - accepted:
            if keywords.pop(name):
                raise ConfigError(_not_taken(self, name))
        if type(self).acompletion is not acompletion:
            return _as_completion(self, model, await _awaited(self, method(self, prompt, **keywords)))
        with self._tally.call(model_name(self, model)) as call:
            completion = _as_completion(self, model, await _awaited(self, method(self, as_messages(prompt), **keywords)))
            call.answered(completion)
            return completion

    acompletion.__arlm_recorded__ = True  # type: ignore[attr-defined]
    acompletion.__arlm_accepts__ = accepted  # type: ignore[attr-defined]
    return acompletion


def _not_taken(lm: BaseLM, name: str) -> str:
    return f"{type(lm).__name__}.acompletion() does not take {name}=; add it to the method's signature"


def _accepted_keywords(method: Callable[..., object]) -> frozenset[str]:
    parameters = inspect.signature(method).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return frozenset({"model", "sampling"})
    return frozenset(parameters) & {"model", "sampling"}


async def _awaited(lm: BaseLM, result: Awaitable[Completion | str]) -> Completion | str:
    if not inspect.isawaitable(result):
        raise ConfigError(f"{type(lm).__name__}.acompletion() must be an `async def`: a blocking one would stop every other call")
    return await result


def _as_completion(lm: BaseLM, model: str | None, result: Completion | str) -> Completion:
    match result:
        case Completion():
            return result if result.model else replace(result, model=model_name(lm, model))
        case str():
            return Completion(text=str(result), model=model_name(lm, model))
    raise ConfigError(f"{type(lm).__name__}.acompletion() returned {type(result).__name__}; it must return a Completion or a str")


def model_name(lm: BaseLM, model: str | None) -> str:
    """The usage key of one call: the object's name, or that of the model it was asked to use instead."""
    if not model:
        return lm.name
    return model if not lm.provider or model.startswith(f"{lm.provider}/") else f"{lm.provider}/{model}"
