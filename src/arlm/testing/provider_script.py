"""What the scripted provider says: replies, usage, faults. Standard library only."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .provider_turns import due

FAULTS = ("429", "500", "503", "529", "reset", "stall", "cut", "invalid_json", "html")

BUILTINS: Mapping[str, Callable[[str], str]] = {
    "echo": lambda prompt: prompt,
    "upper": lambda prompt: prompt.upper(),
    "length": lambda prompt: str(len(prompt)),
    "sha256": lambda prompt: hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest(),
    "empty": lambda _prompt: "",
}


@dataclass(slots=True, kw_only=True)
class Script:
    """How the provider behaves. A conversation that begins with a system message is a root; every other call is a sub-call.

    Attributes:
        turns: the root's replies; which one is due follows from the assistant messages sent along, and the last one repeats.
        turn: how the number of the turn that is due is read out of the last message, where it cannot be counted; see provider_turns.
        roots: further scripts, ``{"contains": text, "turns": [...]}``: the first whose text stands in the conversation is played.
        sub: how sub-calls are answered: the name of a built-in (``echo``, ``upper``, ``length``, ``sha256``, ``empty``), ``{"text": ...}``,
            or, in process, a function from the last message to the reply.
        rules: tried before ``sub``: ``{"contains": text, "text": reply}``.
        latency: seconds before a reply.
        jitter: seconds added to it at most, uniformly.
        hold: replies are held back until that many calls are in flight at once, so that a test of concurrency needs no clock.
        error_rates: the part of calls that meet a fault, by its name; see FAULTS.
        faults: faults of the next calls in order, before the rates apply; None is a call without one.
        faults_for: ``"all"``, ``"root"`` or ``"sub"`` calls.
        rate: calls a second that are let in; more get a 429. None: all.
        burst: how many may come at once after a pause.
        retry_after: the Retry-After header of a 429 or 503; None leaves it out.
        retry_after_ms: the retry-after-ms header of a 429 or 503.
        key: the only key that is let in; None lets everybody in.
        missing_models: models answered with 404.
        context_chars: a longer conversation is answered with 400, context_length_exceeded.
        cached_tokens: input tokens said to come from the cache.
        cache_write_tokens: input tokens said to be written to the cache.
        reasoning_tokens: output tokens added for reasoning.
        cost: the ``usage.cost`` of a call; None leaves it out.
        usage: whether replies carry usage at all.
        finish_reason: of every reply.
        refusal: sent as the message's refusal, with null content.
        seed: of the random numbers behind jitter and rates.
    """

    turns: Sequence[str] = ()
    turn: str | None = None
    roots: Sequence[Mapping[str, Any]] = ()
    sub: str | Mapping[str, str] | Callable[[str], str] = "echo"
    rules: Sequence[Mapping[str, str]] = ()
    latency: float = 0.0
    jitter: float = 0.0
    hold: int = 0
    error_rates: Mapping[str, float] = field(default_factory=dict)
    faults: Sequence[str | None] = ()
    faults_for: str = "all"
    rate: float | None = None
    burst: float = 1.0
    retry_after: str | None = "1"
    retry_after_ms: str | None = None
    key: str | None = None
    missing_models: Sequence[str] = ()
    context_chars: int | None = None
    cached_tokens: int = 0
    cache_write_tokens: int | None = None
    reasoning_tokens: int = 0
    cost: float | None = None
    usage: bool = True
    finish_reason: str = "stop"
    refusal: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [fault for fault in (*self.error_rates, *self.faults) if fault is not None and fault not in FAULTS]
        if unknown:
            raise ValueError(f"unknown faults {unknown}; there is: {', '.join(FAULTS)}")
        if isinstance(self.sub, str) and self.sub not in BUILTINS:
            raise ValueError(f"unknown sub {self.sub!r}; there is: {', '.join(BUILTINS)}, or {{'text': ...}}")

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One reply, ready to be sent."""

    text: str | None
    usage: Mapping[str, Any]
    is_root: bool
    fault: str | None
    delay: float


class Player:
    """Plays one Script: decides text, usage, fault and delay of each call."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self._random = random.Random(script.seed)
        self._faults = itertools.chain(script.faults)
        self._bucket = None if script.rate is None else Bucket(script.rate, script.burst)

    def lets_in(self, now: float) -> bool:
        """Whether the rate allows a call at this time."""
        return self._bucket is None or self._bucket.take(now)

    def answer(self, messages: Sequence[Mapping[str, Any]]) -> Answer:
        """The reply to one conversation."""
        script = self.script
        is_root = bool(messages) and messages[0].get("role") == "system"
        text = script.refusal if script.refusal is not None else self._text(messages, is_root=is_root)
        return Answer(
            text=None if script.refusal is not None else text,
            usage=self._usage(sum(len(message.get("content") or "") for message in messages), len(text)),
            is_root=is_root,
            fault=self._fault(is_root=is_root),
            delay=script.latency + (self._random.random() * script.jitter if script.jitter else 0.0),
        )

    def _text(self, messages: Sequence[Mapping[str, Any]], *, is_root: bool) -> str:
        if is_root:
            turns = self._turns(messages)
            return turns[min(due(messages, self.script.turn), len(turns) - 1)] if turns else ""
        prompt = messages[-1].get("content") or "" if messages else ""
        for rule in self.script.rules:
            if rule["contains"] in prompt:
                return rule["text"]
        sub = self.script.sub
        if isinstance(sub, str):
            return BUILTINS[sub](prompt)
        return sub["text"] if isinstance(sub, Mapping) else sub(prompt)

    def _turns(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[str]:
        for root in self.script.roots:
            if any(root["contains"] in (message.get("content") or "") for message in messages):
                turns: Sequence[str] = root["turns"]
                return turns
        return self.script.turns

    def _usage(self, chars_in: int, chars_out: int) -> dict[str, Any]:
        script = self.script
        prompt = math.ceil(chars_in / 4)
        completion = math.ceil(chars_out / 4) + script.reasoning_tokens
        details: dict[str, Any] = {"cached_tokens": min(script.cached_tokens, prompt)}
        if script.cache_write_tokens is not None:
            details["cache_write_tokens"] = script.cache_write_tokens
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": details,
            "completion_tokens_details": {"reasoning_tokens": script.reasoning_tokens},
        }
        return usage if script.cost is None else {**usage, "cost": script.cost}

    def _fault(self, *, is_root: bool) -> str | None:
        script = self.script
        if script.faults_for != "all" and (script.faults_for == "root") != is_root:
            return None
        for fault in self._faults:
            return fault
        if not script.error_rates:
            return None
        drawn = self._random.random()
        for name, rate in script.error_rates.items():
            drawn -= rate
            if drawn < 0:
                return name
        return None
