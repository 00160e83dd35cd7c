"""A provider whose SDK is not installed is an error before anything is started, and says what to do."""

from __future__ import annotations

import sys

import pytest

import arlm
from arlm.clients import resolve_model


@pytest.mark.parametrize(
    ("model", "module", "variable", "extra"),
    [
        ("anthropic/claude-haiku-4-5", "anthropic", "ANTHROPIC_API_KEY", "anthropic"),
        ("gemini/gemini-3.5-flash", "google.genai", "GEMINI_API_KEY", "gemini"),
        ("portkey/@openai/x", "portkey_ai", "PORTKEY_API_KEY", "portkey"),
    ],
)
async def test_a_missing_sdk_names_its_extra_before_a_run_begins(
    model: str, module: str, variable: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "sk-of-nobody")
    monkeypatch.setitem(sys.modules, module, None)  # as Python marks what cannot be imported
    with pytest.raises(arlm.ConfigError, match=rf"pip install 'arlm\[{extra}\]'"):
        resolve_model(model)
    events: list[object] = []
    with pytest.raises(arlm.ConfigError, match=extra):
        await arlm.run("q", model=model, on_event=events.append)
    assert events == []
