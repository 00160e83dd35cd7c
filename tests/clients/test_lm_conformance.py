"""Every client is held to the same suite."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from arlm.clients import BaseLM, FunctionLM
from arlm.clients.anthropic import AnthropicLM
from arlm.clients.gemini import GeminiLM
from arlm.clients.openai import OpenAILM
from arlm.clients.portkey import PortkeyLM
from arlm.errors import AuthError
from arlm.testing import ScriptedLM, lm_conformance
from arlm.testing.lm_canned import CannedServer, said
from arlm.testing.lm_conformance import Bench, Case, Stage, Subject
from arlm.types import Message

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

    from _pytest.mark.structures import ParameterSet

    from arlm.types import Completion


def openai(stage: Stage, model: str = "small", **options: Any) -> OpenAILM:
    return OpenAILM(model, base_url=stage.url, api_key=stage.key, timeout=stage.timeout, **options)


def azure(stage: Stage) -> OpenAILM:
    given = {"base_url": stage.root, "api_key": stage.key, "timeout": stage.timeout}
    return OpenAILM("small", provider="azure", **given)


def keyless(stage: Stage, provider: str) -> OpenAILM:
    return OpenAILM("small", provider=provider, base_url=stage.url, timeout=stage.timeout)


def anthropic(stage: Stage) -> AnthropicLM:
    return AnthropicLM("small", base_url=stage.root, api_key=stage.key, timeout=stage.timeout)


def gemini(stage: Stage) -> GeminiLM:
    return GeminiLM("small", base_url=stage.root, api_key=stage.key, timeout=stage.timeout)


def portkey(stage: Stage) -> PortkeyLM:
    return PortkeyLM("small", base_url=stage.url, api_key=stage.key, timeout=stage.timeout, portkey_provider="openai")


def function(stage: Stage) -> FunctionLM:
    async def small(messages: list[Message]) -> str:
        return (await stage.answer(messages, "small")).text

    return FunctionLM(small)


class OneMethod(BaseLM):
    """What a third party writes at least."""

    provider = "lab"

    def __init__(self, stage: Stage) -> None:
        super().__init__("small")
        self._stage = stage

    async def acompletion(self, prompt: Any, *, model: str | None = None) -> Completion:  # type: ignore[override]
        return await self._stage.answer(list(prompt), (model or self.model).removeprefix("lab/"))


def scripted(stage: Stage) -> ScriptedLM:
    async def step(messages: list[Message]) -> Completion:
        return await stage.answer(messages, "model")

    return ScriptedLM([step] * 1_000, sub=step)


def quill(stage: Stage) -> BaseLM:
    lm: BaseLM = quills().QuillLM("small", url=stage.root, key=stage.key, timeout=stage.timeout)
    return lm


@functools.cache
def quills() -> ModuleType:
    """The package of a third party under examples/."""
    place = Path(__file__).parents[2] / "examples/arlm-quill/src/arlm_quill/__init__.py"
    spec = importlib.util.spec_from_file_location("arlm_quill", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.asynccontextmanager
async def quill_service(stage: Stage) -> AsyncIterator[str]:
    """Quill's own wire in front of the scripted provider."""

    async def write(request: web.Request) -> web.Response:
        if request.headers["Authorization"] != f"Bearer {stage.key}":
            return web.json_response({"error": {"message": "wrong key"}}, status=401)
        asked = await request.json()
        messages = [Message(role=turn["role"], content=turn["text"]) for turn in asked["turns"]]
        completion = await stage.answer(messages, asked["model"])
        tokens = {"read": completion.usage.input_tokens, "written": completion.usage.output_tokens}
        ended = {"stop": "done"}.get(completion.finish_reason or "", completion.finish_reason)
        return web.json_response({"text": completion.text, "ended": ended, "tokens": tokens})

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/write", write)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1_024).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


CAPPED = {"max_tokens": "max_tokens"}  # what OpenAI itself now calls max_completion_tokens
NO_OPTIONS = {"sampling": "it takes no sampling options"}
NO_KEY = {"key": "it sends no key"}
ONE_MODEL = {"models": "it is one model"}
PLAIN_TEXT = dict.fromkeys(("usage", "cost", "cache_write", "finish", "thinking", "partly_filtered"), "a text says nothing of it")
QUILLS = {"temperature": "temperature", "max_tokens": "longest", "stop": "until"}
QUILL_WITHOUT = {
    **dict.fromkeys(("usage", "cost", "cache_write"), "it tells what was read and written, and nothing else"),
    "sampling": "its settings stop at its own server here; tests/e2e/test_third_party.py looks at them",
}
KEPT = {"an_unknown_option_is_refused": "a scripted model takes every option and keeps it for the test"}

SUBJECTS = [
    Subject(name="openai", open=openai, wire="chat"),
    Subject(
        name="openai-responses",
        open=functools.partial(openai, model="gpt-5.5-pro"),
        wire="responses",
        models=("gpt-5.5-pro", "o3-pro"),
    ),
    Subject(name="azure", open=azure, wire="chat"),
    Subject(name="openrouter", open=functools.partial(openai, provider="openrouter"), wire="chat", options=CAPPED),
    Subject(name="vercel", open=functools.partial(openai, provider="vercel"), wire="chat", options=CAPPED),
    Subject(name="vllm", open=functools.partial(openai, provider="vllm"), wire="chat", options=CAPPED),
    Subject(name="ollama", open=functools.partial(keyless, provider="ollama"), wire="chat", options=CAPPED, without=NO_KEY),
    Subject(name="anthropic", open=anthropic, wire="anthropic"),
    Subject(name="gemini", open=gemini, wire="gemini"),
    Subject(name="portkey", open=portkey, wire="chat", options=CAPPED),
    Subject(name="quill", open=quill, behind=quill_service, wire="none", options=QUILLS, without=QUILL_WITHOUT),
    Subject(name="function", open=function, wire="none", without={**NO_OPTIONS, **ONE_MODEL, **PLAIN_TEXT}),
    Subject(name="one-method", open=OneMethod, wire="none", without=NO_OPTIONS),
    Subject(name="scripted", open=scripted, wire="none", models=("model", "other"), without={**NO_OPTIONS, **ONE_MODEL}, unmet=KEPT),
]
PACKAGES: Mapping[str, str] = {"anthropic": "anthropic", "gemini": "google.genai", "portkey": "portkey_ai"}


@pytest.fixture(autouse=True)
def azures_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_VERSION", "2024-10-21")


def parameters() -> Iterator[ParameterSet]:
    """Each case for each subject; what is not met is skipped without being set up, as there are a thousand of them."""
    for subject in SUBJECTS:
        package = PACKAGES.get(subject.name)
        is_missing = package is not None and importlib.util.find_spec(package) is None
        missing = f"{package} is not installed: pip install 'arlm[{subject.name}]'" if is_missing else None
        for case in lm_conformance.CASES:
            reason = missing or lm_conformance.unmet(subject, case)
            marks = [pytest.mark.skip(reason)] if reason else []
            yield pytest.param(subject, case, id=f"{subject}-{case}", marks=marks)


@pytest.mark.parametrize(("subject", "case"), [*parameters()])
async def test_a_client_conforms(subject: Subject, case: Case) -> None:
    await lm_conformance.check(subject, case)


def test_case_names_are_unique() -> None:
    names = [case.name for case in lm_conformance.CASES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("declared", [{"unmet": {"no_such_thing": "because"}}, {"without": {"no_such_thing": "because"}}])
def test_declaring_what_is_no_case_or_need_is_an_error(declared: dict[str, Any]) -> None:
    subject = Subject(name="mine", open=openai, wire="chat", **declared)
    with pytest.raises(ValueError, match="no_such_thing"):
        lm_conformance.unmet(subject, lm_conformance.CASES[0])


def test_a_wire_that_is_none_is_an_error_that_names_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"'http'; there is: chat, responses, anthropic, gemini, none"):
        lm_conformance.unmet(Subject(name="mine", open=openai, wire="http"), lm_conformance.CASES[0])


async def test_a_claim_that_does_not_hold_fails_with_its_own_error() -> None:
    async def every_key_is_let_in(bench: Bench) -> None:
        await bench.play(key="another")
        await bench.ask()

    case = Case(name="every_key_is_let_in", run=every_key_is_let_in, needs=frozenset())
    with pytest.raises(AuthError):
        await lm_conformance.check(SUBJECTS[0], case)


async def test_a_canned_server_says_what_it_is_told_and_counts() -> None:
    async with CannedServer([said({"error": "busy"}, 503), said({"choices": [{"message": {"content": "ok"}}]})]) as server:
        lm = OpenAILM("m", provider="vllm", base_url=f"{server.root}/v1")
        with pytest.raises(Exception, match="busy"):
            await lm.acompletion("x")
        assert [(await lm.acompletion("x")).text for _ in range(2)] == ["ok", "ok"]  # type: ignore[union-attr]
        assert server.asked == 3
