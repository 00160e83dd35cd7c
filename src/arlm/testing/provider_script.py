"""What the scripted provider is told to do: replies, usage, faults, limits. Standard library only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

STATUS_FAULTS = ("401", "403", "413", "429", "500", "502", "503", "504", "529")
CONNECTION_FAULTS = ("reset", "stall", "stall_body", "slow_first_byte", "cut")
BODY_FAULTS = ("invalid_json", "html", "stream_error")
FAULTS = (*STATUS_FAULTS, *CONNECTION_FAULTS, *BODY_FAULTS)

BUILTINS: Mapping[str, Callable[[str], str]] = {
    "echo": lambda prompt: prompt,
    "upper": lambda prompt: prompt.upper(),
    "length": lambda prompt: str(len(prompt)),
    "sha256": lambda prompt: hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest(),
    "empty": lambda _prompt: "",
}


@dataclass(slots=True, kw_only=True)
class Script:
    """How the provider behaves, on every wire. A conversation that begins with a system message is a root, every other call a sub-call.

    The faults: a number is that status; ``reset`` and ``cut`` end the connection before the reply and in the middle of its body or stream;
    ``stall`` never replies, ``stall_body`` stops after half of the body, ``slow_first_byte`` replies later by ``slow``; ``invalid_json``
    and ``html`` are bodies under a 200; ``stream_error`` is an error event in the middle of a stream, and a 529 where nothing is streamed.

    Attributes:
        turns: the root's replies; which one is due follows from the assistant messages sent along, and the last one repeats.
        turn: how the number of the turn that is due is read out of the last message, where it cannot be counted; see provider_turns.
        roots: further scripts, ``{"contains": text, "turns": [...]}``: the first whose text stands in the conversation is played.
        sub: how sub-calls are answered: the name of a built-in (``echo``, ``upper``, ``length``, ``sha256``, ``empty``), ``{"text": ...}``,
            or, in process, a function from the last message to the reply.
        rules: tried before ``sub``: ``{"contains": text, "text": reply}``.
        latency: seconds before a reply.
        jitter: seconds added to it at most, uniformly.
        slow: seconds by which the fault slow_first_byte delays a reply further.
        hold: replies are held back until that many calls are in flight at once, so that a test of concurrency needs no clock.
        error_rates: the part of calls that meet a fault, by its name; see FAULTS.
        faults: faults of the next calls in order, before the rates apply; None is a call without one.
        faults_for: ``"all"``, ``"root"`` or ``"sub"`` calls.
        rate: calls a second that are let in; more get a 429. None: all.
        burst: how many may come at once after a pause.
        retry_after: the Retry-After header of a 429 or 503; None leaves it out. Gemini says it in the body instead, if it is a number.
        retry_after_ms: the retry-after-ms header of a 429 or 503; likewise.
        key: the only key that is let in; None lets everybody in.
        models: the names that the list of models has.
        missing_models: models answered with 404.
        responses_only: models that Chat Completions answers with a 404 that points to Responses.
        context_chars: a longer conversation is answered with 400, context_length_exceeded.
        max_output_tokens: a request that asks for more is answered with 400; None: any.
        cached_tokens: input tokens said to come from the cache; at most the prompt.
        cache_write_tokens: input tokens said to be written to the cache; at most the rest of the prompt.
        reasoning_tokens: output tokens added for reasoning.
        cost: the ``usage.cost`` of a call, on the wires of OpenAI; None leaves it out.
        usage: whether replies carry usage at all.
        thinking: thoughts sent before the text; Chat Completions has no place for them.
        finish_reason: of every reply, in OpenAI's words: ``stop``, ``length``, ``content_filter``; each wire says it in its own, and any
            other word goes out as it stands. ``error`` is the status failed of Responses.
        refusal: sent as the message's refusal, with null content; elsewhere the stop reason refusal, or an unsafe candidate.
        prompt_blocked: the prompt is refused: Gemini's promptFeedback, Anthropic's refusal, a 400 content_filter of OpenAI.
        seed: of the random numbers behind jitter and rates.
    """

    turns: Sequence[str] = ()
    turn: str | None = None
    roots: Sequence[Mapping[str, Any]] = ()
    sub: str | Mapping[str, str] | Callable[[str], str] = "echo"
    rules: Sequence[Mapping[str, str]] = ()
    latency: float = 0.0
    jitter: float = 0.0
    slow: float = 1.0
    hold: int = 0
    error_rates: Mapping[str, float] = field(default_factory=dict)
    faults: Sequence[str | None] = ()
    faults_for: str = "all"
    rate: float | None = None
    burst: float = 1.0
    retry_after: str | None = "1"
    retry_after_ms: str | None = None
    key: str | None = None
    models: Sequence[str] = ("any",)
    missing_models: Sequence[str] = ()
    responses_only: Sequence[str] = ()
    context_chars: int | None = None
    max_output_tokens: int | None = None
    cached_tokens: int = 0
    cache_write_tokens: int | None = None
    reasoning_tokens: int = 0
    cost: float | None = None
    usage: bool = True
    thinking: str | None = None
    finish_reason: str = "stop"
    refusal: str | None = None
    prompt_blocked: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [fault for fault in (*self.error_rates, *self.faults) if fault is not None and fault not in FAULTS]
        if unknown:
            raise ValueError(f"unknown faults {unknown}; there is: {', '.join(FAULTS)}")
        if isinstance(self.sub, str) and self.sub not in BUILTINS:
            raise ValueError(f"unknown sub {self.sub!r}; there is: {', '.join(BUILTINS)}, or {{'text': ...}}")

    @property
    def context_tokens(self) -> int | None:
        """The longest conversation, as it is told: four characters a token."""
        return None if self.context_chars is None else self.context_chars // 4

    @property
    def wait(self) -> float | None:
        """Seconds that a 429 or 503 asks a client to wait; None where the script does not say, or says it as a date."""
        try:
            return float(self.retry_after_ms) / 1_000 if self.retry_after_ms is not None else float(self.retry_after or "none")
        except ValueError:
            return None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Script:
        """The script that a JSON object describes; a field that does not exist is a ValueError."""
        known = {known.name for known in fields(cls)}
        if unknown := values.keys() - known:
            raise ValueError(f"unknown script fields {sorted(unknown)}; there is: {', '.join(sorted(known))}")
        return cls(**values)


class Bucket:
    """A rate limit as providers keep it: a bucket of ``burst`` tokens, which fills by ``rate`` a second and gives one to each call."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at: float | None = None

    def take(self, now: float) -> bool:
        """Whether a call at ``now``, in seconds of any clock, is let in."""
        since = 0.0 if self._at is None else now - self._at
        self._at = now
        self._tokens = min(self.burst, self._tokens + since * self.rate)
        if self._tokens < 1 - 1e-9:  # what a rounding error leaves of a whole token is one
            return False
        self._tokens -= 1
        return True
