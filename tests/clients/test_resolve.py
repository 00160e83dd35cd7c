"""From what a person writes to a model."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest

from arlm.clients import BaseLM, FunctionLM, default_model, resolve_model
from arlm.clients.openai import OpenAILM
from arlm.errors import ConfigError
from arlm.testing import ScriptedLM
from arlm.types import Completion, Message
from commandline import NO_SERVERS


async def shout(messages: list[Message]) -> str:
    return messages[-1]["content"].upper()


@pytest.mark.parametrize(
    ("spec", "provider", "model"),
    [
        ("ollama/llama3.2:3b", "ollama", "llama3.2:3b"),
        ("ollama:llama3.2:3b", "ollama", "llama3.2:3b"),
        ("vllm/meta/llama", "vllm", "meta/llama"),
        ("vllm:meta/llama", "vllm", "meta/llama"),
        ("  VLLM/x ", "vllm", "x"),
    ],
)
def test_the_first_separator_of_either_kind_splits(spec: str, provider: str, model: str) -> None:
    lm = resolve_model(spec)
    assert (lm.provider, lm.model, lm.name) == (provider, model, f"{provider}/{model}")


def test_a_model_object_passes_as_it_is() -> None:
    lm = ScriptedLM()
    assert resolve_model(lm) is lm


async def test_an_async_function_is_a_model() -> None:
    lm = resolve_model(shout)
    assert lm.name == "function/shout"
    assert await lm.acompletion("hi") == Completion(text="HI", model="function/shout")


async def test_a_partial_and_a_callable_object_are_models_too() -> None:
    class Greeter:
        async def __call__(self, messages: list[Message]) -> str:
            return "hello"

    async def greet(word: str, messages: list[Message]) -> str:
        return word

    assert (await resolve_model(functools.partial(greet, "hey")).acompletion("x")).model == "function/greet"
    assert (await resolve_model(Greeter()).acompletion("x")).text == "hello"


def test_a_blocking_function_is_refused_with_what_to_write_instead() -> None:
    def block(messages: list[Message]) -> str:
        return "no"

    with pytest.raises(ConfigError, match=r"async def block\(messages\)"):
        resolve_model(block)  # type: ignore[arg-type]


async def test_a_function_takes_neither_another_model_nor_sampling() -> None:
    lm = FunctionLM(shout)
    with pytest.raises(ConfigError, match="no model 'x'"):
        await lm.acompletion("hi", model="x")
    with pytest.raises(ConfigError, match="no sampling"):
        await lm.acompletion("hi", sampling={"temperature": 1})


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("gpt-5-mini", "did you mean 'openai/gpt-5-mini'"),
        ("ollama", "a provider alone: write 'ollama/name'"),
        ("ollama/", "write 'ollama/name'"),
        ("olama/x", "did you mean 'ollama'"),
        ("", "names no provider"),
        (7, "not int"),
        (ScriptedLM, "the class ScriptedLM"),
    ],
)
def test_what_is_no_model_says_what_to_write(spec: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve_model(spec)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "variable"),
    [
        ("openai/gpt-5-mini", "OPENAI_API_KEY"),
        ("azure/mine", "AZURE_OPENAI_API_KEY"),
        ("openrouter/a/b", "OPENROUTER_API_KEY"),
        ("vercel/a/b", "AI_GATEWAY_API_KEY"),
    ],
)
def test_a_missing_key_names_its_variable(spec: str, variable: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        resolve_model(spec)


def test_azure_names_each_variable_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "key")
    with pytest.raises(ConfigError, match="AZURE_OPENAI_ENDPOINT"):
        resolve_model("azure/mine")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://me.openai.azure.com")
    with pytest.raises(ConfigError, match="OPENAI_API_VERSION"):
        resolve_model("azure/mine")
    monkeypatch.setenv("OPENAI_API_VERSION", "2024-10-21")
    assert resolve_model("azure/mine").name == "azure/mine"


def test_an_empty_key_is_a_missing_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "  ")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        resolve_model("openai/x")


def test_a_key_with_a_line_break_inside_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match="OPENAI_API_KEY") as caught:
        OpenAILM("x", api_key="sk-secret\nsecret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "url"),
    [
        (None, "http://localhost:11434/v1"),
        ("127.0.0.1:9999", "http://127.0.0.1:9999/v1"),
        ("gpu-box", "http://gpu-box:11434/v1"),
        (":9999", "http://localhost:9999/v1"),
        ("[::1]:9999", "http://[::1]:9999/v1"),
        ("https://ollama.example.com", "https://ollama.example.com/v1"),
        ("http://gpu-box:11434/", "http://gpu-box:11434/v1"),
        ("http://gpu-box/ollama/v1", "http://gpu-box/ollama/v1"),
    ],
)
def test_ollamas_host_may_be_a_host_a_port_or_a_url(monkeypatch: pytest.MonkeyPatch, value: str | None, url: str) -> None:
    if value is not None:
        monkeypatch.setenv("OLLAMA_HOST", value)
    assert OpenAILM("x", provider="ollama").base_url == url


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://x", "http://", "http://x:port", "nonsense"])
def test_a_base_url_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("VLLM_BASE_URL", url)
    with pytest.raises(ConfigError, match="VLLM_BASE_URL"):
        resolve_model("vllm/x")


def test_a_base_url_with_credentials_is_refused_without_showing_them() -> None:
    with pytest.raises(ConfigError) as caught:
        OpenAILM("x", api_key="key", base_url="https://user:hunter2@host/v1")
    assert "hunter2" not in str(caught.value)


async def test_the_default_model_is_of_the_first_provider_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", "key")
    assert (await default_model()).lm.name == "openrouter/openai/gpt-5-mini"
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    assert (await default_model()).lm.name == "openai/gpt-5-mini"


async def test_without_any_key_the_default_names_the_variables_and_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NO_SERVERS.items():
        monkeypatch.setenv(name, value)
    variables = "OPENAI_API_KEY, ANTHROPIC_API_KEY, GOOGLE_API_KEY, OPENROUTER_API_KEY, AI_GATEWAY_API_KEY"
    with pytest.raises(ConfigError, match=f"set one of {variables}.*arlm demo"):
        await default_model()


def test_resolving_a_model_imports_no_sdk() -> None:
    program = (
        "import asyncio, os, sys; os.environ['OPENROUTER_API_KEY'] = os.environ['ANTHROPIC_API_KEY'] = 'key'\n"
        "from arlm.clients import resolve_model, default_model\n"
        "import arlm.clients.openai, arlm.clients.prices, arlm.testing\n"
        "resolve_model('openrouter/x'); asyncio.run(default_model())\n"
        "heavy = ('openai', 'anthropic', 'google.genai', 'portkey_ai', 'aiohttp', 'httpx2', 'httpx', 'pydantic', 'genai_prices')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_no_repr_shows_a_key() -> None:
    lm = OpenAILM("x", api_key="sk-very-secret-key")
    assert isinstance(lm, BaseLM)
    assert repr(lm) == "OpenAILM('openai/x')"
    assert "secret" not in repr(lm._endpoint)
