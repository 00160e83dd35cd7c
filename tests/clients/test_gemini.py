"""What is Gemini's own: thinking, blocked prompts, Vertex AI. What all clients share is in the conformance suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arlm.clients.gemini import GeminiLM
from arlm.errors import AuthError, BadRequest, ConfigError, Refused
from arlm.testing import ScriptedProvider
from arlm.testing.lm_canned import CannedServer, said

KEY = "a-very-secret-google-key"
TOKEN = "ya29.a-very-secret-token"


def lm_of(provider: ScriptedProvider, model: str = "small", **options: Any) -> GeminiLM:
    return GeminiLM(model, **{"base_url": provider.root, "api_key": KEY, **options})


async def thinking_of(provider: ScriptedProvider) -> Any:
    return (await provider.requests())[-1]["body"]["generationConfig"]["thinkingConfig"]


@pytest.mark.parametrize(
    ("model", "effort", "config"),
    [
        ("gemini-2.5-flash", "none", {"thinkingBudget": 0}),
        ("gemini-2.5-pro", "high", {"thinkingBudget": 24_576}),
        ("gemini-3.5-flash", "low", {"thinkingLevel": "LOW"}),
        ("gemini-3.5-flash", "minimal", {"thinkingLevel": "MINIMAL"}),
    ],
)
async def test_an_effort_is_a_budget_or_a_level_as_the_model_has_it(
    provider: ScriptedProvider, model: str, effort: str, config: dict[str, Any]
) -> None:
    await lm_of(provider, model).acompletion("x", sampling={"reasoning_effort": effort})
    assert await thinking_of(provider) == config


@pytest.mark.parametrize(("model", "effort"), [("gemini-2.5-flash", "xhigh"), ("gemini-3.5-flash", "none"), ("gemini-3.5-flash", "max")])
async def test_an_effort_that_the_model_does_not_have_is_refused(provider: ScriptedProvider, model: str, effort: str) -> None:
    with pytest.raises(ConfigError, match=effort):
        lm_of(provider, model).check_sampling({"reasoning_effort": effort})


async def test_a_blocked_prompt_says_why(provider: ScriptedProvider) -> None:
    await provider.configure({"prompt_blocked": True})
    with pytest.raises(Refused, match="PROHIBITED_CONTENT") as caught:
        await lm_of(provider).acompletion("x" * 40)
    assert caught.value.usage is not None
    assert (caught.value.usage.input_tokens, caught.value.usage.output_tokens) == (10, 0)


async def test_a_reply_without_candidates_and_without_a_reason_is_no_completion() -> None:
    async with CannedServer([said({"usageMetadata": {"promptTokenCount": 3}})]) as server:
        with pytest.raises(BadRequest, match="no completion"):
            await GeminiLM("m", base_url=server.root, api_key=KEY).acompletion("x")


async def test_a_models_name_may_have_characters_that_paths_have_not(provider: ScriptedProvider) -> None:
    completion: Any = await lm_of(provider).acompletion("x", model="tunedModels/mine é")
    assert completion.text == "x"
    assert "mine%20%C3%A9" in (await provider.requests())[-1]["path"]


@pytest.fixture
def vertex(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")


async def test_vertex_with_a_key_has_vertexs_path(provider: ScriptedProvider, vertex: None) -> None:
    await provider.configure({"key": KEY})
    completion: Any = await lm_of(provider).acompletion("x")
    assert completion.text == "x"
    request = (await provider.requests())[-1]
    assert request["path"].endswith("/publishers/google/models/small:generateContent")
    assert request["headers"]["x-goog-api-key"] == KEY


@pytest.fixture
async def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vertex: None) -> Any:
    """The machine's Google credentials: workload identity, whose tokens a server on this machine gives."""
    kinds = {"token_type": "Bearer", "issued_token_type": "urn:ietf:params:oauth:token-type:access_token"}
    tokens = [said({"access_token": f"{TOKEN}-{number}", "expires_in": 3_600, **kinds}) for number in range(9)]
    async with CannedServer(tokens) as server:
        file, identity = tmp_path / "credentials.json", tmp_path / "identity"
        identity.write_text("who this machine is")
        described = {
            "type": "external_account",
            "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/p",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": f"{server.root}/token",
            "credential_source": {"file": str(identity)},
        }
        file.write_text(json.dumps(described))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "my-project")
        monkeypatch.setenv("GOOGLE_CLOUD_LOCATION", "europe-west4")
        yield server


async def test_vertex_uses_the_machines_credentials(provider: ScriptedProvider, credentials: CannedServer) -> None:
    await provider.configure({"key": f"{TOKEN}-0"})
    lm = GeminiLM("small", base_url=provider.root)
    for _ in range(3):
        completion: Any = await lm.acompletion("x")
        assert completion.text == "x"
    assert credentials.asked == 1
    request = (await provider.requests())[-1]
    assert request["path"].endswith("/projects/my-project/locations/europe-west4/publishers/google/models/small:generateContent")
    assert request["headers"]["authorization"] == f"Bearer {TOKEN}-0"
    assert "x-goog-api-key" not in request["headers"]


async def test_a_token_that_is_turned_away_is_renewed_once_and_never_shown(provider: ScriptedProvider, credentials: CannedServer) -> None:
    await provider.configure({"key": f"{TOKEN}-0"})
    lm = GeminiLM("small", base_url=provider.root)
    await lm.acompletion("x")
    await provider.configure({"faults": ["401"]})
    completion: Any = await lm.acompletion("renewed")
    assert (completion.text, credentials.asked) == ("renewed", 2)
    assert (await provider.requests())[-1]["headers"]["authorization"] == f"Bearer {TOKEN}-1"
    await provider.configure({"faults": ["401", "401"]})
    with pytest.raises(AuthError) as caught:
        await lm.acompletion("x")
    assert credentials.asked == 3
    assert TOKEN not in str(caught.value)
    assert TOKEN not in repr(caught.value)
