"""From whatever went wrong to the one error shape: our errors, pydantic's, the router's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails
from starlette.responses import Response

from runra.contract import Wire
from runra.errors import ErrorCode, RunraError

JSON: Final = "application/json; charset=utf-8"
_SHOWN: Final = 100
# Values of these fields may be secrets; an error names the field and keeps the value to itself.
_PRIVATE: Final = frozenset({"env", "stdin", "header", "value", "credentials", "secrets"})


class ErrorBody(Wire):
    code: ErrorCode
    message: str
    details: dict[str, Any] = Field(default_factory=dict)
    retryable: bool = False
    request_id: str


class ErrorAnswer(Wire):
    """Every failure, whatever the route."""

    error: ErrorBody


def shown(value: object) -> str:
    """A value as an error may quote it: short, on one line."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _where(location: Sequence[int | str]) -> str:
    return ".".join(str(part)[:_SHOWN] for part in location)


def _one(error: ErrorDetails, prefix: str) -> dict[str, Any]:
    location = error["loc"]
    field = _where((prefix, *location) if prefix else location)
    private = any(part in _PRIVATE for part in location)
    value = error.get("input")
    scalar = value is None or isinstance(value, str | int | float | bool)
    match error["type"]:
        case "extra_forbidden":
            return {"field": field, "message": "unknown field; remove it"}
        case "missing":
            return {"field": field, "message": "is required"}
        case "json_invalid":
            return {"field": field or "body", "message": f"{error['msg']}; send one JSON object in UTF-8"}
    message = error["msg"].removeprefix("Value error, ")
    entry: dict[str, Any] = {"field": field, "message": message}
    if scalar and not private:
        entry["value"] = value[:_SHOWN] if isinstance(value, str) else value
        if "not" not in message:
            entry["message"] = f"{message}, not {shown(value)}"
    return entry


def invalid(error: ValidationError, *, prefix: str = "") -> RunraError:
    """INVALID_REQUEST naming each field by its wire name, its value and what it may be (ten of them at most)."""
    problems = [_one(item, prefix) for item in error.errors(include_url=False, include_context=False)[:10]]
    text = "; ".join(f"{p['field']}: {p['message']}" if p["field"] else p["message"] for p in problems)
    details: dict[str, Any] = {"errors": problems}
    if problems:
        details |= {key: problems[0][key] for key in ("field", "value") if key in problems[0]}
    return RunraError("INVALID_REQUEST", text, details=details)


def bad_request(field: str, message: str, value: object = None, *, status: int | None = None) -> RunraError:
    """INVALID_REQUEST about one field."""
    details: dict[str, Any] = {"field": field}
    if value is not None:
        details["value"] = shown(value) if not isinstance(value, int | bool) else value
    return RunraError("INVALID_REQUEST", f"{field}: {message}", details=details, status=status)


def unexpected() -> RunraError:
    """What a caller sees of an exception nobody expected; the trace is in the server's log alone."""
    return RunraError(
        "INTERNAL_ERROR",
        "the server failed in a way it did not expect; its log has the details under this request id",
    )


def error_body(error: RunraError, request_id: str) -> bytes:
    return json.dumps(error.to_wire(request_id), ensure_ascii=False, default=str).encode(errors="replace")


def fault(error: RunraError, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """The HTTP answer for an error."""
    extra = dict(headers or {})
    if error.code == "UNAUTHORIZED":
        extra["WWW-Authenticate"] = "Bearer"
    if error.code in ("RATE_LIMITED", "RESOURCE_EXHAUSTED"):
        extra["Retry-After"] = str(error.details.get("retryAfter", 1))
    if error.status == 416:
        extra["Content-Range"] = f"bytes */{error.details.get('sizeBytes', '*')}"
    return Response(error_body(error, request_id), error.status or 500, extra, media_type=JSON)
