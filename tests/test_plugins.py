"""Entry points: found by group, loaded one at a time, broken ones alone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from arlm import plugins
from arlm.clients import BaseLM, resolve_model
from arlm.errors import ConfigError
from arlm.plugins import CLIENTS, load, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A distribution on the path with one good, one broken and one presumptuous provider."""
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    points = (
        "theirs = theirs_plugin:provider",
        "broken = theirs_missing:provider",
        "odd = theirs_plugin:odd",
        "openai = theirs_plugin:odd",
    )
    (info / "entry_points.txt").write_text("\n".join(["[arlm.clients]", *points]))
    (tmp_path / "theirs_plugin.py").write_text(
        "from arlm.clients import BaseLM\n"
        "class Theirs(BaseLM):\n"
        "    provider = 'theirs'\n"
        "    async def acompletion(self, prompt, *, model=None, sampling=None):\n"
        "        return 'theirs'\n"
        "def provider(name, model):\n"
        "    return Theirs(model)\n"
        "def odd(name, model):\n"
        "    return 'no model'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    load.cache_clear()
    yield tmp_path
    sys.modules.pop("theirs_plugin", None)
    load.cache_clear()


def test_the_built_in_providers_come_from_the_entry_points() -> None:
    assert {"openai", "azure", "openrouter", "vllm", "ollama", "vercel", "demo"} <= set(load(CLIENTS))


def test_a_group_is_read_once() -> None:
    assert load(CLIENTS) is load(CLIENTS)


@pytest.mark.usefixtures("third_party")
async def test_a_third_party_provider_works_like_a_built_in_one() -> None:
    lm = resolve_model("theirs/small")
    assert (await lm.acompletion("x")).text == "theirs"
    assert lm.name == "theirs/small"


@pytest.mark.usefixtures("third_party")
def test_a_broken_plugin_breaks_only_itself_and_says_whose_it_is() -> None:
    with pytest.raises(ConfigError, match=r"'broken' \(from theirs\).*theirs_missing"):
        resolve(CLIENTS, "broken", what="provider")
    assert isinstance(resolve_model("ollama/llama3"), BaseLM)


@pytest.mark.usefixtures("third_party")
def test_a_plugin_that_gives_no_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="'odd' gave str"):
        resolve_model("odd/x")


@pytest.mark.usefixtures("third_party")
def test_no_other_package_can_take_over_a_built_in_name() -> None:
    assert load(CLIENTS)["openai"].value == "arlm.clients.openai:provider"


def test_an_unknown_name_lists_what_there_is_and_guesses() -> None:
    with pytest.raises(ConfigError, match=r"unknown provider 'opneai'; did you mean 'openai'\?; there is: .*ollama"):
        resolve(CLIENTS, "opneai", what="provider")


def test_a_word_that_is_near_nothing_gets_no_guess() -> None:
    assert plugins.did_you_mean("zzzz", ["openai"]) == ""
