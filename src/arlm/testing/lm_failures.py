"""What providers say when a call fails, as they publish it: status, body, and the error that it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import AuthError, BadRequest, ConnectionFailed, ContextTooLong, Overloaded, ProviderError, RateLimited, Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failed call.

    Attributes:
        whose: who says so.
        status: the HTTP status.
        body: JSON.
        kind: the error that it is.
        told: the status that the error has, where a body names another one than the reply.
        retry_after: seconds that the body asks to wait.
    """

    whose: str
    status: int
    body: Any
    kind: type[ProviderError]
    told: int | None = None
    retry_after: float | None = None


def _openai(whose: str, status: int, message: str, kind: type[ProviderError], **more: Any) -> Failure:
    return Failure(whose=whose, status=status, body={"error": {"message": message, "type": None, "param": None, **more}}, kind=kind)


OPENAI = (
    _openai(
        "openai", 401, "Incorrect API key provided: sk-1234*****wxyz.", AuthError, type="invalid_request_error", code="invalid_api_key"
    ),
    _openai("openai", 401, "You must be a member of an organization to use the API", AuthError, type="invalid_request_error", code=None),
    _openai("openai", 403, "Country, region, or territory not supported", AuthError, code="unsupported_country_region_territory"),
    _openai("openai", 404, "The model `m` does not exist or you do not have access to it.", BadRequest, code="model_not_found"),
    _openai("openai", 403, "Project `p` does not have access to model `m`", BadRequest, code="model_not_found"),
    _openai(
        "openai", 400, "Unsupported parameter: 'max_tokens' is not supported with this model.", BadRequest, code="unsupported_parameter"
    ),
    _openai(
        "openai",
        400,
        "max_tokens is too large: 99999. This model supports at most 16384 completion tokens.",
        BadRequest,
        code="invalid_value",
    ),
    _openai(
        "openai",
        400,
        "This model's maximum context length is 128000 tokens. However, your messages resulted in 150000 tokens.",
        ContextTooLong,
        code="context_length_exceeded",
    ),
    _openai(
        "openai",
        400,
        "Invalid 'messages[0].content': string too long. Expected a string with maximum length 10485760.",
        ContextTooLong,
        code="string_above_max_length",
    ),
    _openai("openai", 400, "Your input exceeds the context window of this model.", ContextTooLong, code="context_length_exceeded"),
    _openai(
        "openai",
        400,
        "Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
        Refused,
        type="invalid_request_error",
        code="invalid_prompt",
    ),
    _openai("openai", 429, "Rate limit reached for m on requests per min (RPM): Limit 3.", RateLimited, code="rate_limit_exceeded"),
    _openai("openai", 429, "You exceeded your current quota, please check your plan.", AuthError, code="insufficient_quota"),
    _openai("openai", 429, "Your account is not active, please check your billing details.", AuthError, code="billing_not_active"),
    _openai(
        "openai",
        429,
        "Request too large for m on tokens per min (TPM): Limit 30000, Requested 60000. The input or output tokens must be reduced.",
        ContextTooLong,
        type="tokens",
        code="rate_limit_exceeded",
    ),
    _openai("openai", 500, "The server had an error while processing your request. Sorry about that!", Overloaded, type="server_error"),
    _openai("openai", 503, "The engine is currently overloaded, please try again later", Overloaded, type="server_error"),
    _openai("openai", 503, "Slow down", Overloaded, code="slow_down"),
)

AZURE = (
    _openai("azure", 401, "Access denied due to invalid subscription key or wrong API endpoint.", AuthError, code="401"),
    Failure(whose="azure", status=401, body={"statusCode": 401, "message": "Unauthorized. Access token is missing."}, kind=AuthError),
    _openai("azure", 404, "The API deployment for this resource does not exist.", BadRequest, code="DeploymentNotFound"),
    _openai("azure", 404, "Resource not found", BadRequest, code="404"),
    _openai("azure", 429, "Requests have exceeded token rate limit. Please retry after 7 seconds.", RateLimited, code="429"),
    _openai(
        "azure",
        400,
        "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
        Refused,
        param="prompt",
        code="content_filter",
        innererror={"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"violence": {"filtered": True, "severity": "high"}}},
    ),
)

OPENROUTER = (
    _openai("openrouter", 401, "No auth credentials found", AuthError, code=401),
    _openai("openrouter", 402, "Insufficient credits", AuthError, code=402),
    _openai("openrouter", 400, "m is not a valid model ID", BadRequest, code=400),
    _openai(
        "openrouter",
        403,
        "Input was flagged",
        Refused,
        code=403,
        metadata={"reasons": ["violence"], "flagged_input": "the...end", "provider_name": "P", "model_slug": "m"},
    ),
    _openai("openrouter", 408, "Your request timed out", ConnectionFailed, code=408),
    _openai(
        "openrouter", 429, "Provider returned error", RateLimited, code=429, metadata={"raw": "m is rate-limited", "provider_name": "P"}
    ),
    _openai("openrouter", 502, "Provider returned error", Overloaded, code=502, metadata={"provider_name": "P"}),
    _openai("openrouter", 503, "No instances available", Overloaded, code=503),
    _openai(
        "openrouter",
        400,
        "Provider returned error",
        ContextTooLong,
        code=400,
        metadata={"raw": '{"error":{"message":"prompt is too long: 9 tokens > 8 maximum"}}', "provider_name": "P"},
    ),
    Failure(whose="openrouter", status=200, body={"error": {"code": 429, "message": "Rate limited"}}, kind=RateLimited, told=429),
    Failure(
        whose="openrouter",
        status=200,
        body={
            "id": "gen-1",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "error",
                    "message": {"role": "assistant", "content": ""},
                    "error": {"code": 502, "message": "Upstream error", "metadata": {}},
                }
            ],
        },
        kind=Overloaded,
        told=502,
    ),
)

OWN_SERVERS = (
    _openai(
        "vllm",
        400,
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.",
        ContextTooLong,
        type="BadRequestError",
        code=400,
    ),
    _openai("vllm", 400, "The decoder prompt (length 9000) is longer than the maximum model length of 4096.", ContextTooLong, code=400),
    _openai("vllm", 404, "The model `m` does not exist.", BadRequest, type="NotFoundError", code=404),
    Failure(
        whose="vllm",
        status=400,
        body={"object": "error", "message": "This model's maximum context length is 4096 tokens.", "type": "BadRequestError", "code": 400},
        kind=ContextTooLong,
    ),
    Failure(whose="vllm", status=401, body={"error": "Unauthorized"}, kind=AuthError),
    Failure(whose="fastapi", status=422, body={"detail": [{"loc": ["body", "messages"], "msg": "field required"}]}, kind=BadRequest),
    _openai("ollama", 404, "model 'm' not found", BadRequest, type="not_found_error", code=None),
    Failure(whose="ollama", status=404, body={"error": "model 'm' not found, try pulling it first"}, kind=BadRequest),
    Failure(
        whose="ollama", status=503, body={"error": "server busy, please try again.  maximum pending requests exceeded"}, kind=Overloaded
    ),
    _openai("llama.cpp", 503, "Loading model", Overloaded, type="unavailable_error", code=503),
    _openai(
        "llama.cpp",
        400,
        "the request exceeds the available context size, try increasing it",
        ContextTooLong,
        type="exceed_context_size_error",
        code=400,
    ),
)

PORTKEY = (
    Failure(whose="portkey", status=401, body={"status": "failure", "message": "Invalid API Key. Error Code: 03"}, kind=AuthError),
    Failure(whose="portkey", status=400, body={"status": "failure", "message": "x-portkey-provider header is required"}, kind=BadRequest),
    Failure(
        whose="portkey",
        status=429,
        body={
            "error": {"message": "anthropic error: rate limited", "type": "rate_limit_error", "param": None, "code": None},
            "provider": "anthropic",
        },
        kind=RateLimited,
    ),
    _openai("portkey", 408, "Request exceeded the timeout sent in the request: 100ms", ConnectionFailed, type="timeout_error", code=None),
    Failure(
        whose="portkey",
        status=446,
        body={
            "error": {"message": "The guardrail checks defined in the config failed.", "type": "hooks_failed", "param": None, "code": None},
            "hook_results": {"before_request_hooks": []},
        },
        kind=Refused,
    ),
)


def _anthropic(status: int, code: str, message: str, kind: type[ProviderError]) -> Failure:
    body = {"type": "error", "error": {"type": code, "message": message}, "request_id": "req_1"}
    return Failure(whose="anthropic", status=status, body=body, kind=kind)


ANTHROPIC = (
    _anthropic(400, "invalid_request_error", "max_tokens: must be greater than 0", BadRequest),
    _anthropic(400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum", ContextTooLong),
    _anthropic(
        400,
        "invalid_request_error",
        "input length and `max_tokens` exceed context limit: 190000 + 21333 > 200000, decrease input length or `max_tokens` and try again",
        ContextTooLong,
    ),
    _anthropic(400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API.", AuthError),
    _anthropic(401, "authentication_error", "invalid x-api-key", AuthError),
    _anthropic(402, "billing_error", "There is an issue with your billing or payment information.", AuthError),
    _anthropic(403, "permission_error", "Your API key does not have permission to use the specified resource.", AuthError),
    _anthropic(404, "not_found_error", "model: m", BadRequest),
    _anthropic(413, "request_too_large", "Request exceeds the maximum allowed number of bytes.", ContextTooLong),
    _anthropic(429, "rate_limit_error", "This request would exceed the rate limit for your organization", RateLimited),
    _anthropic(500, "api_error", "Internal server error", Overloaded),
    _anthropic(504, "timeout_error", "Request timed out", Overloaded),
    _anthropic(529, "overloaded_error", "Overloaded", Overloaded),
)


def _detail(kind: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/google.rpc.{kind}", **fields}


def _google(
    code: int, status: str, message: str, kind: type[ProviderError], *details: Mapping[str, Any], retry_after: float | None = None
) -> Failure:
    error = {"code": code, "message": message, "status": status, "details": [*details]}
    return Failure(whose="google", status=code, body={"error": error}, kind=kind, retry_after=retry_after)


GOOGLE = (
    _google(
        400,
        "INVALID_ARGUMENT",
        "API key not valid. Please pass a valid API key.",
        AuthError,
        _detail("ErrorInfo", reason="API_KEY_INVALID", domain="googleapis.com"),
    ),
    _google(400, "INVALID_ARGUMENT", "Invalid value at 'contents'", BadRequest, _detail("BadRequest", fieldViolations=[])),
    _google(
        400, "INVALID_ARGUMENT", "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).", ContextTooLong
    ),
    _google(400, "INVALID_ARGUMENT", "The input token count is 1200000 but model only supports up to 1048576.", ContextTooLong),
    _google(400, "FAILED_PRECONDITION", "User location is not supported for the API use.", BadRequest),
    _google(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.", AuthError),
    _google(403, "PERMISSION_DENIED", "Generative Language API has not been used in project 1 before or it is disabled.", AuthError),
    _google(404, "NOT_FOUND", "models/m is not found for API version v1beta, or is not supported for generateContent.", BadRequest),
    _google(
        429,
        "RESOURCE_EXHAUSTED",
        "You exceeded your current quota, please check your plan and billing details.",
        RateLimited,
        _detail("QuotaFailure", violations=[{"quotaMetric": "requests", "quotaValue": "10"}]),
        _detail("Help", links=[]),
        _detail("RetryInfo", retryDelay="34.074824224s"),
        retry_after=34.074824224,
    ),
    _google(429, "RESOURCE_EXHAUSTED", "Resource exhausted.", RateLimited, _detail("ErrorInfo", reason="RATE_LIMIT_EXCEEDED")),
    _google(500, "INTERNAL", "An internal error has occurred.", Overloaded),
    _google(503, "UNAVAILABLE", "The model is overloaded. Please try again later.", Overloaded),
    _google(504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete.", Overloaded),
)

CHAT = (*OPENAI, *AZURE, *OPENROUTER, *OWN_SERVERS, *PORTKEY)
PUBLISHED: Mapping[str, tuple[Failure, ...]] = {
    "chat": CHAT,
    "responses": (*OPENAI, *AZURE),
    "anthropic": ANTHROPIC,
    "gemini": GOOGLE,
}
BY_STATUS: Mapping[int, type[ProviderError]] = {
    301: BadRequest,
    307: BadRequest,
    308: BadRequest,
    400: BadRequest,
    401: AuthError,
    402: AuthError,
    403: AuthError,
    404: BadRequest,
    405: BadRequest,
    408: ConnectionFailed,
    409: Overloaded,
    413: ContextTooLong,
    418: BadRequest,
    422: BadRequest,
    425: Overloaded,
    429: RateLimited,
    500: Overloaded,
    502: Overloaded,
    503: Overloaded,
    504: Overloaded,
    520: Overloaded,
    529: Overloaded,
}
