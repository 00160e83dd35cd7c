"""A web service on arlm: questions over a context of any size, and a living REPL for each user.

Start it, with no key, on the small rule-based demo model (which answers that it can only work on what `arlm demo` gives it):

    pip install . fastapi uvicorn
    uvicorn --app-dir examples service:app --timeout-graceful-shutdown 5

    curl localhost:8000/ask -H 'content-type: application/json' -d '{"prompt": "Who survives?", "context": "All drowned but Anna."}'
    curl localhost:8000/users/ann/ask -H 'content-type: application/json' -d '{"prompt": "And who is at the door?"}'
    curl -N localhost:8000/ask/events -H 'content-type: application/json' -d '{"prompt": "Who survives?"}'

ARLM_MODEL names another model ("openai/gpt-5-mini"). `--timeout-graceful-shutdown` says for how many seconds questions under way may go on
after Ctrl-C or SIGTERM; then they are cancelled, and leave nothing behind. `--limit-concurrency` bounds how many there are at once.
What is missing for the open Internet: who a user is. Put your authentication where `{user}` is read.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Unpack

import anyio
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field, JsonValue

import arlm
from arlm.options import RunOptions

IDLE_S = 600.0  # a session that nobody has asked for so long is closed: a worker of some ten megabytes
MAX_SESSIONS = 100
STATUS: dict[type, int] = {  # of errors; the nearest class counts
    arlm.ConfigError: 422,
    arlm.LimitError: 429,
    arlm.RunTimeout: 504,
    arlm.ProviderError: 502,
    arlm.RateLimited: 503,
    arlm.Overloaded: 503,
    arlm.SandboxError: 503,
    arlm.ArlmError: 500,
}


class Question(BaseModel):
    prompt: str = Field(min_length=1)
    context: JsonValue = None


@asynccontextmanager
async def while_connected(request: Request) -> AsyncIterator[None]:
    """Cancels its block when the client hangs up. A server does not: it tells whoever listens."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    with anyio.CancelScope() as scope:
        watcher = asyncio.create_task(watch())
        try:
            yield
        finally:
            watcher.cancel()
    if scope.cancelled_caught:
        raise HTTPException(499, "the client hung up")  # nobody reads that any more


@dataclass(slots=True, kw_only=True)
class Seat:
    """A user's session, once it is open. Locked while it answers."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    session: arlm.Session | None = None
    used: float = field(default_factory=time.monotonic)


class Sessions:
    """A session for each user: opened by the first question, closed when asked to, when idle, and with the service."""

    def __init__(self, rlm: arlm.RLM, *, max_sessions: int, idle_s: float) -> None:
        self._rlm = rlm
        self._max_sessions = max_sessions
        self._idle_s = idle_s
        self._seats: dict[str, Seat] = {}

    @asynccontextmanager
    async def of(self, user: str) -> AsyncIterator[arlm.Session]:
        """The user's session for one question."""
        if user not in self._seats and len(self._seats) >= self._max_sessions:
            raise HTTPException(503, "too many sessions are open")
        seat = self._seats.setdefault(user, Seat())
        if seat.lock.locked():
            raise HTTPException(409, "your session is answering a question; wait for it, or hang up")
        async with seat.lock:
            try:
                if seat.session is None:
                    seat.session = await seat.stack.enter_async_context(self._rlm.session())
                yield seat.session
            finally:
                seat.used = time.monotonic()
                if seat.session is None and self._seats.get(user) is seat:
                    del self._seats[user]

    async def close(self, user: str) -> None:
        """Close the user's session, if there is one, after the question it is answering."""
        if seat := self._seats.pop(user, None):
            async with seat.lock:
                await seat.stack.aclose()

    async def close_idle(self) -> None:
        """Close, for ever, what has not been used for a while."""
        while True:
            await asyncio.sleep(self._idle_s / 10)
            since = time.monotonic() - self._idle_s
            idle = [user for user, seat in self._seats.items() if seat.used < since and not seat.lock.locked()]
            await asyncio.gather(*map(self.close, idle))

    async def close_all(self) -> None:
        """Close every session."""
        await asyncio.gather(*map(self.close, list(self._seats)))


router = APIRouter()


@router.post("/ask")
async def ask(question: Question, request: Request) -> dict[str, Any]:
    """Answer one question."""
    async with while_connected(request):
        return told(await request.state.rlm.run(question.prompt, context=question.context))


async def streamed(question: Question, request: Request) -> AsyncIterator[arlm.RunStream]:
    """A run that lasts as long as its response at most. FastAPI ends that when the client hangs up."""
    async with request.state.rlm.stream(question.prompt, context=question.context) as run:
        yield run


@router.post("/ask/events", response_class=EventSourceResponse)
async def ask_events(run: Annotated[arlm.RunStream, Depends(streamed)]) -> AsyncIterator[ServerSentEvent]:
    """What happens on the way to an answer, as server-sent events."""
    try:
        async for event in run:
            yield ServerSentEvent(event=event.type, data=event.to_dict())
    except arlm.ArlmError as error:
        yield ServerSentEvent(event="error", data=explained(error))


@router.post("/users/{user}/ask")
async def ask_session(user: str, question: Question, request: Request) -> dict[str, Any]:
    """Answer a question in the user's session: variables of earlier ones are there, and the context, until another is given."""
    given = {} if question.context is None else {"context": question.context}
    async with while_connected(request), request.state.sessions.of(user) as session:
        return told(await session.run(question.prompt, **given))


@router.delete("/users/{user}", status_code=204)
async def end_session(user: str, request: Request) -> None:
    """Close the user's session."""
    await request.state.sessions.close(user)


def told(result: arlm.Result) -> dict[str, Any]:
    return {"answer": result.answer, "stop_reason": result.stop_reason, "usage": result.usage.to_dict(), "duration_s": result.duration_s}


def explained(error: Exception) -> dict[str, str]:
    return {"error": type(error).__name__, "detail": str(error)}


async def failed(_request: Request, error: Exception) -> JSONResponse:
    wait_s = getattr(error, "retry_after", None)
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    return JSONResponse(explained(error), status, headers={"Retry-After": f"{wait_s:.0f}"} if wait_s else None)


def create_app(*, max_sessions: int = MAX_SESSIONS, idle_s: float = IDLE_S, **options: Unpack[RunOptions]) -> FastAPI:
    """The service, with one RLM of these options."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        rlm = arlm.RLM(**options)
        sessions = Sessions(rlm, max_sessions=max_sessions, idle_s=idle_s)
        closing_idle = asyncio.create_task(sessions.close_idle())
        try:
            yield {"rlm": rlm, "sessions": sessions}
        finally:
            closing_idle.cancel()
            await asyncio.wait({closing_idle})
            await sessions.close_all()

    app = FastAPI(title="arlm", lifespan=lifespan)
    app.include_router(router)
    app.add_exception_handler(arlm.ArlmError, failed)
    return app


app = create_app(model=os.environ.get("ARLM_MODEL", "demo/demo"), timeout=300.0)
