"""What the root model is told. The words are the product: change them with a reason.

The history only ever grows, so that a provider's prompt cache stays warm: nothing here depends on anything but what it is given.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from .functions import FUNCTIONS
from .types import JSON, CellResult

PROMPT_HEAD_CHARS = 2_000  # of a prompt that is its own context: what the first message shows of it
SUB_PROMPT_CHARS = 200_000  # about 50,000 tokens: read well by every current model, a quarter of the smallest common window
OUTPUT_CHARS = 20_000
MAX_EARLIER = 10  # questions of a session that a later one is reminded of
EARLIER_CHARS = 500  # of each of those and of its answer

SYSTEM = """\
You answer a question about an input that may be far larger than what you can read at once. You work through a Python REPL.

Write code in a fenced block that starts with ```repl. Each block runs as one cell; you get back what it printed and the value of its last
expression. Variables, imports and functions stay from cell to cell, also after an error. Top-level `await` works.

In the REPL:
- `context`: the input. Look at it by code; never print all of it.
{functions}
- `SHOW_VARS()`: your variables with their types and sizes.
- `history`: earlier questions of this session and their answers.
- `answer`: a dict. `answer["content"] = ...` holds your answer; `answer["ready"] = True` ends the work with it.

How to work:
1. Look first: type, length, beginning, end, structure. Then plan.
2. Let code do what code can do exactly: searching, counting, splitting, sorting, joining.
3. Let models do what needs reading: give each sub-call the instruction and the text it needs, since it sees nothing else. A sub-call can
   take about {sub_prompt:,} characters; fill it. A few hundred well-packed prompts in one `llm_query_batched` are fast and cheap;
   thousands of tiny ones are slow and dear.
4. Ask sub-calls for short answers in a form that code can read, and check them: a reply whose `.failed` is True is an error text, not an
   answer.
5. Keep results in variables and print only what you need to see: of each cell's output you see at most {output:,} characters.
6. Check the result before you finish. Never set `answer["ready"]` in the cell that computes something you have not seen yet, unless the
   check is in the code.

A reply without a ```repl block runs nothing: the work goes on until `answer["ready"]` is set, or the turns or the budget run out.
"""


def system_prompt(replacement: str | None, instructions: str | None, tools: str = "", *, children: bool = False) -> str:
    """The system message: ours with the lines about ``tools``, or ``replacement`` word for word; then ``instructions``.

    Args:
        children: whether ``rlm_query`` starts a child run; else it is said to be a plain call.
    """
    text = _ours(tools, children) if replacement is None else replacement
    return text if not instructions else f"{text.rstrip()}\n\n{instructions}"


@functools.lru_cache(maxsize=64)
def _ours(tools: str, children: bool) -> str:
    listed = [function for function in FUNCTIONS if children or not function.recursive]
    functions = "\n".join(f"- `{function.signature}`: {' '.join(function.doc.split())}" for function in listed)
    if not children:
        plain = ", ".join(f"`{function.name}`" for function in FUNCTIONS if function.recursive)
        functions += f"\n- {plain}: the same here, with a plain call for each prompt."
    asynchronous = ", ".join(f"`{function.async_name}`" for function in FUNCTIONS if function.async_name)
    functions += f"\n- {asynchronous}: the same as coroutines, for `await` and `asyncio.gather`."
    functions += f"\n{tools}" if tools else ""
    return SYSTEM.format(functions=functions, sub_prompt=SUB_PROMPT_CHARS, output=OUTPUT_CHARS)


def question(prompt: str, context: str, *, alone: bool) -> str:
    """The first user message: the question and what ``context`` is. ``alone``: the prompt itself is the context."""
    if not alone:
        return f"Question:\n{prompt}\n\n`context` is {context}."
    if len(prompt) <= PROMPT_HEAD_CHARS:
        return f"Question:\n{prompt}\n\n`context` holds the same text."
    return (
        f"The request is longer than this message. Its first {PROMPT_HEAD_CHARS:,} characters:\n{prompt[:PROMPT_HEAD_CHARS]}\n[…]\n\n"
        f"`context` holds all of it: {context}. Read the rest there."
    )


def earlier(history: Sequence[Mapping[str, JSON]], variables: Sequence[str]) -> str:
    """What a session's later question says of the earlier ones; empty for the first."""
    if not history:
        return ""
    lines = [f"- Q: {_short(str(entry['prompt']))}\n  A: {_short(str(entry['answer']))}" for entry in history[-MAX_EARLIER:]]
    kept = f"\nVariables from before: {', '.join(variables)}." if variables else ""
    return f"Earlier in this session (all of it in `history`):\n{chr(10).join(lines)}{kept}\n\n"


def _short(text: str) -> str:
    return text if len(text) <= EARLIER_CHARS else f"{text[:EARLIER_CHARS]}… [{len(text):,} characters]"


def turn(iteration: int, max_iterations: int, left: Mapping[str, float], subcalls: int) -> str:
    """The line that opens a turn: its number, what is left of the budget, how many sub-calls were made."""
    parts = []
    if "max_calls" in left:
        parts.append(f"{left['max_calls']:,.0f} model calls")
    if "max_total_tokens" in left:
        parts.append(f"{left['max_total_tokens']:,.0f} tokens")
    if "max_cost_usd" in left:
        parts.append(f"${left['max_cost_usd']:,.4f}")
    if "timeout" in left:
        parts.append(f"{left['timeout']:,.0f} s")
    budget = f" Left: {', '.join(parts)}." if parts else ""
    used = f" Sub-calls so far: {subcalls:,}." if subcalls else ""
    return f"[Turn {iteration} of {max_iterations}.{budget}{used}]"


def feedback(cells: Sequence[CellResult], blocks: int) -> str:
    """What the cells of one reply did, for the next user message."""
    parts = []
    for number, cell in enumerate(cells, 1):
        title = "Output:" if blocks == 1 else f"Output of block {number}:"
        parts.append(f"{title}\n{_cell(cell)}")
    if len(cells) < blocks:
        count = blocks - len(cells)
        parts.append(f"[{count} further {'block was' if count == 1 else 'blocks were'} not run]")
    return "\n\n".join(parts)


def _cell(cell: CellResult) -> str:
    lines = [cell.output.rstrip("\n")] if cell.output.strip() else []
    if cell.error is not None and (cell.stopped is not None or cell.error.split(":")[0] not in cell.output):
        lines.append(f"[{cell.error}]")
    if cell.lost is not None:
        names = f" Lost: {', '.join(cell.lost)}." if cell.lost else ""
        lines.append(f"[The REPL was restarted; `context` is there again.{names}]")
    if cell.failures:
        lines.append(f"[{len(cell.failures):,} of {cell.calls:,} sub-calls failed: {_common(cell.failures)}]")
    return "\n".join(lines) or "(no output)"


def _common(failures: Sequence[str]) -> str:
    counts: dict[str, int] = {}
    for failure in failures:
        counts[failure[:200]] = counts.get(failure[:200], 0) + 1
    ranked = sorted(counts.items(), key=lambda item: -item[1])[:3]
    return "; ".join(text if count == 1 else f"{text} ({count:,} times)" for text, count in ranked)


NO_CODE = (
    "Your reply had no ```repl block, so nothing ran. Write code in one; "
    'to finish, set answer["content"] and answer["ready"] = True in one.'
)
CUT_OFF = "Your reply was cut off inside a code block, so that block was not run. Write shorter blocks."
EMPTY = "Your reply was empty."
EMPTY_ANSWER = 'answer["ready"] was set, but answer["content"] is empty. Set the content; set ready again to insist on an empty answer.'


def wrong_type(problem: str) -> str:
    """The answer does not fit ``output_type``."""
    return f'answer["content"] was not accepted: {problem}\nSet it again in the required form, then answer["ready"] = True.'


def last_call(limit: str, type_hint: str | None) -> str:
    """The request for an answer now, because ``limit`` ended the work."""
    why = "All turns are used" if limit == "iterations" else f"The limit {limit} is reached"
    form = (
        f" Reply with JSON that fits this schema, and nothing else: {type_hint}"
        if type_hint
        else " Reply with the answer itself, in plain text."
    )
    return f"{why}; no more code can run. Give your best answer to the question from what you have seen.{form}"


def form(schema: str | None) -> str:
    """What the first message says about the form of the answer."""
    return "" if schema is None else f'\n\nanswer["content"] must fit this JSON schema: {schema}'
