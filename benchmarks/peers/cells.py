"""What the scripted root model replies with: code, in the form that each framework wants."""

from __future__ import annotations

import textwrap
from typing import Any

from .markers import PLAY, WARM_UP

SUBCALLS = 5  # of a child, in one batch
DSPY_TURN = r"\[\[ ## iteration ## \]\]\s*(\d+)/"  # dspy sends its history as one user message, with the turn's number in it

_TIMED = """\
import json, time
prompts = [f"{kind} {{i}}" for i in range({size})]
began = time.perf_counter()
{work}
took = time.perf_counter() - began
right = sum(reply == {expected} for reply, prompt in zip(replies, prompts))
{finish}"""
_SUMMARY = 'json.dumps({"right": right, "of": len(prompts), "cell_s": took})'
_PARTS = f'"|".join(f"{{prompt}} part {{k}}" for k in range({SUBCALLS}))'

_CHILDREN = {
    "batch": "replies = rlm_query_batched(prompts)",
    "one by one": 'import dspy\nchild = dspy.RLM("context -> answer")\nreplies = [child(context=prompt).answer for prompt in prompts]',
    "threads": """\
import dspy
from concurrent.futures import ThreadPoolExecutor
child = dspy.RLM("context -> answer")
def one(prompt):
    try:
        return child(context=prompt).answer
    except Exception as error:
        return str(error)
with ThreadPoolExecutor(len(prompts)) as pool:
    replies = list(pool.map(one, prompts))""",
}


def script(peer: str, scene: str, *, size: int = 0, latency: float = 0.0, by: str = "batch") -> dict[str, Any]:
    """The fields of the provider's script.

    Args:
        peer: the framework that will ask.
        scene: which code.
        size: calls or children in it.
        by: how children are asked for.
    """
    fields = {
        "roots": [
            {"contains": WARM_UP, "turns": [_reply(peer, _finish(peer, "context"))]},
            {"contains": PLAY, "turns": [_reply(peer, code) for code in _turns(peer, scene, size, by)]},
        ],
        "turns": [_reply(peer, code) for code in _child(peer)],
        "latency": latency,
    }
    return {**fields, "turn": DSPY_TURN} if peer == "dspy" else fields


def _turns(peer: str, scene: str, size: int, by: str) -> list[str]:
    """The code of the run that is measured, a cell for each turn."""
    summary = _finish(peer, _SUMMARY)
    match scene:
        case "fanout":
            return [
                _TIMED.format(kind="question", size=size, work="replies = llm_query_batched(prompts)", expected="prompt", finish=summary)
            ]
        case "sequential":
            work = "replies = [llm_query(prompt) for prompt in prompts]"
            return [_TIMED.format(kind="question", size=size, work=work, expected="prompt", finish=summary)]
        case "children":
            return [_TIMED.format(kind="child", size=size, work=_CHILDREN[by], expected=_PARTS, finish=summary)]
        case "answer":
            return [_finish(peer, "context")]
        case "context":
            return [_finish(peer, "f\"{len(context)} {context.count('NEEDLE')}\"")]
        case "busy":
            return ["while True:\n    pass", _finish(peer, '"went on"')]
    raise ValueError(f"unknown scene {scene!r}")


def _child(peer: str) -> list[str]:
    """A child's three turns, with one batch of calls in the first."""
    return [
        f'parts = llm_query_batched([f"{{context}} part {{k}}" for k in range({SUBCALLS})])\nprint(len(parts))',
        'text = "|".join(parts)\nprint(len(text))',
        _finish(peer, "text"),
    ]


def _finish(peer: str, expression: str) -> str:
    return f"SUBMIT(answer={expression})" if peer == "dspy" else f'answer["content"] = {expression}\nanswer["ready"] = True'


def _reply(peer: str, code: str) -> str:
    code = textwrap.dedent(code)
    if peer == "dspy":
        return f"[[ ## reasoning ## ]]\nThe next step.\n\n[[ ## code ## ]]\n```python\n{code}\n```\n\n[[ ## completed ## ]]"
    return f"The next step.\n```repl\n{code}\n```"
