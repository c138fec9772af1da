"""The one error type: what went wrong, which value, and whether trying again can help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

ErrorCode = Literal[
    "INVALID_REQUEST",
    "INVALID_CONFIG",
    "UNAUTHORIZED",
    "FORBIDDEN",
    "SANDBOX_NOT_FOUND",
    "INVALID_STATE",
    "RATE_LIMITED",
    "RESOURCE_EXHAUSTED",
    "INTERNAL_ERROR",
    "COMMAND_TOO_LONG",
    "EXECUTION_TIMEOUT",
    "NETWORK_ERROR",
]

#: HTTP status of each code. NETWORK_ERROR is made by a client that got no answer: status 0.
STATUS: Final[Mapping[str, int]] = {
    "INVALID_REQUEST": 400,
    "INVALID_CONFIG": 400,
    "UNAUTHORIZED": 401,
    "FORBIDDEN": 403,
    "SANDBOX_NOT_FOUND": 404,
    "EXECUTION_TIMEOUT": 408,
    "INVALID_STATE": 409,
    "COMMAND_TOO_LONG": 413,
    "RATE_LIMITED": 429,
    "INTERNAL_ERROR": 500,
    "RESOURCE_EXHAUSTED": 503,
    "NETWORK_ERROR": 0,
}

#: Codes where the same call may succeed later. NETWORK_ERROR says so only when nothing was sent.
RETRYABLE: Final = frozenset({"RATE_LIMITED", "RESOURCE_EXHAUSTED"})


class RunraError(Exception):
    """Every failure Runra reports, on the client and on the server alike.

    `code` is one of `ErrorCode`; `status` the HTTP status (0 when no answer came); `details` names the
    offending values; `retryable` says whether the same call may succeed if repeated; `request_id` finds
    the call in the server's log (empty when it never reached a server).
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        retryable: bool | None = None,
        status: int | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message
        self.details: dict[str, Any] = dict(details or {})
        self.retryable = code in RETRYABLE if retryable is None else retryable
        self.status = STATUS[code] if status is None else status
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def to_wire(self, request_id: str = "") -> dict[str, Any]:
        """The body of an error answer (spec 1, REST)."""
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "details": self.details,
                "retryable": self.retryable,
                "requestId": request_id or self.request_id,
            }
        }

    @classmethod
    def from_wire(cls, status: int, body: Any, request_id: str = "") -> RunraError:
        """Rebuild the error a server answered; an answer that is not ours becomes INTERNAL_ERROR or NETWORK_ERROR."""
        error = body.get("error") if isinstance(body, dict) else None
        if not isinstance(error, dict) or error.get("code") not in get_args(ErrorCode):
            return cls(
                "INTERNAL_ERROR",
                f"the server answered {status} without an error Runra knows; is this a Runra server?",
                status=status,
                retryable=status in (502, 503, 504),
                request_id=request_id,
            )
        details = error.get("details")
        return cls(
            error["code"],
            str(error.get("message", "")),
            details=details if isinstance(details, dict) else None,
            retryable=error.get("retryable") is True,
            status=status,
            request_id=str(error.get("requestId") or request_id),
        )


def not_found(sandbox_id: str) -> RunraError:
    """The answer for an id that does not exist and for one that belongs to another tenant alike."""
    return RunraError(
        "SANDBOX_NOT_FOUND",
        f"no sandbox {sandbox_id!r}; list yours with GET /v1/sandboxes",
        details={"sandboxId": sandbox_id},
    )


def no_such(what: str, reference: str) -> RunraError:
    """The answer for something kept (a snapshot, a volume) that does not exist or belongs to another tenant."""
    return RunraError(
        "INVALID_REQUEST",
        f"no {what} {reference[:80]!r}; list yours with GET /v1/{what}s",
        details={what: reference[:80]},
        status=404,
    )
