"""A failure in the words of the client's own API, so that an agent stops when it should and tries again when it may."""

from __future__ import annotations

import json
from typing import Any, Final

from runra.errors import RunraError
from runra.runtime.llms.failures import kind_of
from runra.runtime.llms.types import Format
from runra.runtime.llms.wires.messages_answers import ERROR_TYPES
from runra.runtime.llms.wires.responses_written import ERROR_CODES

#: HTTP status by kind. What no repetition can mend is a 400, the one status after which claude-code, codex and opencode
#: all stop at once and show the message: codex repeats a 403 five times, claude-code calls it a failed log-in.
STATUS: Final = {
    "token": 401,
    "auth": 400,
    "quota": 400,
    "budget": 400,
    "turns": 400,
    "rate_limit": 429,
    "context_too_long": 400,
    "refused": 400,
    "model_not_found": 404,
    "unsupported": 400,
    "invalid": 400,
    "unavailable": 503,
    "protocol": 502,
}


def answer(error: RunraError, format: Format) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    kind = kind_of(error)
    status = STATUS.get(kind, 500)
    headers = {"content-type": "application/json"}
    if not error.retryable:
        headers["x-should-retry"] = "false"  # what the official clients go by
    elif "retryAfterMs" in error.details:
        headers["retry-after"] = str(max(1, -(-int(error.details["retryAfterMs"]) // 1000)))
    return status, headers, json.dumps(_body(kind, error.message, format)).encode()


def _body(kind: str, message: str, format: Format) -> dict[str, Any]:
    if format == "messages":
        return {"type": "error", "error": {"type": ERROR_TYPES.get(kind, "api_error"), "message": message}}
    code = ERROR_CODES.get(kind, "server_error")
    retried = kind in ("unavailable", "protocol", "")
    return {
        "error": {
            "message": message,
            "type": "server_error" if retried else "invalid_request_error",
            "param": None,
            "code": {"auth": "invalid_api_key", "token": "invalid_api_key"}.get(kind, code),
        }
    }
