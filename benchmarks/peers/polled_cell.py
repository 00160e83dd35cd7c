"""A cell behind a polled broker, as a process of its own: its argument says where the broker is, and what ``calls.measured`` is to take.

Each call is a POST on a connection of its own, as ``requests.post`` makes them; calls at once are made by a thread each.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import calls
import requests

ANSWER_S = 300.0
job: dict[str, Any] = json.loads(sys.argv[1])


def llm_query(prompt: str) -> str:
    return str(_asked({"prompt": prompt})["response"])


def llm_query_batched(prompts: list[str]) -> list[str]:
    return list(_asked({"prompts": prompts})["responses"])


def _asked(request: dict[str, Any]) -> dict[str, Any]:
    answer = requests.post(job["url"] + "/enqueue", json=request, timeout=ANSWER_S)
    answer.raise_for_status()
    said: dict[str, Any] = answer.json()
    return said


def at_once(prompts: list[str]) -> list[str]:
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(llm_query, prompts))


print(json.dumps(calls.measured(llm_query, llm_query_batched, at_once, **job["sizes"])))
