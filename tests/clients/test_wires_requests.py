"""Requests as no SDK would send them, and paths that an SDK does not show, to the scripted provider."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from arlm.testing import ScriptedProvider

HELLO: Any = [{"role": "user", "content": "hello"}]


async def test_azure_may_name_its_model_by_the_path_alone(provider: ScriptedProvider) -> None:
    async with httpx.AsyncClient(base_url=provider.root, trust_env=False) as client:
        path = "/openai/deployments/my%20deployment/chat/completions?api-version=2024-10-21"
        assert (await client.post(path, json={"messages": HELLO})).json()["model"] == "my deployment"
        assert (await client.post("/v1/chat/completions", json={"messages": HELLO})).status_code == 400


@pytest.mark.parametrize(
    ("path", "body", "headers", "told"),
    [
        ("/v1/messages", {"model": "m", "max_tokens": 9, "messages": HELLO}, {}, "anthropic-version: header is required"),
        ("/v1/messages", {"model": "m", "max_tokens": 9, "messages": []}, {"anthropic-version": "x"}, "at least one message is required"),
        ("/v1beta/models/m:generateContent", {"contents": []}, {}, "contents is not specified"),
        ("/v1beta/models/m:generateContent", [], {}, "Invalid JSON payload"),
        ("/v1/responses", {"model": "m"}, {}, "could not parse the JSON body"),
    ],
)
async def test_a_request_that_is_none_is_refused(
    provider: ScriptedProvider, path: str, body: object, headers: dict[str, str], told: str
) -> None:
    async with httpx.AsyncClient(base_url=provider.root, trust_env=False) as client:
        reply = await client.post(path, json=body, headers=headers)
    assert reply.status_code == 400
    assert told in reply.json()["error"]["message"]
    assert (await provider.stats())["rejected"] == 1


@pytest.mark.parametrize("missing", ["max_tokens", "model", "messages"])
async def test_a_field_that_anthropic_requires_is_named(provider: ScriptedProvider, missing: str) -> None:
    body = {"model": "m", "max_tokens": 9, "messages": HELLO}
    del body[missing]
    async with httpx.AsyncClient(base_url=provider.root, trust_env=False) as client:
        reply = await client.post("/v1/messages", json=body, headers={"anthropic-version": "2023-06-01"})
    assert (reply.status_code, reply.json()["error"]["message"]) == (400, f"{missing}: Field required")


async def test_vertex_names_its_model_below_project_and_location(provider: ScriptedProvider) -> None:
    await provider.configure({"key": "a token"})
    path = "/v1beta1/projects/p/locations/l/publishers/google/models/gemini-x:generateContent"
    body = {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}
    async with httpx.AsyncClient(base_url=provider.root, trust_env=False) as client:
        reply = await client.post(path, json=body, headers={"authorization": "Bearer a token"})
    assert reply.json()["modelVersion"] == "gemini-x"
    assert (await provider.stats())["by_model"] == {"gemini-x": 1}


async def test_a_path_that_is_not_there_is_not_found_in_the_vendors_own_words(provider: ScriptedProvider) -> None:
    async with httpx.AsyncClient(base_url=provider.root, trust_env=False) as client:
        told = [
            (await client.get("/v9/nothing", headers=headers)).json()
            for headers in ({}, {"anthropic-version": "x"}, {"x-goog-api-key": "k"})
        ]
    assert told[0]["error"]["message"] == "Invalid URL (GET /v9/nothing)"
    assert told[1]["error"]["type"] == "not_found_error"
    assert told[2]["error"]["status"] == "NOT_FOUND"
