"""A broker that is polled: the sandbox's side of it. A Flask application on the server that comes with Flask, a thread for each request.

/enqueue blocks until it is answered, /pending gives all that is not answered and takes nothing away, /respond answers by id. There are no
tokens. It is written for this benchmark after what rlms does in clouds, and writes its port as a line on standard output.
"""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass, field
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.serving import make_server

ANSWER_S = 300.0

app = Flask(__name__)
lock = threading.Lock()


@dataclass
class Held:
    """A call that waits for its answer."""

    asked: dict[str, Any]
    answer: dict[str, Any] | None = None
    answered: threading.Event = field(default_factory=threading.Event)


calls: dict[str, Held] = {}


@app.post("/enqueue")
def enqueue() -> tuple[Response, int]:
    call, name = Held(asked=request.get_json()), str(uuid.uuid4())
    with lock:
        calls[name] = call
    call.answered.wait(ANSWER_S)
    with lock:
        del calls[name]
    return (jsonify({"error": "nobody answered"}), 504) if call.answer is None else (jsonify(call.answer), 200)


@app.get("/pending")
def pending() -> Response:
    with lock:
        waiting = [{"id": name, "request": call.asked} for name, call in calls.items() if call.answer is None]
    return jsonify({"pending": waiting})


@app.post("/respond")
def respond() -> tuple[Response, int]:
    told = request.get_json()
    with lock:
        call = calls.get(told["id"])
        if call is not None:
            call.answer = told["response"]
            call.answered.set()
    return jsonify({"found": call is not None}), 404 if call is None else 200


if __name__ == "__main__":
    server = make_server("127.0.0.1", 0, app, threaded=True)
    server.socket.listen(1_024)  # its own 128 are too few for a thousand at once: some of them are reset, and the cell fails
    print(server.port, flush=True)
    server.serve_forever()
