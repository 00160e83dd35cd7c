import os
import sys
from collections.abc import AsyncIterator, Callable

import pytest

from arlm.cli import app
from arlm.testing import ProviderProcess, start_provider
from commandline import ANSWER, NO_SERVERS, Done, clean_environment


@pytest.fixture
async def provider() -> AsyncIterator[ProviderProcess]:
    """A provider in its own process, whose root answers at once."""
    async with start_provider({"turns": [ANSWER]}) as provider:
        yield provider


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command line inside this process: the same words, without the start of a Python."""
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)
    for name, value in NO_SERVERS.items():
        monkeypatch.setenv(name, value)

    def run(*words: str) -> Done:
        code = app.invoke(list(words))
        sys.stdout.flush()
        caught = capsys.readouterr()
        return Done(code=code, out=caught.out, err=caught.err)

    return run
