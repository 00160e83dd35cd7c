"""Which providers' SDKs are installed here, found out without importing one."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

from .rows import Row

# What each SDK is imported as, by its name as pip knows it.
MODULES: Mapping[str, str] = {"openai": "openai", "anthropic": "anthropic", "google-genai": "google.genai", "portkey-ai": "portkey_ai"}


def is_installed(row: Row) -> bool:
    """Whether the provider's SDK can be imported, as far as can be seen without doing so."""
    try:
        return importlib.util.find_spec(MODULES[row.package]) is not None
    except (ImportError, ValueError):  # no package above it; or one that somebody put into sys.modules by hand
        return False


def installed_version(package: str) -> str | None:
    """The version that pip has installed; None: none."""
    try:
        return version_of(package)
    except PackageNotFoundError:
        return None


def install_command(row: Row) -> str:
    """What installs the provider's SDK."""
    return f"pip install 'arlm[{row.extra}]'" if row.extra else "pip install arlm"
