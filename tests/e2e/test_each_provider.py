"""`arlm run` with each provider, through the command line alone: its own SDK, and nothing but its own variables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from arlm.testing import start_provider
from commandline import arlm

KEY = "sk-of-nobody"
COUNT = """```repl
lines = context.splitlines()
parts = llm_query_batched([f"how many lines?\\n{part}" for part in (lines[:50], lines[50:])])
answer.update(content=" ".join([str(len(lines)), *(part.split(chr(10))[0] for part in parts)]), ready=True)
```"""
# The model's name on the command line, and the variables that lead to the provider; `{url}` and `{root}` are its addresses.
WAYS = {
    "openai": ("openai/gpt-5-mini", {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "{url}"}),
    "responses": ("openai/o3-pro", {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "{url}"}),
    "azure": ("azure/mine", {"AZURE_OPENAI_API_KEY": KEY, "AZURE_OPENAI_ENDPOINT": "{root}", "OPENAI_API_VERSION": "2024-10-21"}),
    "openrouter": ("openrouter/openai/gpt-5-mini", {"OPENROUTER_API_KEY": KEY, "OPENROUTER_BASE_URL": "{url}"}),
    "vercel": ("vercel/openai/gpt-5-mini", {"AI_GATEWAY_API_KEY": KEY, "AI_GATEWAY_BASE_URL": "{url}"}),
    "vllm": ("vllm/meta-llama/Llama-3.1-8B-Instruct", {"VLLM_API_KEY": KEY, "VLLM_BASE_URL": "{url}"}),
    "ollama": ("ollama/qwen3:8b", {"OLLAMA_HOST": "{root}"}),
    "anthropic": ("anthropic/claude-haiku-4-5", {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": "{root}"}),
    "gemini": ("gemini/gemini-3.5-flash", {"GEMINI_API_KEY": KEY, "GOOGLE_GEMINI_BASE_URL": "{root}"}),
    "portkey": ("portkey/@openai/gpt-5-mini", {"PORTKEY_API_KEY": KEY, "PORTKEY_PROXY": "{url}", "PORTKEY_VIRTUAL_KEY": "vk-of-nobody"}),
}
WIRES = {"responses": "responses", "anthropic": "anthropic", "gemini": "gemini"}


@pytest.mark.parametrize("name", WAYS)
async def test_a_file_is_answered_about_by_each_provider(name: str, tmp_path: Path) -> None:
    model, variables = WAYS[name]
    file = tmp_path / "lines.txt"
    file.write_text("".join(f"line {number}\n" for number in range(100)))
    script = {"turns": [COUNT], "cached_tokens": 7, "reasoning_tokens": 3, "key": None if name == "ollama" else KEY}
    async with start_provider(script) as provider:
        given = {variable: value.format(url=provider.url, root=provider.root) for variable, value in variables.items()}
        done = await arlm("run", "--json", "-m", model, "How many lines?", str(file), **given)
        stats, requests = await provider.stats(), await provider.requests()
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["answer"] == "100 how many lines? how many lines?"
    [(used_model, usage)] = result["usage"]["models"].items()
    assert used_model == model
    counted = {word: stats[f"{theirs}_tokens"] for word, theirs in (("input", "prompt"), ("output", "completion"), ("cached", "cached"))}
    assert {word: usage[f"{word}_tokens"] for word in counted} == counted
    assert (usage["calls"], stats["answered"]) == (3, 3)
    assert {request["wire"] for request in requests} == {WIRES.get(name, "chat")}
    assert KEY not in done.out + done.err


def test_all_extras_stand_in_one_environment() -> None:
    """Their SDKs are imported into one process, and pip finds no two that exclude each other."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", "import openai, anthropic, google.genai, portkey_ai"], check=True)
    checked = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
