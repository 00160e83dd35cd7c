"""The scripted provider's state: the script that plays, the counters, the last requests, the open connections. Standard library only."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from .provider_player import Player
from .provider_script import Script
from .wires.base import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .provider_http import Connection

KEPT_REQUESTS = 64  # how many request bodies are kept for a test to look at
_COUNTED = ("calls", "root_calls", "sub_calls", "answered", "limited", "rejected", "aborted", "connections")
_TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")


class Board:
    """The server's state: the script that plays, the counters, the last requests, the open connections."""

    def __init__(self, script: Script) -> None:
        self.player = Player(script)
        self.connections: set[Connection] = set()
        self.held: list[Callable[[], None]] = []
        self.numbers = itertools.count(1)
        self._watchers: list[tuple[Callable[[Mapping[str, Any]], bool], asyncio.Future[None]]] = []
        self.reset()

    def reset(self) -> None:
        """Set the counters to zero."""
        self.counts: Counter[str] = Counter()
        self.by_model: Counter[str] = Counter()
        self.in_flight = 0
        self.max_in_flight = 0
        self.requests: deque[dict[str, Any]] = deque(maxlen=KEPT_REQUESTS)

    def configure(self, values: Mapping[str, Any]) -> None:
        """Replace the script. Counters stay; calls that wait keep the reply they have."""
        self.player = Player(Script.from_dict(values))

    def stats(self) -> dict[str, Any]:
        """The counters, as JSON. Tokens are told as arlm counts them on every wire: the prompt with what was cached, the completion
        with what was reasoning."""
        counted = {name: self.counts[name] for name in (*_COUNTED, *_TOKENS)}
        faults = {name[6:]: count for name, count in self.counts.items() if name.startswith("fault:")}
        return {
            **counted,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "open_connections": sum(connection.has_called for connection in self.connections),
            "faults": faults,
            "by_model": dict(self.by_model),
        }

    async def until(self, condition: Callable[[Mapping[str, Any]], bool]) -> None:
        """Wait until the counters meet ``condition``."""
        if not condition(self.stats()):
            met: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._watchers.append((condition, met))
            await met

    def changed(self) -> None:
        """Tell those who wait that a counter has changed."""
        for watcher in list(self._watchers):
            condition, met = watcher
            if met.done() or condition(self.stats()):
                self._watchers.remove(watcher)
                if not met.done():
                    met.set_result(None)

    def begin(self) -> None:
        """One more call in flight; replies that were held for it go out."""
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        self.changed()
        if self.in_flight >= self.player.script.hold:
            held, self.held = self.held, []
            for release in held:
                release()

    def bill(self, answer: Answer, model: str) -> None:
        """Count a reply that is being sent."""
        self.counts["answered"] += 1
        self.by_model[model] += 1
        tokens = answer.tokens
        self.counts["prompt_tokens"] += tokens.prompt
        self.counts["completion_tokens"] += tokens.completion
        self.counts["cached_tokens"] += tokens.cached
        self.counts["cache_write_tokens"] += tokens.cache_write or 0
        self.counts["reasoning_tokens"] += tokens.reasoning
