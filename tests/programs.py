"""A model that runs what the question says: ``RUN … END`` is its code. So a test writes a whole tree of runs as one program."""

import re
from collections.abc import Mapping
from typing import Any

import arlm
from arlm.clients.base import BaseLM, as_messages
from arlm.types import Completion, Message, TokenUsage

RUN = re.compile(r"RUN (.*) END", re.DOTALL)


def run(code: str) -> str:
    """A question that makes the model run this code."""
    return f"RUN {code} END"


def final(expression: str) -> str:
    """A question whose answer is this expression's value."""
    return run(f"answer.update(content={expression}, ready=True)")


class ProgramLM(BaseLM):
    """Replies to a root turn with the question's code, and to any other call with ``ok: `` and the prompt.

    Attributes:
        seen: each call's messages.
        used: input and output tokens by call, as reported: what a provider's own count would be.
    """

    def __init__(self, model: str = "program/model", *, tokens: tuple[int, int] = (7, 3)) -> None:
        super().__init__(model)
        self.seen: list[list[Message]] = []
        self.tokens = tokens
        self.in_flight = self.most_in_flight = 0

    @property
    def systems(self) -> list[str]:
        """The system messages, in the order of first appearance."""
        return list(dict.fromkeys(call[0]["content"] for call in self.seen if call[0]["role"] == "system"))

    async def acompletion(self, prompt: Any, *, model: str | None = None, sampling: Mapping[str, Any] | None = None) -> Completion:
        """See the class."""
        messages = as_messages(prompt)
        self.seen.append(messages)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            text = await self.reply(messages)
        finally:
            self.in_flight -= 1
        usage = TokenUsage(input_tokens=self.tokens[0], output_tokens=self.tokens[1], cost_usd=0.5)
        return Completion(text=text, usage=usage, model=self.name, finish_reason="stop")

    async def reply(self, messages: list[Message]) -> str:
        """What the call is answered with; tests change it."""
        if messages[0]["role"] != "system":
            return f"ok: {messages[0]['content']}"
        found = RUN.search(messages[1]["content"].rpartition("Question:\n")[2])
        if found is None or len(messages) > 2:
            raise arlm.BadRequest("this model only runs programs, one turn each", provider="program")
        return f"```repl\n{found[1]}\n```"
