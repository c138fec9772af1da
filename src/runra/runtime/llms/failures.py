"""Failures of models: what a provider answered, as a RunraError whose `details.kind` says what it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal

from runra.errors import ErrorCode, RunraError

Kind = Literal[
    "auth",  # the provider does not take the key
    "quota",  # the account has no credit left
    "rate_limit",
    "context_too_long",
    "refused",  # the provider's content policy
    "model_not_found",
    "unsupported",  # a feature this model or format has not
    "invalid",  # the request, otherwise
    "unavailable",  # overloaded, down, or unreachable
    "protocol",  # the answer is not what the format says
    "budget",  # the run's max_cost
    "turns",  # the run's max_turns
    "token",  # no valid token of a run
]

#: Code and whether the same call may succeed later, for each kind.
KINDS: Final[Mapping[str, tuple[ErrorCode, bool]]] = {
    "auth": ("UNAUTHORIZED", False),
    "quota": ("FORBIDDEN", False),
    "rate_limit": ("RATE_LIMITED", True),
    "context_too_long": ("INVALID_REQUEST", False),
    "refused": ("INVALID_REQUEST", False),
    "model_not_found": ("INVALID_REQUEST", False),
    "unsupported": ("INVALID_REQUEST", False),
    "invalid": ("INVALID_REQUEST", False),
    "unavailable": ("RESOURCE_EXHAUSTED", True),
    "protocol": ("INTERNAL_ERROR", True),
    "budget": ("FORBIDDEN", False),
    "turns": ("FORBIDDEN", False),
    "token": ("UNAUTHORIZED", False),
}

#: Longest part of a provider's message that is shown.
_SHOWN: Final = 600

_CONTEXT: Final = (
    "prompt is too long",
    "context_length_exceeded",
    "context length",
    "context window",
    "maximum context",
    "exceeds the maximum number of tokens",
    "input token count",
    "too many tokens",
    "exceed context limit",
)
_REFUSED: Final = ("content_policy", "content policy", "content_filter", "safety system", "usage policies")
_QUOTA: Final = ("insufficient_quota", "billing", "credit balance", "insufficient credits", "quota_exceeded")


def failure(
    kind: str,
    message: str,
    *,
    provider: str = "",
    status: int | None = None,
    retry_after_s: float | None = None,
    **details: Any,
) -> RunraError:
    """A RunraError of a kind. `status` is what the provider answered, where it did."""
    code, retryable = KINDS.get(kind, ("INTERNAL_ERROR", False))
    noted: dict[str, Any] = {"kind": kind, **details}
    if provider:
        noted["provider"] = provider
    if status is not None:
        noted["providerStatus"] = status
    if retry_after_s is not None:
        noted["retryAfterMs"] = round(retry_after_s * 1000)
    return RunraError(code, message, details=noted, retryable=retryable)


def kind_of(error: RunraError) -> str:
    """The kind in an error's details; empty where it is none of a model's."""
    return str(error.details.get("kind", ""))


def unreachable(provider: str, where: str, reason: str) -> RunraError:
    """No answer at all."""
    error = RunraError("NETWORK_ERROR", f"{provider}: no answer from {where}: {reason}", retryable=True)
    error.details.update(kind="unavailable", provider=provider)
    return error


def from_answer(status: int, headers: Mapping[str, str], body: bytes, *, provider: str, secret: str) -> RunraError:
    """The error a provider answered with, in any of the formats. The key in `secret` is taken out of its words."""
    message, words = _read(body)
    message = redact(message, secret)
    kind = _classify(status, f"{words} {message}".lower())
    retry_after = _retry_after(headers, body)
    said = {
        "auth": f"{provider} does not accept the API key ({status}); check it and what it may be used for",
        "quota": f"{provider} refuses further calls on this account: {message}",
        "rate_limit": f"{provider} limits the rate of calls: {message}",
        "context_too_long": f"prompt is too long for the model: {message}",
        "model_not_found": f"{provider} knows no such model: {message}",
    }.get(kind, f"{provider} answered {status}: {message}")
    return failure(kind, said, provider=provider, status=status, retry_after_s=retry_after)


def redact(text: str, secret: str) -> str:
    """The text without the secret. One too short to be a key is left: it would tear holes into any text."""
    return text.replace(secret, "***") if len(secret) >= 8 else text


def _classify(status: int, words: str) -> str:
    if status == 401:
        return "auth"
    if any(word in words for word in _QUOTA) and status in (400, 402, 403, 429):
        return "quota"
    if status == 402:
        return "quota"
    if status == 429:
        return "rate_limit"
    if status in (400, 413, 422) and any(word in words for word in _CONTEXT):
        return "context_too_long"
    if status in (400, 403) and any(word in words for word in _REFUSED):
        return "refused"
    if status == 403 or (status == 400 and "api key not valid" in words):  # the second is Gemini's
        return "auth"
    if status == 404:
        return "model_not_found"
    if status >= 500 or status in (408, 409, 425):
        return "unavailable"
    return "invalid"


def in_stream(error: Any) -> tuple[str, str]:
    """Kind and message of an error object that came in the middle of a stream."""
    if not isinstance(error, dict):
        return "unavailable", str(error)[:_SHOWN]
    message = str(error.get("message") or "the provider reported an error without words")[:_SHOWN]
    words = f"{error.get('type')} {error.get('code')} {error.get('status')} {message}".lower()
    code = error.get("code")
    if any(word in words for word in _CONTEXT):
        return "context_too_long", message
    if any(word in words for word in _QUOTA):
        return "quota", message
    if "rate_limit" in words or "resource_exhausted" in words or code == 429:
        return "rate_limit", message
    if "authentication" in words or "invalid_api_key" in words or code == 401:
        return "auth", message
    if any(word in words for word in _REFUSED) or "refusal" in words:
        return "refused", message
    if "invalid_request" in words or "invalid_prompt" in words or code == 400:
        return "invalid", message
    return "unavailable", message


def _read(body: bytes) -> tuple[str, str]:
    """Message and further words (types and codes) of an error body."""
    try:
        parsed = json.loads(body)
    except ValueError:
        shown = body[:_SHOWN].decode(errors="replace").strip()
        return shown or "no words", ""
    if isinstance(parsed, list) and parsed:
        parsed = parsed[0]
    error = parsed.get("error", parsed) if isinstance(parsed, dict) else parsed
    if not isinstance(error, dict):
        return str(error)[:_SHOWN], ""
    words = " ".join(str(error.get(name, "")) for name in ("type", "code", "status"))
    return str(error.get("message") or error.get("detail") or error)[:_SHOWN], words


def _retry_after(headers: Mapping[str, str], body: bytes) -> float | None:
    """Seconds to wait: `retry-after-ms`, `retry-after` (RFC 9110, seconds or a date), or Google's RetryInfo."""
    named = {name.lower(): value for name, value in headers.items()}
    try:
        if "retry-after-ms" in named:
            return max(0.0, float(named["retry-after-ms"]) / 1000)
        value = named.get("retry-after")
        if value is not None:
            if value.strip().replace(".", "", 1).isdigit():
                return float(value)
            return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
        if b"retryDelay" in body:
            parsed = json.loads(body)
            error = (parsed[0] if isinstance(parsed, list) else parsed)["error"]
            for detail in error["details"]:
                if "retryDelay" in detail:
                    return max(0.0, float(str(detail["retryDelay"]).removesuffix("s")))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None
    return None
