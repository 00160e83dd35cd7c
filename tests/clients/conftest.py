from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from arlm.clients.rows import ROWS
from arlm.testing import ScriptedProvider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FURTHER = (  # what the SDKs read besides
    *("OPENAI_CUSTOM_HEADERS", "OPENAI_ADMIN_KEY", "OPENAI_LOG", "ANTHROPIC_CUSTOM_HEADERS", "ANTHROPIC_PROFILE", "ANTHROPIC_LOG"),
    *("GOOGLE_GENAI_API_VERSION", "GOOGLE_GENAI_DEFAULT_HEADERS", "GOOGLE_GENAI_ACCESS_TOKEN", "GOOGLE_GENAI_USE_ENTERPRISE"),
    *("GOOGLE_VERTEX_BASE_URL", "GOOGLE_APPLICATION_CREDENTIALS"),
)
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_providers_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in ROWS.values():
        for name in row.all_variables:
            monkeypatch.delenv(name, raising=False)
    for name in (*FURTHER, *PROXIES, *(name.lower() for name in PROXIES)):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider() as provider:
        yield provider
