"""``arlm demo``: everything real but the model, and an answer that is checked."""

from __future__ import annotations

import re
import shlex
import sys
import time
from typing import Any

from ..clients.demo import DemoLM
from .display import Display
from .exits import Code
from .output import say, write
from .running import run_shown
from .text import count, seconds
from .tickets import Tickets, generate

QUESTION = """\
How many of these customers ask for their money back?
Answer with a line `product: count` for each product, and a last line `total: count`."""
PREFACE = """\
arlm demo: no key, no network. The model is a small rule-based stand-in, not a language model,
and knows this one kind of input. The rest is real: the input, the place where the code runs,
hundreds of sub-calls at once, the counting, the limits, the clean-up.
"""
NEXT = """\
What next, with a language model and an input of yours:
  export OPENAI_API_KEY=…    (or another provider's key; `arlm doctor` lists them)
  arlm run "What are the main points?" book.txt --model openai/gpt-5-mini
  {python} -c 'import arlm, pathlib; print(arlm.run_sync("What are the main points?", context=pathlib.Path("book.txt")).answer)'
  arlm doctor
"""


def show_demo(seed: int, number: int, display: Display, **place: Any) -> int:
    """Make tickets, ask about them, check the answer, say what happened. Returns the exit code: 1 for a wrong answer.

    Args:
        seed, number: of the tickets.
        display: shows the run.
        place: options of ``arlm.run`` that say where the code runs.
    """
    tickets = generate(number, seed)
    say(PREFACE)
    say(f"{number:,} support tickets, {len(tickets.text):,} characters (seed {seed}).\n{QUESTION}\n")
    began = time.monotonic()
    model = DemoLM()
    result = run_shown(QUESTION, {"context": tickets.text, "model": model, **place}, display)
    took = time.monotonic() - began
    right = read_answer(result.answer) == tickets.truth
    say("")
    write(result.answer)
    counts = display.counts
    write(
        "\n".join(
            [
                "",
                _verdict(tickets, right=right),
                "",
                "What happened:",
                f"  context     {len(tickets.text):,} characters; {_seen(result.trajectory()['messages'])} came before the root model",
                f"  root model  {count(result.iterations, 'turn')}, {count(counts.cells, 'cell')} of code",
                f"  sub-calls   {counts.done:,}, at most {model.max_in_flight:,} in flight at once, {counts.failed:,} failed",
                f"  time        {seconds(took)}",
                "",
                NEXT.format(python=shlex.quote(sys.executable)),
            ]
        )
    )
    return int(Code.ANSWERED if right else Code.BUG)


def read_answer(answer: str) -> dict[str, int]:
    """The counts in an answer of the form that the question asks for."""
    return {name: int(number) for name, number in re.findall(r"^(\w+): (\d+)$", answer, re.MULTILINE)}


def _verdict(tickets: Tickets, *, right: bool) -> str:
    if right:
        return "Checked: right. The generator of the tickets knows the same counts."
    return f"Checked: WRONG. The generator of the tickets counts {tickets.truth}. Please report this."


def _seen(messages: list[dict[str, str]]) -> str:
    return f"{sum(len(message['content']) for message in messages[2:] if message['role'] == 'user'):,}"
