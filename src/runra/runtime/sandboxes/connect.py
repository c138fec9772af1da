"""Frames of the Connect protocol, JSON codec: what envd answers a stream with. All of it is untrusted input."""

from __future__ import annotations

import json
import struct
from typing import Any, Final

from runra.errors import RunraError

_HEAD: Final = struct.Struct(">BI")
_LAST: Final = 0x02
_COMPRESSED: Final = 0x01
#: Longest frame taken: output comes in pieces of at most some 64 KiB, in base64.
MAX_FRAME: Final = 16 << 20


def frame(message: Any) -> bytes:
    """A message as a frame."""
    data = json.dumps(message).encode()
    return _HEAD.pack(0, len(data)) + data


class Frames:
    """Cuts a stream into messages, wherever its pieces begin and end. `ended` says that the last frame has come."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self.ended = False

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that became whole. Raises NETWORK_ERROR for what is no such stream, and the contract's error for
        a last frame that carries one."""
        self._waiting += data
        found: list[dict[str, Any]] = []
        while len(self._waiting) >= _HEAD.size and not self.ended:
            flags, length = _HEAD.unpack_from(self._waiting)
            if length > MAX_FRAME or flags & ~(_LAST | _COMPRESSED):
                raise _no_stream(f"a frame of {length} bytes, flags {flags}")
            if flags & _COMPRESSED:
                raise _no_stream("a compressed frame, though none was asked for")
            end = _HEAD.size + length
            if len(self._waiting) < end:
                break
            try:
                message = json.loads(bytes(self._waiting[_HEAD.size : end]) or b"{}")
            except ValueError:
                raise _no_stream("a frame that is no JSON") from None
            del self._waiting[:end]
            if not isinstance(message, dict):
                raise _no_stream("a frame that is no object")
            if flags & _LAST:
                self.ended = True
                if message.get("error") is not None:
                    raise connect_error(message["error"])
            else:
                found.append(message)
        return found


def _no_stream(why: str) -> RunraError:
    return RunraError(
        "NETWORK_ERROR", f"the sandbox's answer is no Connect stream: {why}", details={"reason": "protocol"},
        retryable=False,
    )  # fmt: skip


def connect_error(error: Any, doing: str = "") -> RunraError:
    """An error of the Connect protocol, `{code, message}`, with the contract's code."""
    given = error if isinstance(error, dict) else {}
    code, text = str(given.get("code", "unknown")), str(given.get("message", ""))[:500]
    message = f"{doing}: {text or code}" if doing else text or code
    details: dict[str, Any] = {"connectCode": code}
    match code:
        case "invalid_argument" | "out_of_range":
            if "not a directory" in text:
                details["reason"] = "not_a_directory"
            return RunraError("INVALID_REQUEST", message, details=details)
        case "not_found":
            return RunraError("INVALID_REQUEST", message, details={**details, "reason": "not_found"})
        case "already_exists":
            return RunraError("INVALID_REQUEST", message, details={**details, "reason": "exists"})
        case "unauthenticated":
            return RunraError("UNAUTHORIZED", message, details=details)
        case "permission_denied":
            return RunraError("FORBIDDEN", message, details=details)
        case "failed_precondition" | "aborted":
            return RunraError("INVALID_STATE", message, details=details)
        case "resource_exhausted":
            return RunraError("RESOURCE_EXHAUSTED", message, details=details)
        case "deadline_exceeded" | "unavailable" | "canceled":
            return RunraError("NETWORK_ERROR", message, details={**details, "reason": "closed"}, retryable=False)
    return RunraError("INTERNAL_ERROR", message, details=details)
