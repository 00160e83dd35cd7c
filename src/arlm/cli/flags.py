"""The flags of ``arlm run``: one line each. Meaning and default come from the option's declaration, and nowhere else."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError
from ..options import declared
from ..plugins import CLIENTS, ENVIRONMENTS, load

UNITS: Mapping[str, int] = {
    **dict.fromkeys(("", "b"), 1),
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{spelling: 1024**power for power, letter in enumerate("kmgt", 1) for spelling in (letter, f"{letter}ib")},
}
MODELS, PLACE, LIMITS, WORDS = "Models", "Where the code runs", "Limits", "Prompt and log"
NO_FLAG: Mapping[str, str] = {  # options that have no flag, and why
    "context": "the FILE arguments",
    "output_type": "a Python type",
    "tools": "Python functions",
    "sub_tools": "Python functions",
    "compaction": "not here yet",
    "on_event": "a Python function; stderr shows the events",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """How an option is given on the command line.

    Attributes:
        option: its name in ``RunOptions``.
        kind: the Python type that the shell's words are turned into.
        panel: the heading it stands under in ``--help``.
        names: ``--its-name`` unless said otherwise.
        metavar: what stands for the value.
        read: from there to the option's value. Raises ConfigError.
        example: added to the help.
        complete: completions of a value.
    """

    option: str
    kind: Any
    panel: str
    names: tuple[str, ...] = ()
    metavar: str | None = None
    read: Callable[[Any], Any] = lambda value: value
    example: str = ""
    complete: Callable[[str], list[str]] | None = None

    @property
    def spellings(self) -> tuple[str, ...]:
        """The flag's names, the long one first."""
        return self.names or (f"--{self.option.replace('_', '-')}",)

    def parameter(self) -> inspect.Parameter:
        """As typer reads it. None, the default, means that the flag was not given."""
        info = typer.Option(
            *self.spellings,
            help=self.help(),
            show_default=False,
            rich_help_panel=self.panel,
            metavar=self.metavar,
            autocompletion=self.complete,
        )
        return inspect.Parameter(self.option, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[self.kind | None, info])

    def help(self) -> str:
        """What the option means, where None is the flag's absence."""
        option = declared()[self.option]
        meaning = re.sub(r"\bNone: ", "Without it: ", option.doc)
        default = "" if option.default in (None, {}, ()) else f" Default: {str(option.default).removesuffix('.0')}."
        return f"{meaning}{f' {self.example}' if self.example else ''}{default}"


def _size(text: str) -> int:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if found is None or found[2] not in UNITS:
        raise ConfigError(f"--memory-limit {text!r} is no size; write bytes, or a number with a unit: 512MB, 2GB, 1GiB")
    return int(float(found[1]) * UNITS[found[2]])


def _pairs(flag: str, *, as_text: bool = False) -> Callable[[Sequence[str]], dict[str, Any]]:
    def read(words: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for word in words:
            name, separator, value = word.partition("=")
            if not separator or not name.strip():
                raise ConfigError(f"{flag} {word!r}: write NAME=VALUE")
            found[name.strip()] = value.strip() if as_text else _value(value.strip())
        return found

    return read


def _value(text: str) -> Any:
    """JSON where it is JSON, else the text itself: ``temperature=0.2``, ``stop=END``."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--system-prompt-file {path} is not UTF-8 text (byte {error.start:,})") from error
    except OSError as error:
        raise ConfigError(f"--system-prompt-file {path} cannot be read: {error.strerror or error}") from error


def providers_like(typed: str) -> list[str]:
    """The providers whose names begin so."""
    return [name for name in sorted(load(CLIENTS)) if name.startswith(typed)]


def _models_like(typed: str) -> list[str]:
    return [f"{name}/" for name in providers_like(typed)]


def _environments_like(typed: str) -> list[str]:
    return [name for name in sorted(load(ENVIRONMENTS)) if name.startswith(typed)]


SPEC, PAIR = "PROVIDER/NAME", "NAME=VALUE"
FLAGS = (
    Flag(option="model", kind=str, panel=MODELS, names=("--model", "-m"), metavar=SPEC, complete=_models_like),
    Flag(option="sub_model", kind=str, panel=MODELS, metavar=SPEC, complete=_models_like),
    Flag(
        option="models",
        kind=list[str],
        panel=MODELS,
        metavar="NAME=SPEC",
        read=_pairs("--models", as_text=True),
        example="May be repeated.",
    ),
    Flag(option="sampling", kind=list[str], panel=MODELS, metavar=PAIR, read=_pairs("--sampling"), example="May be repeated."),
    Flag(option="sub_sampling", kind=list[str], panel=MODELS, metavar=PAIR, read=_pairs("--sub-sampling"), example="May be repeated."),
    Flag(
        option="prices",
        kind=list[str],
        panel=MODELS,
        names=("--price",),
        metavar="MODEL=JSON",
        read=_pairs("--price"),
        example="May be repeated.",
    ),
    Flag(option="environment", kind=str, panel=PLACE, names=("--environment", "-e"), metavar="NAME", complete=_environments_like),
    Flag(
        option="environment_options",
        kind=list[str],
        panel=PLACE,
        names=("--environment-option",),
        metavar=PAIR,
        read=_pairs("--environment-option"),
        example="May be repeated.",
    ),
    Flag(option="sub_environment", kind=str, panel=PLACE, metavar="NAME", complete=_environments_like),
    Flag(option="cell_timeout", kind=float, panel=PLACE, metavar="SECONDS"),
    Flag(option="memory_limit", kind=str, panel=PLACE, metavar="SIZE", read=_size, example="Such as 512MB or 2GiB."),
    Flag(option="max_iterations", kind=int, panel=LIMITS),
    Flag(option="max_calls", kind=int, panel=LIMITS),
    Flag(option="max_total_tokens", kind=int, panel=LIMITS),
    Flag(option="max_cost_usd", kind=float, panel=LIMITS),
    Flag(option="timeout", kind=float, panel=LIMITS, metavar="SECONDS"),
    Flag(option="call_timeout", kind=float, panel=LIMITS, metavar="SECONDS"),
    Flag(option="max_concurrency", kind=int, panel=LIMITS),
    Flag(option="max_depth", kind=int, panel=LIMITS),
    Flag(option="max_repls", kind=int, panel=LIMITS),
    Flag(option="max_errors", kind=int, panel=LIMITS),
    Flag(option="on_limit", kind=str, panel=LIMITS, metavar="answer|raise"),
    Flag(option="system_prompt", kind=str, panel=WORDS, metavar="TEXT"),
    Flag(option="instructions", kind=str, panel=WORDS, metavar="TEXT"),
    Flag(option="log_dir", kind=str, panel=WORDS, metavar="FOLDER"),
)
SPELLINGS: Mapping[str, str] = {flag.option: flag.spellings[0] for flag in FLAGS}


def parameters_of(*options: str) -> Iterator[inspect.Parameter]:
    """The flags of some options as parameters of a command."""
    return (flag.parameter() for flag in FLAGS if flag.option in options)


def parameters() -> Iterator[inspect.Parameter]:
    """All flags as parameters of the command, and the file form of ``--system-prompt``."""
    file = typer.Option("--system-prompt-file", help="The same from a file.", metavar="FILE", rich_help_panel=WORDS)
    kind = Annotated[Path | None, file]
    for flag in FLAGS:
        yield flag.parameter()
        if flag.option == "system_prompt":
            yield inspect.Parameter("system_prompt_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def read_flags(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, as ``arlm.run`` takes them. Raises ConfigError."""
    options = {flag.option: flag.read(value) for flag in FLAGS if (value := given.get(flag.option)) not in (None, [], ())}
    file = given.get("system_prompt_file")
    if file is not None:
        if "system_prompt" in options:
            raise ConfigError("--system-prompt and --system-prompt-file exclude each other")
        options["system_prompt"] = _text_of(file)
    return options
