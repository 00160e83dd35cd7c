"""The errors of OpenAI, the same on Chat Completions and on Responses but for the names of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .base import Body, Trouble, What


class Row(NamedTuple):
    """How one kind of trouble is told."""

    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None


ROWS: Mapping[What, Row] = {
    "key": Row("Incorrect API key provided: {key}.", code="invalid_api_key"),
    "body": Row("We could not parse the JSON body of your request: {told}"),
    "url": Row("Invalid URL ({told})"),
    "model": Row("The model `{model}` does not exist or you do not have access to it.", code="model_not_found"),
    "wire": Row("This model is only supported in v1/responses and not in v1/chat/completions.", param="model"),
    "context": Row(
        "This model's maximum context length is {most} tokens. However, your messages resulted in {tokens} tokens. "
        "Please reduce the length of the messages.",
        code="context_length_exceeded",
        param="{input}",
    ),
    "output": Row(
        "{output} is too large: {tokens}. This model supports at most {most} completion tokens, whereas you provided {tokens}.",
        code="invalid_value",
        param="{output}",
    ),
    "prompt": Row(
        "The response was filtered due to the prompt triggering a content management policy.", code="content_filter", param="prompt"
    ),
    "rate": Row("Rate limit reached for {model}.", type="requests", code="rate_limit_exceeded"),
}

FAULTS: Mapping[int, Row] = {
    401: ROWS["key"],
    403: Row("Country, region, or territory not supported", type="request_forbidden", code="unsupported_country_region_territory"),
    413: Row("Request body is too large."),
    429: Row("scripted {status}", type="requests", code="rate_limit_exceeded"),
}
FAILED = Row("scripted {status}", type="server_error")


def error_of(trouble: Trouble, input_name: str, output_name: str) -> tuple[int, Body]:
    """Status and error object; the names are those of the parameters for the input and for the longest output."""
    row = FAULTS.get(trouble.status, FAILED) if trouble.what == "fault" else ROWS[trouble.what]
    message = trouble.say(row.message.replace("{output}", output_name))
    param = row.param and row.param.format(input=input_name, output=output_name)
    return trouble.status, {"error": {"message": message, "type": row.type, "param": param, "code": row.code}}
