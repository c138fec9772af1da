"""What goes wrong between client and server: failures of the connection, and the errors callers see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, cast

from runra.errors import STATUS, ErrorCode, RunraError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runra.contract import ExecutionResult

Reason = Literal["connect", "tls", "timeout", "closed", "protocol"]

#: Ends most messages about a server that could not be reached.
_LOCAL: Final = ("127.0.0.1", "localhost", "[::1]")


class Failure(Exception):
    """No answer, or half of one. `sent` says whether the server may have seen the request."""

    def __init__(self, reason: Reason, sent: bool, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.sent = sent


class CommandFailed(RunraError):
    """A command checked with `check=True` ended with another exit code than 0.

    `result` is its whole ExecutionResult. `code` is `COMMAND_FAILED`, which no server answers: Runra itself did
    what it was asked.
    """

    def __init__(self, command: str, result: ExecutionResult) -> None:
        ending = f"signal {result.signal}" if result.signal else f"exit code {result.exit_code}"
        last = result.stderr.strip().splitlines()[-1:] or result.stdout.strip().splitlines()[-1:]
        said = f": {last[0][:500]}" if last else ""
        details: dict[str, Any] = {"command": command[:1000], "exitCode": result.exit_code, "signal": result.signal}
        # The document's list of codes is the server's; this one is made here, and only for who asked for it.
        super().__init__(
            cast(ErrorCode, "COMMAND_FAILED"), f"{ending}{said}", details=details, retryable=False, status=0
        )
        self.result = result


def network_error(failure: Failure, api_url: str, doing: str, timeout_s: float | None = None) -> RunraError:
    """NETWORK_ERROR: what failed, and what to do. Retryable only when the server cannot have seen the request."""
    details: dict[str, Any] = {"reason": failure.reason, "sent": failure.sent, "apiUrl": api_url}
    match failure.reason:
        case "connect" if any(host in api_url for host in _LOCAL):
            message = f"no server at {api_url} ({failure}): start one with `runra serve`, or set RUNRA_API_URL"
        case "connect":
            message = f"cannot reach {api_url} ({failure}): check the address (RUNRA_API_URL) and the network"
        case "tls":
            message = f"{api_url} cannot be trusted ({failure}): check its certificate, or the URL's scheme"
        case "timeout" if not failure.sent:
            message = f"{api_url} did not take the connection in time ({failure}): check the address and the network"
        case "timeout":
            waited = f" within {timeout_s:g} s" if timeout_s is not None else ""
            message = f"{doing}: no answer{waited}; it may still happen. Raise timeout_ms if it needs longer"
        case "closed":
            message = f"{doing}: the connection broke before the answer was whole ({failure}); it may have happened"
        case _:
            message = f"{doing}: what {api_url} answers is no HTTP ({failure}); is this a Runra server?"
    return RunraError("NETWORK_ERROR", message, details=details, retryable=not failure.sent)


def invalid(field: str, message: str) -> RunraError:
    """INVALID_REQUEST about one argument, found before anything was sent."""
    return RunraError("INVALID_REQUEST", f"{field}: {message}", details={"field": field})


def strange_answer(doing: str, why: str, request_id: str = "") -> RunraError:
    """An answer that is no answer to this: another server, or a much newer one."""
    return RunraError(
        "INTERNAL_ERROR",
        f"{doing}: the answer has a shape this client does not know ({why}); is this a Runra server of this version?",
        request_id=request_id,
    )


def told_error(body: Any) -> RunraError:
    """An error told within a stream, which has no HTTP status of its own: its code's."""
    error = RunraError.from_wire(0, body)
    error.status = STATUS[error.code]
    return error


def server_error(status: int, body: Any, headers: Mapping[str, str]) -> RunraError:
    """The error of an answer."""
    if 300 <= status < 400:
        return RunraError(
            "INTERNAL_ERROR",
            f"the server redirects ({status}) to {headers.get('location', 'nowhere')[:200]!r}, and a key is not sent "
            "after a redirect; set api_url to the final address",
            status=status,
            request_id=headers.get("x-request-id", ""),
        )
    return RunraError.from_wire(status, body, headers.get("x-request-id", ""))
