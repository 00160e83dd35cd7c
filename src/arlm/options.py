"""The options of ``run`` and ``RLM``: each declared once, with its type, default, meaning and check.

``RunOptions`` is what type checkers and editors see; ``resolve`` is what the program reads: every option present and checked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, cast, get_type_hints

from .errors import ConfigError
from .plugins import did_you_mean

if TYPE_CHECKING:
    from .clients.resolve import ModelSpec
    from .environments.base import Environment
    from .events import AnyEvent
else:
    ModelSpec = Environment = AnyEvent = Any

Check = Callable[[Any], str | None]  # returns what the value must be, or None when it is right


@dataclass(frozen=True, slots=True)
class Option:
    """What is known of an option besides its type."""

    default: Any
    doc: str
    check: Check = lambda _value: None


def _whole(least: int) -> Check:
    def check(value: Any) -> str | None:
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return None if fits else f"a whole number of at least {least}"

    return check


def _above_zero(value: Any) -> str | None:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 and value != float("inf")
    return None if fits else "a number above 0"


def _or_none(inner: Check) -> Check:
    def check(value: Any) -> str | None:
        wrong = None if value is None else inner(value)
        return wrong and f"None or {wrong}"

    return check


def _is(kind: type | tuple[type, ...], what: str) -> Check:
    return lambda value: None if isinstance(value, kind) else what


def _one_of(*values: str) -> Check:
    return lambda value: None if value in values else " or ".join(map(repr, values))


def _can_call(value: Any) -> str | None:
    return None if callable(value) else "a function"


class RunOptions(TypedDict, total=False):
    """Keyword-only options of ``run``, ``run_sync``, ``stream`` and ``RLM``."""

    context: Annotated[
        Any,
        Option(
            None,
            "What the question is about: str, bytes, list, dict or other JSON values, a Path (its text), several Paths (a dict of "
            "path to text). None: the prompt alone, which then stands in `context`.",
        ),
    ]
    model: Annotated[
        ModelSpec | None,
        Option(
            None,
            "The root model: 'provider/name', a BaseLM or an async function. None: that of the first provider whose key is set, "
            "else of a local server that answers.",
        ),
    ]
    sub_model: Annotated[
        ModelSpec | Sequence[ModelSpec] | None,
        Option(None, "The model of sub-calls and children. A list: one for each depth, the last for all deeper. None: `model`."),
    ]
    models: Annotated[
        Mapping[str, ModelSpec],
        Option({}, "Further models that code may name as `model=`: name to model.", _is(Mapping, "a dict of name to model")),
    ]
    environment: Annotated[str | Environment, Option("process", "Where code runs: a name, or an environment object.")]
    environment_options: Annotated[Mapping[str, Any], Option({}, "Options of the environment named.", _is(Mapping, "a dict"))]
    sub_environment: Annotated[
        str | Environment | None, Option(None, "Where children run, in one place for all of them. None: in the parent's place.")
    ]
    max_depth: Annotated[int, Option(1, "1: `rlm_query` is a plain call; 2: one level of child runs; and so on.", _whole(1))]
    max_iterations: Annotated[int, Option(30, "Root turns.", _whole(1))]
    max_concurrency: Annotated[int, Option(256, "LM calls in flight over the whole tree.", _whole(1))]
    max_repls: Annotated[
        int, Option(256, "REPLs that run at once over the whole tree; one whose cell waits for children does not count.", _whole(1))
    ]
    max_calls: Annotated[int, Option(5_000, "LM calls over the whole tree, retries included; one is kept for the last answer.", _whole(1))]
    max_total_tokens: Annotated[int | None, Option(None, "Input and output tokens over the whole tree.", _or_none(_whole(1)))]
    max_cost_usd: Annotated[
        float | None, Option(None, "US dollars over the whole tree; the price of every model must be known.", _or_none(_above_zero))
    ]
    prices: Annotated[
        Mapping[str, Mapping[str, float]],
        Option(
            {},
            "Prices over those of the list: 'provider/name' to US dollars per million tokens, such as {'input': 0.5, 'output': 2}; "
            "'cached' and 'cache_write' where they differ from 'input'.",
            _is(Mapping, "a dict of model to price"),
        ),
    ]
    timeout: Annotated[float | None, Option(None, "Seconds for the whole run.", _or_none(_above_zero))]
    call_timeout: Annotated[
        float | None,
        Option(
            None, "Seconds for one model call; each retry has as many. None: the client's own (300; Anthropic 600).", _or_none(_above_zero)
        ),
    ]
    cell_timeout: Annotated[float, Option(300.0, "Seconds of a cell's own time; waiting for sub-calls does not count.", _above_zero)]
    memory_limit: Annotated[int | None, Option(None, "Bytes of memory per worker.", _or_none(_whole(16 * 1024 * 1024)))]
    max_errors: Annotated[int | None, Option(None, "Failed iterations in a row that end the run.", _or_none(_whole(1)))]
    on_limit: Annotated[
        Literal["answer", "raise"],
        Option(
            "answer",
            "When calls, tokens or cost run out: one last call answers with what there is, or the limit is raised.",
            _one_of("answer", "raise"),
        ),
    ]
    output_type: Annotated[Any, Option(str, "The type of the answer; anything pydantic can check.")]
    tools: Annotated[
        Mapping[str, Any] | Sequence[Any],
        Option({}, "Functions and values for the REPL: a dict of name to function, value or `arlm.Tool`, or a list of functions."),
    ]
    sub_tools: Annotated[Mapping[str, Any] | Sequence[Any] | None, Option(None, "The children's tools. None: their parent's; {}: none.")]
    system_prompt: Annotated[str | None, Option(None, "Replaces arlm's system prompt, word for word.", _or_none(_is(str, "a str")))]
    instructions: Annotated[str | None, Option(None, "Added to the system prompt.", _or_none(_is(str, "a str")))]
    compaction: Annotated[
        float | None, Option(None, "Summarise old turns once the history fills this part of the window.", _or_none(_above_zero))
    ]
    sampling: Annotated[Mapping[str, Any], Option({}, "Sampling options of root calls: temperature, max_tokens, …", _is(Mapping, "a dict"))]
    sub_sampling: Annotated[Mapping[str, Any], Option({}, "Sampling options of sub-calls.", _is(Mapping, "a dict"))]
    log_dir: Annotated[str | Path | None, Option(None, "A folder that gets one JSONL file per run.", _or_none(_is((str, Path), "a path")))]
    on_event: Annotated[
        Callable[[AnyEvent], Any] | None,
        Option(None, "Called with every event; sync or async. Its exceptions are logged, not raised.", _or_none(_can_call)),
    ]


NOT_YET: dict[str, str] = {
    "compaction": "compaction is not here yet",
}


def declared() -> dict[str, Option]:
    """Every option by name, in the order declared."""
    return dict(_DECLARED)


def _read_declarations() -> dict[str, Option]:
    hints = get_type_hints(RunOptions, include_extras=True)
    return {name: next(item for item in hint.__metadata__ if isinstance(item, Option)) for name, hint in hints.items()}


_DECLARED = _read_declarations()


def resolve(given: Mapping[str, Any], *, base: RunOptions | None = None) -> RunOptions:
    """All options, checked: ``given`` over ``base`` over the defaults.

    Raises:
        ConfigError: an unknown name (with the nearest known one), a value of the wrong kind, or an option that has no effect yet.
    """
    for name in given:
        if name not in _DECLARED:
            raise ConfigError(unknown("option", name, _DECLARED))
    values = {name: option.default for name, option in _DECLARED.items()} | dict(base or {}) | dict(given)
    for name, value in values.items():
        wrong = _DECLARED[name].check(value)
        if wrong:
            raise ConfigError(f"{name} must be {wrong}, not {value!r}")
        if name in NOT_YET and value != _DECLARED[name].default:
            raise ConfigError(f"{name}: {NOT_YET[name]}")
    return cast("RunOptions", values)


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The text of an error about an unknown name: what was meant, perhaps, and what there is."""
    known = list(known)
    return f"unknown {what} {name!r}{did_you_mean(str(name), known) or '.'} There is: {', '.join(known)}"


def documentation() -> str:
    """The options as a Markdown table."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for name, option in _DECLARED.items():
        default = option.default.__name__ if inspect.isclass(option.default) else repr(option.default)
        rows.append(f"| `{name}` | `{default}` | {option.doc} |")
    return "\n".join(rows)
