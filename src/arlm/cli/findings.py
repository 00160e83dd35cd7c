"""A line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..types import JSON

Status = Literal["ok", "missing", "failed", "info"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report.

    Attributes:
        area: its heading.
        name: what was looked at.
        status: ``missing`` is no fault; ``failed`` is.
        text: what was found, and what to do about it.
        facts: the same for programs.
    """

    area: str
    name: str
    status: Status
    text: str
    facts: dict[str, JSON] = field(default_factory=dict)
