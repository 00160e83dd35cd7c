"""The providers, one row of data each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

OLLAMA_PORT = 11434

Dialect = Literal["openai", "azure", "anthropic", "gemini", "portkey"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One provider.

    Attributes:
        name: the part before the slash in a model's name.
        base_url_variable: the variable that holds the base URL.
        base_url: used where the variable is not set; None: it must be.
        key_variable: the variable that holds the key.
        other_keys: variables that are read where that one is not set, in this order.
        key_required: whether there is no call without a key.
        variables: what else is read from the environment, for people.
        max_tokens: what a Chat Completions body calls the cap on a reply's tokens.
        extra_body: what every body carries besides.
        dialect: whose SDK writes URLs and headers, and whose wire is spoken.
        package: the SDK's name as pip knows it.
        extra: the extra of arlm that installs it; None: arlm needs it anyway.
        default_model: taken when no model is given and this provider is the first that can be used; None: this one never is.
        local: whether it is a server of one's own, which may or may not be running.
    """

    name: str
    base_url_variable: str
    base_url: str | None
    key_variable: str | None
    other_keys: tuple[str, ...] = ()
    key_required: bool = True
    variables: tuple[str, ...] = ()
    max_tokens: str = "max_tokens"
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    dialect: Dialect = "openai"
    package: str = "openai"
    extra: str | None = None
    default_model: str | None = None
    local: bool = False

    @property
    def key_variables(self) -> tuple[str, ...]:
        """Every variable that may hold the key, the first that is set wins."""
        return (*([self.key_variable] if self.key_variable else []), *self.other_keys)

    @property
    def all_variables(self) -> tuple[str, ...]:
        """Every variable that is read for this provider."""
        return (*self.key_variables, self.base_url_variable, *self.variables)


# In the order in which they are tried when no model is given. The models are cheap and good at writing code.
ROWS: Mapping[str, Row] = {
    row.name: row
    for row in (
        Row(
            name="openai",
            base_url_variable="OPENAI_BASE_URL",
            base_url="https://api.openai.com/v1",
            key_variable="OPENAI_API_KEY",
            variables=("OPENAI_ORG_ID", "OPENAI_PROJECT_ID"),
            max_tokens="max_completion_tokens",
            default_model="gpt-5-mini",
        ),
        Row(
            name="anthropic",
            base_url_variable="ANTHROPIC_BASE_URL",
            base_url="https://api.anthropic.com",
            key_variable="ANTHROPIC_API_KEY",
            other_keys=("ANTHROPIC_AUTH_TOKEN",),
            dialect="anthropic",
            package="anthropic",
            extra="anthropic",
            default_model="claude-haiku-4-5",
        ),
        Row(
            name="gemini",
            base_url_variable="GOOGLE_GEMINI_BASE_URL",
            base_url="https://generativelanguage.googleapis.com",
            key_variable="GOOGLE_API_KEY",
            other_keys=("GEMINI_API_KEY",),
            variables=("GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION"),
            dialect="gemini",
            package="google-genai",
            extra="gemini",
            default_model="gemini-3.5-flash",
        ),
        Row(
            name="openrouter",
            base_url_variable="OPENROUTER_BASE_URL",
            base_url="https://openrouter.ai/api/v1",
            key_variable="OPENROUTER_API_KEY",
            extra_body={"usage": {"include": True}},  # asks for usage.cost
            default_model="openai/gpt-5-mini",
        ),
        Row(
            name="vercel",
            base_url_variable="AI_GATEWAY_BASE_URL",
            base_url="https://ai-gateway.vercel.sh/v1",
            key_variable="AI_GATEWAY_API_KEY",
            default_model="openai/gpt-5-mini",
        ),
        Row(
            name="azure",
            base_url_variable="AZURE_OPENAI_ENDPOINT",
            base_url=None,
            key_variable="AZURE_OPENAI_API_KEY",
            other_keys=("AZURE_OPENAI_AD_TOKEN",),
            variables=("OPENAI_API_VERSION",),
            max_tokens="max_completion_tokens",
            dialect="azure",
        ),
        Row(
            name="portkey",
            base_url_variable="PORTKEY_PROXY",
            base_url="https://api.portkey.ai/v1",
            key_variable="PORTKEY_API_KEY",
            variables=("PORTKEY_VIRTUAL_KEY", "PORTKEY_CONFIG", "PORTKEY_PROVIDER"),
            dialect="portkey",
            package="portkey-ai",
            extra="portkey",
        ),
        Row(
            name="ollama",
            base_url_variable="OLLAMA_HOST",
            base_url=f"http://localhost:{OLLAMA_PORT}/v1",
            key_variable=None,
            key_required=False,
            local=True,
        ),
        Row(
            name="vllm",
            base_url_variable="VLLM_BASE_URL",
            base_url="http://localhost:8000/v1",
            key_variable="VLLM_API_KEY",
            key_required=False,
            local=True,
        ),
    )
}
