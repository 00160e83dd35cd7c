"""https, with a certificate of one's own: trusted by the variable that the SDKs read too, and refused without it."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arlm.clients import BaseLM
from arlm.clients.anthropic import AnthropicLM
from arlm.clients.gemini import GeminiLM
from arlm.clients.openai import OpenAILM
from arlm.clients.portkey import PortkeyLM
from arlm.errors import BadRequest
from arlm.testing.lm_canned import CannedServer, said
from certificates import self_signed

KEY = "sk-of-nobody"
CHAT = {"id": "c", "choices": [{"message": {"content": "safe"}, "finish_reason": "stop"}]}
MESSAGE = {"type": "message", "content": [{"type": "text", "text": "safe"}], "stop_reason": "end_turn", "usage": {"input_tokens": 1}}
CONTENT = {"candidates": [{"content": {"parts": [{"text": "safe"}]}, "finishReason": "STOP"}]}
CLIENTS: dict[str, tuple[Callable[[str], BaseLM], Any]] = {
    "openai": (lambda root: OpenAILM("m", base_url=f"{root}/v1", api_key=KEY), CHAT),
    "anthropic": (lambda root: AnthropicLM("m", base_url=root, api_key=KEY), MESSAGE),
    "gemini": (lambda root: GeminiLM("m", base_url=root, api_key=KEY), CONTENT),
    "portkey": (lambda root: PortkeyLM("m", base_url=f"{root}/v1", api_key=KEY), CHAT),
}


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return self_signed(tmp_path)


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.mark.parametrize("name", CLIENTS)
async def test_a_certificate_that_the_environment_names_is_trusted(
    name: str, certificate: Path, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    client, reply = CLIENTS[name]
    async with CannedServer([said(reply)], tls=tls) as server:
        completion: Any = await client(server.root).acompletion("x")
    assert (completion.text, server.asked) == ("safe", 1)


@pytest.mark.parametrize("name", CLIENTS)
async def test_a_certificate_that_nobody_names_is_refused_and_nothing_is_sent(name: str, tls: ssl.SSLContext) -> None:
    client, reply = CLIENTS[name]
    async with CannedServer([said(reply)], tls=tls) as server:
        with pytest.raises(BadRequest, match="is not trusted"):
            await client(server.root).acompletion("x")
    assert server.asked == 0
