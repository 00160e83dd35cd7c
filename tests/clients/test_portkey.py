"""What is Portkey's own: virtual keys, configs, the provider behind. What all clients share is in the conformance suite."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from arlm.clients.portkey import PortkeyLM
from arlm.errors import AuthError, ConfigError

if TYPE_CHECKING:
    from arlm.testing import ScriptedProvider

KEY = "a-very-secret-portkey-key"
VIRTUAL = "openai-virtual-secret-1"


def lm_of(provider: ScriptedProvider, **options: Any) -> PortkeyLM:
    return PortkeyLM("small", base_url=provider.url, api_key=KEY, **options)


async def headers_of(provider: ScriptedProvider) -> dict[str, str]:
    headers: dict[str, str] = (await provider.requests())[-1]["headers"]
    return {name.removeprefix("x-portkey-"): value for name, value in headers.items() if name.startswith("x-portkey-")}


async def test_the_key_stands_in_portkeys_own_header_and_nowhere_else(provider: ScriptedProvider) -> None:
    await provider.configure({"key": KEY})
    await lm_of(provider).acompletion("x")
    request = (await provider.requests())[-1]
    assert [name for name, value in request["headers"].items() if KEY in value] == ["x-portkey-api-key"]
    assert "authorization" not in request["headers"]


@pytest.mark.parametrize(
    ("option", "header", "value"),
    [
        ("virtual_key", "virtual-key", VIRTUAL),
        ("config", "config", "pc-my-config-1"),
        ("portkey_provider", "provider", "anthropic"),
    ],
)
@pytest.mark.parametrize("by", ["argument", "variable"])
async def test_what_leads_to_a_provider_is_sent(
    provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch, option: str, header: str, value: str, by: str
) -> None:
    if by == "variable":
        monkeypatch.setenv(f"PORTKEY_{option.removeprefix('portkey_').upper()}", value)
    await lm_of(provider, **({option: value} if by == "argument" else {})).acompletion("x")
    headers = await headers_of(provider)
    assert headers[header] == value
    assert not {"virtual-key", "config", "provider"} & headers.keys() - {header}


async def test_a_config_may_be_written_out(provider: ScriptedProvider) -> None:
    config = {"strategy": {"mode": "fallback"}, "targets": [{"virtual_key": VIRTUAL}]}
    await lm_of(provider, config=config).acompletion("x")
    assert json.loads((await headers_of(provider))["config"]) == config


def test_a_config_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="list"):
        PortkeyLM("m", api_key=KEY, config=["a"])  # type: ignore[arg-type]


async def test_neither_a_virtual_key_nor_a_config_is_shown(provider: ScriptedProvider) -> None:
    secret = "sk-inside-of-a-config-0123456789"
    lm = lm_of(provider, virtual_key=VIRTUAL, config={"targets": [{"api_key": secret}]})
    assert VIRTUAL not in repr((lm, lm.rate_key))
    assert secret not in repr((lm, lm.rate_key))
    await provider.configure({"faults": ["401", "500"]})
    for _ in range(2):
        with pytest.raises(Exception, match="portkey") as caught:
            await lm.acompletion("x")
        assert VIRTUAL not in repr(caught.value)
        assert secret not in repr(caught.value)


async def test_two_ways_to_a_provider_have_two_limits(provider: ScriptedProvider) -> None:
    assert lm_of(provider, virtual_key="one").rate_key != lm_of(provider, virtual_key="two").rate_key


async def test_a_wrong_key_names_its_variable(provider: ScriptedProvider) -> None:
    await provider.configure({"key": "another"})
    with pytest.raises(AuthError, match="PORTKEY_API_KEY"):
        await lm_of(provider).acompletion("x")


async def test_a_model_of_the_catalogue_keeps_its_name(provider: ScriptedProvider) -> None:
    completion: Any = await lm_of(provider).acompletion("x", model="@openai-prod/gpt-5-mini")
    assert completion.model == "portkey/@openai-prod/gpt-5-mini"
    assert (await provider.requests())[-1]["body"]["model"] == "@openai-prod/gpt-5-mini"
