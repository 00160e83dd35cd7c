"""The commands, as typer reads them; what they do is in modules of their own, imported when they run."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import ConfigError
from . import exits
from .flags import FLAGS, SPELLINGS, parameters, parameters_of, providers_like, read_flags

EXIT_CODES = "\n\n".join(["Exit codes:", *(f"{code.value}: {meaning}" for code, meaning in exits.MEANINGS.items())])
JSON_KEYS = ", ".join(("answer", "stop_reason", "usage", "cost_usd", "duration_s", "iterations", "run_id", "children"))

environments_like = next(flag.complete for flag in FLAGS if flag.option == "environment")

app = typer.Typer(name="arlm", no_args_is_help=True, rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]})


def invoke(words: list[str]) -> int:
    """Run one command line and return its exit code. Nothing but a bug of arlm shows a traceback."""
    try:
        code = app(words, prog_name="arlm", standalone_mode=False)
    except (Exception, exits.Interrupted) as error:
        return _failed(error, as_json="--json" in words)
    return code if isinstance(code, int) else 0


def _failed(error: BaseException, *, as_json: bool) -> int:
    if isinstance(error, typer.Abort):
        error = exits.Interrupted(2)
    if not isinstance(error, UsageFault):
        return exits.fail(error, as_json=as_json, flags=SPELLINGS)
    told = error.format_message()
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(told)
        return 0
    path = context.command_path if context is not None else "arlm"
    return exits.fail(ConfigError(f"{told} Try '{path} --help'."), as_json=as_json)


# typer brings its own copy of click, or uses the one installed: the class of usage errors is reached through typer alone.
UsageFault: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"arlm {__version__}")
        raise typer.Exit


@app.callback(epilog=EXIT_CODES)
def arlm(
    _version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="The version, and nothing else.")] = False,
) -> None:
    """Recursive Language Models: ask a question over an input of any size."""


def _run(prompt: str, files: list[str] | None, *, as_bytes: bool, as_json: bool, quiet: bool, verbose: bool, **given: Any) -> int:
    """Ask PROMPT over the FILEs; the answer goes to standard output, all else to standard error.

    One FILE is read as UTF-8 text, several become a dict of path to text, - is standard input, none asks the prompt alone.
    """
    from .display import display_for
    from .inputs import read_context
    from .running import run_shown, tell

    display = display_for(quiet=quiet, verbose=verbose)
    try:
        options = read_flags(given)
        context = read_context(files or [], as_bytes=as_bytes)
        result = run_shown(prompt, options if context is None else {**options, "context": context}, display)
        tell(result, display, as_json=as_json, quiet=quiet)
    except (Exception, exits.Interrupted) as error:
        counts = display.counts
        return exits.fail(error, as_json=as_json, usage=counts.usage, used=counts.used(), flags=SPELLINGS)
    return 0


def _own(name: str, kind: Any, default: Any = False) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


SHOWN = (
    _own("quiet", Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]),
    _own("verbose", Annotated[bool, typer.Option("--verbose", "-v", help="Show the code that runs and what it prints.")]),
)
# Positional words, this command's own flags, then one flag for each option of ``arlm.run``.
_run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        _own("prompt", Annotated[str, typer.Argument(metavar="PROMPT", help="The question.")], inspect.Parameter.empty),
        _own("files", Annotated[list[str] | None, typer.Argument(metavar="[FILE… | -]", help="What it is about.")], None),
        _own("as_bytes", Annotated[bool, typer.Option("--bytes", help="Give the one FILE, or standard input, as bytes.")]),
        _own("as_json", Annotated[bool, typer.Option("--json", help=f"One JSON object on standard output: {JSON_KEYS}.")]),
        *SHOWN,
        *parameters(),
    ]
)
app.command("run", epilog=EXIT_CODES)(_run)


def _demo(seed: int, tickets: int, *, quiet: bool, verbose: bool, **given: Any) -> int:
    """Watch a run over millions of characters, without a key and without a network. The model is a rule-based stand-in."""
    from .demo import show_demo
    from .display import display_for

    display = display_for(quiet=quiet, verbose=verbose)
    try:
        return show_demo(seed, tickets, display, **read_flags(given))
    except (Exception, exits.Interrupted) as error:
        return exits.fail(error, usage=display.counts.usage, used=display.counts.used(), flags=SPELLINGS)


_demo.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        _own("seed", Annotated[int, typer.Option(help="Another seed makes another input.")], 7),
        _own("tickets", Annotated[int, typer.Option(min=400, help="How many support tickets to make.")], 6_000),
        *SHOWN,
        *parameters_of("environment", "environment_options"),
    ]
)
app.command("demo", epilog=EXIT_CODES)(_demo)


@app.command(epilog=EXIT_CODES)
def models(
    provider: Annotated[str | None, typer.Argument(metavar="[PROVIDER]", help="List its models.", autocompletion=providers_like)] = None,
    check: Annotated[bool, typer.Option("--check", help="Ask every provider that has a key for its models. Costs nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> int:
    """List the providers, what each needs and has here, and the model that is taken without --model; or PROVIDER's models and prices."""
    from .models import show_models, show_providers

    return show_providers(check=check, as_json=as_json) if provider is None else show_models(provider.strip().lower(), as_json=as_json)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> int:
    """Say what works here and what is missing; exit code 0 unless nothing can run."""
    from .doctor import examine

    return examine(as_json=as_json)


@app.command(epilog=EXIT_CODES)
def clean(
    everything: Annotated[
        bool, typer.Option("--all", help="Also the containers and sandboxes of living runs, on any machine. Asks first.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    environment: Annotated[
        list[str] | None,
        typer.Option(
            "--environment", "-e", metavar="NAME", help="Only what this one keeps. May be repeated.", autocompletion=environments_like
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output: removed, skipped.")] = False,
) -> int:
    """Remove what dead runs left: temporary folders, control groups with their processes, containers, sandboxes."""
    from .clean import clean

    return clean(environment or [], everything=everything, yes=yes, as_json=as_json)
