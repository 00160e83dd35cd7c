"""Plays a script: the text, the usage, the fault and the delay of each call, and what speaks against it. Standard library only."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

from .provider_script import BUILTINS, Bucket, Script
from .provider_turns import due
from .wires.base import Answer, Asked, Tokens, Trouble, Wire, tokens_in

Messages = Sequence[Mapping[str, Any]]

BEGINS_A_ROOT = ("system", "developer")


class Player:
    """Plays one Script."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self._random = random.Random(script.seed)
        self._faults = itertools.chain(script.faults)
        self._bucket = None if script.rate is None else Bucket(script.rate, script.burst)

    def lets_in(self, now: float) -> bool:
        """Whether the rate allows a call at this time."""
        return self._bucket is None or self._bucket.take(now)

    def trouble(self, asked: Asked, wire: Wire) -> Trouble | None:
        """What the script has against a request; None: nothing."""
        script, model = self.script, asked.model
        if model in script.missing_models:
            return Trouble(what="model", status=404, model=model)
        if script.context_chars is not None and asked.chars > script.context_chars:
            return Trouble(what="context", status=400, tokens=tokens_in(asked.chars), most=script.context_tokens or 0)
        if script.max_output_tokens is not None and (asked.max_tokens or 0) > script.max_output_tokens:
            return Trouble(what="output", status=400, model=model, tokens=asked.max_tokens or 0, most=script.max_output_tokens)
        if asked.stream and not wire.streams:
            return Trouble(what="body", status=400, told="the scripted provider does not stream on this wire")
        return wire.trouble(asked, script)

    def answer(self, messages: Messages) -> Answer:
        """The reply to one conversation."""
        script = self.script
        is_root = bool(messages) and messages[0].get("role") in BEGINS_A_ROOT
        text = self._text(messages, is_root=is_root)
        return Answer(
            text=None if script.prompt_blocked or script.refusal is not None else text,
            tokens=self._tokens(sum(len(message.get("content") or "") for message in messages), len(text)),
            is_root=is_root,
            fault=self._fault(is_root=is_root),
            delay=script.latency + (self._random.random() * script.jitter if script.jitter else 0.0),
        )

    def _text(self, messages: Messages, *, is_root: bool) -> str:
        if self.script.prompt_blocked:
            return ""
        if self.script.refusal is not None:
            return self.script.refusal
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

    def _turns(self, messages: Messages) -> Sequence[str]:
        for root in self.script.roots:
            if any(root["contains"] in (message.get("content") or "") for message in messages):
                turns: Sequence[str] = root["turns"]
                return turns
        return self.script.turns

    def _tokens(self, chars_in: int, chars_out: int) -> Tokens:
        script = self.script
        prompt = tokens_in(chars_in)
        cached = min(script.cached_tokens, prompt)
        reasoning = 0 if script.prompt_blocked else script.reasoning_tokens
        return Tokens(
            prompt=prompt,
            completion=tokens_in(chars_out) + reasoning,
            cached=cached,
            cache_write=None if script.cache_write_tokens is None else min(script.cache_write_tokens, prompt - cached),
            reasoning=reasoning,
            cost=script.cost,
        )

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
