"""https, with a certificate of one's own: trusted by the variable that the SDKs read too, and refused without it."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from arlm.clients import BaseLM
from arlm.clients.anthropic import AnthropicLM
from arlm.clients.gemini import GeminiLM
from arlm.clients.openai import OpenAILM
from arlm.clients.portkey import PortkeyLM
from arlm.errors import BadRequest
from arlm.testing.lm_canned import CannedServer, said

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
    """A file with a certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "arlm tests")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = tmp_path / "server.pem"
    file.write_bytes(secret + made.public_bytes(pem))
    return file


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
