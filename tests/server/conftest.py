"""A handler on each transport."""

from collections.abc import AsyncIterator

import pytest
from raw_guest import Host, open_host

from held import held


@pytest.fixture(params=["unix", "tcp"])
def transport(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def host(transport: str) -> AsyncIterator[Host]:
    async with held(open_host(transport)) as host:
        yield host
