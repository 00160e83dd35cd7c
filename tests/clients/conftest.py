from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from arlm.clients.openai_rows import ROWS
from arlm.testing import ScriptedProvider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FURTHER = ("OPENAI_API_VERSION", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS", "AZURE_OPENAI_AD_TOKEN")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_providers_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in ROWS.values():
        for name in (row.base_url_variable, row.key_variable):
            if name is not None:
                monkeypatch.delenv(name, raising=False)
    for name in (*FURTHER, *PROXIES, *(name.lower() for name in PROXIES)):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider() as provider:
        yield provider
