"""What E2B's SDK raises, with the contract's codes."""

from __future__ import annotations

from typing import Any

from e2b import exceptions as e2b

from runra.errors import ErrorCode, RunraError, not_found

#: The most special first: most of these inherit from one another.
_CODES: tuple[tuple[type[Exception], ErrorCode, str], ...] = (
    (e2b.AuthenticationException, "UNAUTHORIZED", "set sandbox.apiKey or E2B_API_KEY to a key of this E2B"),
    (e2b.RateLimitException, "RATE_LIMITED", "wait a moment and try again"),
    (e2b.ServiceBusyException, "RESOURCE_EXHAUSTED", "it has no room now; try again later"),
    (e2b.NotEnoughSpaceException, "RESOURCE_EXHAUSTED", "the sandbox's disk is full"),
    (e2b.GuestUnresponsiveException, "INVALID_STATE", "it can only be resumed by a reboot, at E2B itself"),
    (e2b.SandboxUnreachableException, "NETWORK_ERROR", "it may still run"),
    (e2b.InvalidArgumentException, "INVALID_REQUEST", ""),
    (e2b.TemplateException, "INVALID_REQUEST", "build the template anew"),
)
_BY_STATUS: dict[int, ErrorCode] = {
    400: "INVALID_REQUEST",
    401: "UNAUTHORIZED",
    403: "FORBIDDEN",
    409: "INVALID_STATE",
    429: "RATE_LIMITED",
    503: "RESOURCE_EXHAUSTED",
}


def is_gone(error: BaseException) -> bool:
    """Whether the sandbox does not answer because it is paused, or is no more: only E2B's API can tell which."""
    return isinstance(error, e2b.SandboxNotRunningException)


def mapped(error: Exception, doing: str, id: str = "", path: str = "") -> RunraError:
    """The error as Runra's. Texts are E2B's own, without the key: it travels in a header."""
    text = str(error)[:500] or type(error).__name__
    details: dict[str, Any] = {"provider": "e2b", "cause": type(error).__name__}
    if id:
        details["sandboxId"] = id
    if isinstance(error, e2b.SandboxNotFoundException | e2b.SandboxNotRunningException):
        return not_found(id)
    if isinstance(error, e2b.NotFoundException):
        if path:
            return RunraError(
                "INVALID_REQUEST", f"{doing} {path[:200]!r}: not found", details={**details, "reason": "not_found"}
            )
        return RunraError("INVALID_REQUEST", f"e2b, {doing}: {text}", details=details)
    for kind, code, cure in _CODES:
        if isinstance(error, kind):
            if isinstance(error, e2b.NotEnoughSpaceException):
                details["reason"] = "disk_full"
            if path and "director" in text.lower():
                details["reason"] = "is_a_directory" if "is a directory" in text.lower() else "not_a_directory"
            return RunraError(code, f"e2b, {doing}: {text}" + (f"; {cure}" if cure else ""), details=details)
    status = getattr(error, "status_code", None)
    if isinstance(error, e2b.SandboxException) and isinstance(status, int):
        if status == 404:
            return RunraError("INVALID_REQUEST", f"e2b, {doing}: {text}", details={**details, "field": "image"})
        return RunraError(
            _BY_STATUS.get(status, "INTERNAL_ERROR"), f"e2b, {doing}: {text}", details={**details, "status": status},
            retryable=status in (429, 502, 503, 504),
        )  # fmt: skip
    if isinstance(error, e2b.TimeoutException | TimeoutError | OSError) or "Error" in type(error).__name__:
        # Its transports raise errors of three libraries; what they share is that no answer came.
        return RunraError(
            "NETWORK_ERROR", f"e2b, {doing}: {text}; it may have happened", details=details, retryable=False
        )
    return RunraError("INTERNAL_ERROR", f"e2b, {doing}: {text}", details=details)
