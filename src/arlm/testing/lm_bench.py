"""What a case of the client suite works with: one client, and the scripted provider behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from ..clients.base import BaseLM, Prompt
from ..errors import ProviderError, Refused
from ..types import JSON, Completion, Message, TokenUsage
from .lm_canned import Canned, CannedServer
from .lm_wires import WIRES, Speech
from .provider import ScriptedProvider
from .wires.base import Answer

if TYPE_CHECKING:
    from .lm_case import Need

PATIENCE_S = 20.0  # how long a case waits for something that takes milliseconds; reached only by a failure
KEY = "sk-th3-k3y-0f-the-5u1te-wh1ch-n0b0dy-may-see"

Error = TypeVar("Error", bound=ProviderError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What a client is opened for.

    Attributes:
        root: the base URL of a server that speaks all wires, ``http://127.0.0.1:PORT``.
        key: the key that it lets in.
        timeout: seconds for one call.
        answer: what that server would say to these messages, asked of this model: for clients without HTTP.
    """

    root: str
    key: str
    timeout: float
    answer: Callable[[list[Message], str], Awaitable[Completion]] = field(repr=False)

    @property
    def url(self) -> str:
        """The base URL as OpenAI's clients want it: ``root`` and ``/v1``."""
        return f"{self.root}/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A client under test.

    Attributes:
        name: as the test report shows it.
        open: makes a model object for a stage; it sends to ``stage.root`` with ``stage.key`` and gives up after ``stage.timeout``.
        wire: what it speaks: ``chat`` (Chat Completions), ``responses``, ``anthropic`` (Messages), ``gemini`` (generateContent), or
            ``none`` for a model without HTTP, which answers by ``stage.answer``.
        models: the name of the model as the provider knows it, and that of another one.
        options: sampling options that stand elsewhere in its requests than on its wire in general, or are refused (None).
        without: what it cannot have, each with the reason: all cases that need it are unmet.
        unmet: single cases that it cannot meet, each with the reason; a name that is no case is an error.
        behind: starts what the client needs between itself and ``stage.answer``, such as a server of a wire of its own (the wire is then
            ``none``), and gives its URL, which is ``stage.root`` for ``open``.
    """

    name: str
    open: Callable[[Stage], BaseLM]
    wire: str
    models: tuple[str, str] = ("small", "large")
    options: Mapping[str, str | None] = field(default_factory=dict)
    without: Mapping[Need, str] = field(default_factory=dict)
    unmet: Mapping[str, str] = field(default_factory=dict)
    behind: Callable[[Stage], AbstractAsyncContextManager[str]] | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def speech(self) -> Speech:
        """Its wire."""
        return WIRES[self.wire]

    @property
    def places(self) -> dict[str, str]:
        """Where each sampling option stands in its requests."""
        return {name: place for name, place in {**self.speech.options, **self.options}.items() if place is not None}


class Bench:
    """An open client with a scripted provider behind it. Made by :func:`open_bench`.

    Attributes:
        provider: plays the script.
        stage: what the client was opened for.
        lm: the client.
    """

    def __init__(self, subject: Subject, provider: ScriptedProvider) -> None:
        self.subject = subject
        self.speech = subject.speech
        self.provider = provider
        self.stage = Stage(root=provider.root, key=KEY, timeout=PATIENCE_S, answer=self._answer)
        self.lms: list[BaseLM] = []
        self.lm: BaseLM

    async def open(self, stack: AsyncExitStack) -> None:
        """Open the client, and before it what stands behind it."""
        if self.subject.behind is not None:
            self.stage = replace(self.stage, root=await stack.enter_async_context(self.subject.behind(self.stage)))
        stack.push_async_callback(self._close)
        self.lm = self.another()

    async def _close(self) -> None:
        for lm in self.lms:
            await lm.aclose()

    def another(self, **changes: Any) -> BaseLM:
        """One more client, for a stage with these changes."""
        lm = self.subject.open(replace(self.stage, **changes))
        self.lms.append(lm)
        return lm

    async def play(self, **script: Any) -> None:
        """Replace the script by one of these fields."""
        await self.provider.configure(script)

    async def stats(self) -> dict[str, Any]:
        """The provider's counters."""
        return await self.provider.stats()

    async def until(self, condition: Callable[[Mapping[str, Any]], bool]) -> None:
        """Wait until the counters meet this. Raises TimeoutError after PATIENCE_S."""
        with anyio.fail_after(PATIENCE_S):
            await self.provider.until(condition)

    async def ask(self, prompt: Prompt = "hello", *, model: str | None = None, sampling: Mapping[str, JSON] | None = None) -> Completion:
        """One call."""
        completion = await self.lm.acompletion(prompt, model=model, sampling=sampling)
        assert isinstance(completion, Completion)
        return completion

    async def fails(self, kind: type[Error], prompt: Prompt = "hello", *, lm: BaseLM | None = None) -> Error:
        """One call that must fail with exactly this error."""
        failure = await failure_of((lm or self.lm).acompletion(prompt))
        assert type(failure) is kind, f"{type(failure).__name__}: {failure}"
        assert failure.provider == self.lm.provider
        return failure

    async def body(self) -> dict[str, Any]:
        """The body of the last request."""
        body: dict[str, Any] = (await self.provider.requests())[-1]["body"]
        return body

    async def system(self) -> str:
        """The system text of the last request; empty without one."""
        return "\n".join(self.speech.system(await self.body()))

    async def turns(self) -> list[tuple[str, str]]:
        """The turns of the last request."""
        return self.speech.turns(await self.body())

    @asynccontextmanager
    async def canned(self, *replies: Canned) -> AsyncIterator[tuple[BaseLM, CannedServer]]:
        """A client whose server gives these replies one after the other, the last one again and again."""
        async with CannedServer(replies) as server:
            yield self.another(root=server.root), server

    async def _answer(self, messages: list[Message], model: str) -> Completion:
        """Play the script in this process, on the same board: delays, held replies, stalls and refusals, but no other fault."""
        board = self.provider.board
        board.requests.append({"wire": "none", "path": "", "query": "", "headers": {}, "body": {"model": model, "messages": messages}})
        answer = board.player.answer(messages)
        released: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        board.counts["calls"] += 1
        board.held.append(lambda: None if released.done() else released.set_result(None))
        board.begin()
        try:
            await released
            await (asyncio.Event().wait() if answer.fault == "stall" else asyncio.sleep(answer.delay))
        except asyncio.CancelledError:
            board.counts["aborted"] += 1
            raise
        finally:
            board.in_flight -= 1
            board.changed()
        board.bill(answer, model)
        usage = usage_of(answer) if board.player.script.usage else TokenUsage()
        if answer.text is None:
            raise Refused(board.player.script.refusal or "blocked", provider=self.lm.provider, usage=usage)
        return Completion(text=answer.text, usage=usage, finish_reason=board.player.script.finish_reason)


def usage_of(answer: Answer) -> TokenUsage:
    """The tokens of a scripted answer, in arlm's terms."""
    tokens = answer.tokens
    return TokenUsage(
        input_tokens=tokens.prompt,
        output_tokens=tokens.completion,
        cached_tokens=tokens.cached,
        cache_write_tokens=tokens.cache_write,
        reasoning_tokens=tokens.reasoning,
        cost_usd=tokens.cost,
    )


async def failure_of(call: Awaitable[object]) -> ProviderError:
    """What a call fails with, which must be a ProviderError."""
    try:
        result = await call
    except ProviderError as error:
        return error
    raise AssertionError(f"the call was answered: {result!r}")


def at(body: Mapping[str, Any], place: str) -> Any:
    """What stands in a body under a path of names; None for nothing."""
    value: Any = body
    for name in place.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


@asynccontextmanager
async def open_bench(subject: Subject) -> AsyncIterator[Bench]:
    """Open a client with a scripted provider behind it; leaving closes both."""
    async with AsyncExitStack() as stack:
        bench = Bench(subject, await stack.enter_async_context(ScriptedProvider()))
        await bench.open(stack)
        yield bench
