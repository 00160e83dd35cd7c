"""Language models: the contract, the providers, and what wraps a call (retries, estimates, prices)."""

from __future__ import annotations

from .base import BaseLM, Prompt
from .function import FunctionLM
from .resolve import ModelSpec, default_model, resolve_model

__all__ = ["BaseLM", "FunctionLM", "ModelSpec", "Prompt", "default_model", "resolve_model"]
