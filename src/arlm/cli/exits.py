"""Exit codes, and what a person or a program is told when a command fails."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from enum import IntEnum

from ..errors import ArlmError, ConfigError, LimitError, ProtocolError, ProviderError, SandboxError
from ..types import JSON
from .output import leave_pipe, result_json, say, write_json

FACTS = ("provider", "status", "retry_after", "limit", "used", "allowed")  # attributes of errors that the JSON form passes on


class Code(IntEnum):
    """Exit codes; README and ``--help`` list them from here. A signal ends the command with 128 and its number."""

    ANSWERED = 0
    BUG = 1
    BAD_INPUT = 2
    PROVIDER = 3
    LIMIT = 4
    SANDBOX = 5
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


MEANINGS: Mapping[Code, str] = {
    Code.ANSWERED: "answered; also when a limit ended the work and the model gave its best answer (stderr says so)",
    Code.BUG: "unexpected error: a bug of arlm; for `arlm demo` also a wrong answer",
    Code.BAD_INPUT: "bad input or configuration; nothing was sent",
    Code.PROVIDER: "the provider failed",
    Code.LIMIT: "a limit ended the run without an answer",
    Code.SANDBOX: "the sandbox failed",
    Code.INTERRUPTED: "interrupted (Ctrl-C); all is cleaned up",
    Code.BROKEN_PIPE: "whoever was to read standard output has gone",
    Code.TERMINATED: "terminated (SIGTERM); all is cleaned up",
}


class Interrupted(BaseException):
    """A signal ended the command. ``number``: which."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


def code_of(error: BaseException) -> int:
    """The exit code of an error."""
    match error:
        case Interrupted(number=number):
            return 128 + int(number)
        case ConfigError():
            return Code.BAD_INPUT
        case ProviderError():
            return Code.PROVIDER
        case LimitError():
            return Code.LIMIT
        case SandboxError() | ProtocolError():
            return Code.SANDBOX
        case BrokenPipeError():
            return Code.BROKEN_PIPE
    return Code.BUG


def fail(error: BaseException, *, as_json: bool = False, usage: JSON = None, used: str = "", flags: Mapping[str, str] | None = None) -> int:
    """Say what went wrong: one line on stderr, and with ``as_json`` one JSON object on stdout.

    Args:
        error: what ended the command.
        as_json: whether the caller asked for JSON.
        usage: what had been used until then, as ``UsageSummary.to_dict``; None when nothing was sent.
        used: the same in words.
        flags: names of options in messages, and the command line's spelling of them.

    Returns:
        The exit code.
    """
    if isinstance(error, BrokenPipeError):
        leave_pipe()
        return int(Code.BROKEN_PIPE)
    code = code_of(error)
    if code == Code.BUG:
        traceback.print_exception(error)
        say("arlm: this is a bug of arlm. Please report it with the lines above.")
    else:
        so_far = f"used so far: {used}" if used else ""
        together = isinstance(error, Interrupted) and so_far
        say(f"arlm: {_sentence(error, flags or {})}{f'; {so_far}' if together else ''}")
        if so_far and not together:
            say(f"arlm: {so_far}")
    if as_json:
        write_json(_as_json(error, code, usage, flags or {}))
    return int(code)


def _sentence(error: BaseException, flags: Mapping[str, str]) -> str:
    match error:
        case Interrupted(number=number):
            return {2: "interrupted", 15: "terminated"}.get(number, f"ended by signal {number}")
        case LimitError():
            return f"{in_flags(str(error), flags)}, and there is no answer; raise it{_other_way(error)}"
        case ArlmError():
            return in_flags(str(error), flags)
    return str(error)


def _other_way(error: LimitError) -> str:
    return " or leave out --on-limit raise to get the best answer there is" if error.limit in _ANSWERABLE else ""


_ANSWERABLE = ("max_calls", "max_total_tokens", "max_cost_usd", "max_iterations")


def in_flags(message: str, flags: Mapping[str, str]) -> str:
    """A message of the library in the command line's words: ``max_calls`` becomes ``--max-calls``, ``model='x'`` becomes ``--model x``."""
    given = "|".join(name for name in flags)
    if not given:
        return message
    message = re.sub(rf"\b({given})='([^']*)'", lambda found: f"{flags[found[1]]} {found[2]}", message)
    compound = "|".join(name for name in flags if "_" in name)
    return re.sub(rf"(?<![-\w])({compound})\b", lambda found: flags[found[1]], message)


def _as_json(error: BaseException, code: int, usage: JSON, flags: Mapping[str, str]) -> JSON:
    facts = {name: value for name in FACTS if (value := getattr(error, name, None)) not in (None, "")}
    partial = getattr(error, "partial", None)
    return {
        "error": {"type": type(error).__name__, "message": _sentence(error, flags), "exit_code": int(code), **facts},
        "usage": usage,
        "partial": None if partial is None else result_json(partial),
    }
