"""The values that cross arlm's public surface: messages, completions, usage, cell results, results. They know nobody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

JSON = Any  # None | bool | int | float | str | list[JSON] | dict[str, JSON]; Any, because mypy's recursive aliases help nobody here


class Message(TypedDict):
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """What one LM call used. None means the provider did not say, never zero.

    Attributes:
        input_tokens: all input tokens, the cached ones included.
        output_tokens: all output tokens, the reasoning ones included.
        cached_tokens: input tokens read from the provider's prompt cache.
        cache_write_tokens: input tokens written to the provider's prompt cache.
        reasoning_tokens: output tokens spent on hidden reasoning.
        cost_usd: US dollars, from the provider's own figure or the price list.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What one LM call returned.

    Attributes:
        text: the reply's text; may be empty.
        usage: what the call used.
        model: the model as arlm names it, ``"provider/name"``.
        finish_reason: the provider's word in OpenAI's terms: ``"stop"``, ``"length"``, ``"content_filter"``; None if unsaid.
        response_id: the provider's id of the reply, for support requests.
    """

    text: str
    usage: TokenUsage = field(default_factory=TokenUsage)
    model: str = ""
    finish_reason: str | None = None
    response_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUsage:
    """What a run used of one model. Sums; see TokenUsage for the fields.

    ``calls`` counts every request that was sent; ``failed`` and ``cancelled`` are parts of it, and a retry is a call of its own.
    A token sum is None when no call reported it; the cost is None as soon as one answered call's cost is unknown.
    """

    calls: int = 0
    failed: int = 0
    cancelled: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd: float | None = None

    def to_dict(self) -> dict[str, JSON]:
        """The fields as plain JSON types."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSummary:
    """What a run and everything below it used, by model (``"provider/name"``)."""

    models: Mapping[str, ModelUsage] = field(default_factory=dict)

    @property
    def total(self) -> ModelUsage:
        """The sum over all models. Its cost is None when one model's cost is unknown."""
        return sum_usage(self.models.values())

    def to_dict(self) -> dict[str, JSON]:
        """``{"models": {name: {...}}, "total": {...}}`` in plain JSON types."""
        return {"models": {name: usage.to_dict() for name, usage in self.models.items()}, "total": self.total.to_dict()}


def sum_usage(parts: Any) -> ModelUsage:
    """Add up ModelUsage values by their own rules for what is unknown."""
    parts = list(parts)

    def known(name: str) -> int | None:
        values = [value for part in parts if (value := getattr(part, name)) is not None]
        return sum(values) if values else None

    answered = [part for part in parts if part.calls > part.failed + part.cancelled or part.cost_usd is not None]
    costs = [part.cost_usd for part in answered]
    return ModelUsage(
        calls=sum(part.calls for part in parts),
        failed=sum(part.failed for part in parts),
        cancelled=sum(part.cancelled for part in parts),
        input_tokens=known("input_tokens"),
        output_tokens=known("output_tokens"),
        cached_tokens=known("cached_tokens"),
        cache_write_tokens=known("cache_write_tokens"),
        reasoning_tokens=known("reasoning_tokens"),
        cost_usd=None if not costs or None in costs else sum(cost for cost in costs if cost is not None),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """What one cell did.

    Attributes:
        output: what it printed, stdout and stderr in the order written, tracebacks included; head and tail when cut.
        output_chars: the output's true length in characters.
        error: ``"ZeroDivisionError: division by zero"`` when it raised, else None.
        stopped: why the host ended it, else None: ``"timeout"`` (cell_timeout), ``"limit"`` (a limit of the run),
            ``"exited"`` (its process ended by itself or was killed from outside).
        lost: names of variables that went with the worker when it had to be replaced; None when nothing was lost.
        answer_ready: whether the code set ``answer["ready"]``.
        answer: ``answer["content"]`` as JSON, when ready.
        variables: the user's variables after the cell, name to type.
        calls: sub-calls made by the cell.
        failures: the error text of each sub-call that failed.
        duration_s: wall-clock seconds.
    """

    output: str = ""
    output_chars: int = 0
    error: str | None = None
    stopped: Literal["timeout", "limit", "exited"] | None = None
    lost: tuple[str, ...] | None = None
    answer_ready: bool = False
    answer: JSON = None
    variables: Mapping[str, str] = field(default_factory=dict)
    calls: int = 0
    failures: tuple[str, ...] = ()
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run returns.

    Attributes:
        answer: the answer: a str, or an instance of ``output_type``.
        stop_reason: ``"answered"``, ``"iterations"``, or the option whose limit ended the run (``"max_calls"``, …).
        usage: everything the run and its children used, by model.
        duration_s: wall-clock seconds.
        iterations: root turns taken.
        children: the results of child runs, in the order they were started; those that failed or were cancelled too.
        run_id: the id under which events and the log name this run.
        error: of a child that gave no answer: what ended it, as text; its ``stop_reason`` is then ``"failed"``, ``"cancelled"`` or the
            limit's name. None of a run that answered; a root run without an answer raises instead.
    """

    answer: Any
    stop_reason: str
    usage: UsageSummary
    duration_s: float
    iterations: int
    children: tuple[Result, ...] = ()
    run_id: str = ""
    error: str | None = None
    _trajectory: Mapping[str, JSON] = field(default_factory=dict, repr=False)

    @property
    def cost_usd(self) -> float | None:
        """US dollars over the whole tree; None when unknown."""
        return self.usage.total.cost_usd

    def trajectory(self) -> dict[str, JSON]:
        """All root turns with their cells as a JSON-able dict: prompt, messages, code, output, answer, usage, children."""
        return dict(self._trajectory)
