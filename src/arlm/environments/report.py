"""What a worker says of a cell, while it runs and when it has ended. Code that may lie sends it: every field is checked and cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..types import JSON, CellResult

OUTPUT_CHARS = 20_000  # of one cell's output that the model sees
CUT_CHARS = 200  # beyond that, for the words that stand where the guest has cut
ERROR_CHARS = 1_000  # of an error that a cell reports
MAX_NOTES = 20  # remarks of a cell that are passed on
NOTE_CHARS = 500  # of one
MAX_VARIABLES = 200  # that are named
NAME_CHARS = 200  # of a variable, and of its type


def read_report(reply: JSON, known: Mapping[str, str]) -> CellResult:
    """A cell's report as a result, without what only the host knows of the cell. ``known``: the variables where it names none."""
    report = reply if isinstance(reply, dict) else {}
    output, chars, error = report.get("output"), report.get("output_chars"), report.get("error")
    variables, notes = report.get("variables"), report.get("notes")
    text = output[: OUTPUT_CHARS + CUT_CHARS] if isinstance(output, str) else ""
    if isinstance(notes, list):
        text += "".join(f"\n[{note[:NOTE_CHARS]}]" for note in notes[:MAX_NOTES] if isinstance(note, str))
    if isinstance(variables, dict):
        known = {str(name)[:NAME_CHARS]: str(kind)[:NAME_CHARS] for name, kind in list(variables.items())[:MAX_VARIABLES]}
    return CellResult(
        output=text,
        output_chars=chars if isinstance(chars, int) else len(text),
        error=error[:ERROR_CHARS] if isinstance(error, str) else None,
        answer_ready=report.get("ready") is True,
        answer=report.get("content"),
        variables=dict(known),
    )


class Streamed:
    """The output of a running cell that has come so far, up to a bound."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._chars = 0

    def take(self, message: Mapping[str, Any]) -> str:
        """The piece of output that a note brings; empty where it brings none, or enough has come."""
        text = message.get("text")
        if message["note"] != "output" or not isinstance(text, str) or self._chars >= OUTPUT_CHARS:
            return ""
        self._pieces.append(text[:OUTPUT_CHARS])
        self._chars += len(text)
        return self._pieces[-1]

    def __str__(self) -> str:
        return "".join(self._pieces)[:OUTPUT_CHARS]
