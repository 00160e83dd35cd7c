"""What an answer has to be: text, or a value of ``output_type`` checked by pydantic."""

from __future__ import annotations

import json
import re
from typing import Any

from .errors import ConfigError
from .loop import Answers

FENCED = re.compile(r"^\s*```[a-z]*\s*\n(.*?)\n\s*```\s*$", re.DOTALL)


def answers_of(output_type: Any) -> Answers:
    """How to take answers of a type.

    For ``str``, what code sets is taken as it is; numbers by ``str``, lists and dicts as JSON text.

    Raises:
        ConfigError: pydantic cannot check the type.
    """
    if output_type is str:
        return Answers(accept=_text, parse=str.strip)
    from pydantic import TypeAdapter  # half a tenth of a second that a run with text does not pay
    from pydantic.errors import PydanticUserError

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(output_type)
        schema = json.dumps(adapter.json_schema())
    except PydanticUserError as error:
        raise ConfigError(f"output_type: pydantic cannot check {output_type!r}: {error.message}") from error

    def accept(value: Any) -> Any:
        try:
            return adapter.validate_python(value)
        except ValueError:
            if isinstance(value, str):
                return parse(value)
            raise

    def parse(text: str) -> Any:
        fenced = FENCED.match(text)
        return adapter.validate_json(fenced[1] if fenced else text.strip())

    return Answers(accept=accept, parse=parse, schema=schema)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else "" if value is None else str(value)
