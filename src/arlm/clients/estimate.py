"""How many tokens a call may use: guesses that learn from what calls returned. No tokenizer is downloaded."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..types import Message, TokenUsage

CHARS_PER_TOKEN = 3.0  # English prose has about 4, code and JSON about 3: the lower figure reserves more
MESSAGE_TOKENS = 8  # role and separators around one message in the common chat templates, rounded up
OUTPUT_PRIOR = 1_000  # tokens of one reply while nothing is known
WINDOW = 512  # replies that the learned bound looks back on
ENOUGH = 20  # replies before the learned bound replaces the prior
INPUT_WINDOW = 64  # calls that the learned ratio looks back on
MARGIN = 1.15  # over the mean ratio, because a reservation should err upwards


def estimate_tokens(text_chars: int) -> int:
    """A cautious guess at the tokens of ``text_chars`` characters of English text or code."""
    return math.ceil(text_chars / CHARS_PER_TOKEN)


class Estimator:
    """One model's reservations. Constant time a call, bounded memory, never zero. Not for several threads at once."""

    def __init__(self) -> None:
        self._inputs: deque[tuple[int, int]] = deque(maxlen=INPUT_WINDOW)
        self._chars = 0
        self._tokens = 0
        self._outputs: deque[int] = deque(maxlen=WINDOW)
        self._bound = OUTPUT_PRIOR
        self._since = 0

    def input_tokens(self, prompt: Sequence[Message] | int) -> int:
        """The tokens that ``prompt`` (messages, or a number of characters) may cost.

        Until a call has shown the model's ratio, a message with characters outside ASCII counts one token a character.
        """
        if isinstance(prompt, int):
            return MESSAGE_TOKENS + self._from_chars(prompt)
        return sum(MESSAGE_TOKENS + self._from_text(message["content"]) for message in prompt)

    def output_bound(self, cap: int | None = None) -> int:
        """The tokens that a reply may cost: ``cap`` if the call has one, else the 99th percentile of recent replies, else 1,000."""
        return self._bound if cap is None else cap

    def observe(self, prompt: Sequence[Message] | int, usage: TokenUsage) -> None:
        """Learn from one call: what was sent (messages, or characters) and what it used."""
        if usage.input_tokens is not None:
            self._observe_input(
                prompt if isinstance(prompt, int) else sum(len(message["content"]) for message in prompt), usage.input_tokens
            )
        if usage.output_tokens is not None:
            self._observe_output(usage.output_tokens)

    def _from_text(self, text: str) -> int:
        return len(text) if not self._inputs and not text.isascii() else self._from_chars(len(text))

    def _from_chars(self, chars: int) -> int:
        ratio = MARGIN * self._tokens / self._chars if self._chars else 1 / CHARS_PER_TOKEN
        return math.ceil(chars * ratio)

    def _observe_input(self, chars: int, tokens: int) -> None:
        if len(self._inputs) == INPUT_WINDOW:
            old_chars, old_tokens = self._inputs[0]
            self._chars -= old_chars
            self._tokens -= old_tokens
        self._inputs.append((chars, tokens))
        self._chars += chars
        self._tokens += tokens

    def _observe_output(self, tokens: int) -> None:
        self._outputs.append(tokens)
        self._since += 1
        if len(self._outputs) < ENOUGH:
            self._bound = max(self._bound, tokens)
        elif len(self._outputs) == ENOUGH or self._since >= ENOUGH:
            self._since = 0
            ranked = sorted(self._outputs)
            self._bound = max(1, ranked[math.ceil(0.99 * len(ranked)) - 1])
