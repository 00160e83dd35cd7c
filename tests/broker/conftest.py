"""A broker of its own for each test."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from broker_host import Host, Program, open_host, run_broker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Program]:
    """A broker that runs."""
    with run_broker(tmp_path) as program:
        yield program


@pytest.fixture
async def host(broker: Program) -> AsyncIterator[Host]:
    """Its host, who has greeted the supervisor and not yet heard the answer."""
    async with open_host(broker) as found:
        await found.meet()
        yield found
