"""The host's side of a polled broker: asks what is pending, answers it, sleeps 100 ms, asks again.

Run by a Python that has flask and requests, it starts the broker and the cell as processes of its own and writes the cell's figures as
JSON. Its argument is a job: ``sizes`` for ``calls.measured``, and ``threads``: whether each call is answered in a thread of its own, or one
after the other by the thread that polls.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
from calls import reply

HERE = Path(__file__).parent
PAUSE_S = 0.1  # between two polls
POLL_S, RESPOND_S = 5.0, 10.0  # for an answer of the broker's

Item = dict[str, Any]


def main() -> None:
    job = json.loads(sys.argv[1])
    with broker() as url:
        threading.Thread(target=poll, args=(url, job["threads"]), daemon=True).start()
        told = json.dumps({"url": url, "sizes": job["sizes"]})
        figures = subprocess.run([sys.executable, str(HERE / "polled_cell.py"), told], check=True, stdout=subprocess.PIPE, text=True).stdout
    print(figures.strip())


@contextlib.contextmanager
def broker() -> Iterator[str]:
    command = [sys.executable, str(HERE / "polled_broker.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def poll(url: str, threads: bool) -> None:
    """Answer what is pending, for ever. What could not be answered is pending again with the next poll."""
    taken: set[str] = set()
    while True:
        with contextlib.suppress(requests.RequestException):
            for item in requests.get(url + "/pending", timeout=POLL_S).json()["pending"]:
                if not threads:
                    respond(url, item)
                elif item["id"] not in taken:
                    taken.add(item["id"])
                    threading.Thread(target=respond_or_leave, args=(url, item, taken), daemon=True).start()
        time.sleep(PAUSE_S)


def respond_or_leave(url: str, item: Item, taken: set[str]) -> None:
    try:
        respond(url, item)
    except requests.RequestException:
        taken.discard(item["id"])


def respond(url: str, item: Item) -> None:
    requests.post(url + "/respond", json={"id": item["id"], "response": answer(item["request"])}, timeout=RESPOND_S)


def answer(request: Item) -> Item:
    """A model that takes as long as prompts say; those of a batch all at the same time."""
    if "prompt" in request:
        time.sleep(int(request["prompt"].split(" ", 1)[0]) / 1000)
        return {"response": reply(request["prompt"])}
    time.sleep(max(int(prompt.split(" ", 1)[0]) for prompt in request["prompts"]) / 1000)
    return {"responses": [reply(prompt) for prompt in request["prompts"]]}


if __name__ == "__main__":
    main()
