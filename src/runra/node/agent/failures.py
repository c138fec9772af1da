"""Errors the agent reports, told in the contract's terms: an errno becomes a code and a reason."""

from __future__ import annotations

import errno
import os
import signal
from typing import Any, Final

from runra.errors import RunraError
from runra.node.agent.frames import Field, Fields, Stage

#: errno -> the `reason` in an error's details.
REASONS: Final = {
    errno.ENOENT: "not_found",
    errno.EEXIST: "exists",
    errno.ENOTDIR: "not_a_directory",
    errno.EISDIR: "is_a_directory",
    errno.ENOTEMPTY: "not_empty",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.EROFS: "read_only",
    errno.ELOOP: "too_many_links",
    errno.EMLINK: "too_many_links",
    errno.ENAMETOOLONG: "name_too_long",
    errno.ENXIO: "not_a_regular_file",
    errno.EXDEV: "cross_device",
    errno.EBUSY: "busy",
    errno.ETXTBSY: "busy",
    errno.EFBIG: "too_large",
    errno.EBADMSG: "bad_archive",
    errno.EINVAL: "invalid",
    errno.ESRCH: "no_such_process",
}
_EXHAUSTED: Final = {
    errno.EAGAIN: "process_limit",
    errno.ENOMEM: "out_of_memory",
    errno.EMFILE: "too_many_open_files",
    errno.ENFILE: "too_many_open_files",
    errno.EOVERFLOW: "watch_overflow",
    errno.EUSERS: "too_many_watches",
}
#: Errnos are below this on Linux.
_ERRNOS: Final = 4096


def _name(code: int) -> str:
    return errno.errorcode.get(code, str(code))


def _words(code: int) -> str:
    """What an errno means. It comes from the sandbox: it may be any number."""
    return os.strerror(code) if code < _ERRNOS else f"error {code}"


def _exhausted(code: int, message: str) -> RunraError:
    return RunraError(
        "RESOURCE_EXHAUSTED",
        f"the sandbox has no room for this: {message}",
        details={"reason": _EXHAUSTED[code], "errno": _name(code)},
    )


def file_error(code: int, message: str, path: str) -> RunraError:
    """A failed file operation on `path`."""
    details: dict[str, Any] = {"reason": REASONS.get(code, "io_error"), "path": path, "errno": _name(code)}
    if code in (errno.ENOSPC, errno.EDQUOT):
        details["reason"] = "disk_full"
        return RunraError(
            "RESOURCE_EXHAUSTED", f"the sandbox's disk is full: {message}", details=details, retryable=False
        )
    if code in _EXHAUSTED:
        error = _exhausted(code, message)
        error.details["path"] = path
        return error
    return RunraError("INVALID_REQUEST", f"{path}: {message}", details=details)


def agent_error(fields: Fields, **about: Any) -> RunraError:
    """What an ERROR frame says; `about` are the request's values that may be at fault."""
    code = fields.number(Field.ERRNO, 0)
    stage = fields.number(Field.STAGE, 0)
    message = fields.text(Field.MESSAGE, "") or _words(code)
    if stage == Stage.NO_PROCESS:
        return RunraError(
            "INVALID_REQUEST",
            "no such process; the sandbox's process list has those that live and the latest that ended",
            details={"reason": "no_such_process", **{k: v for k, v in about.items() if k == "pid"}},
        )
    if stage == Stage.LIMIT and code == errno.EAGAIN:
        return RunraError(
            "RESOURCE_EXHAUSTED",
            f"the sandbox has no room for this: {message}; end some, or try later",
            details={"reason": _EXHAUSTED[code], "errno": _name(code)},
        )
    if stage == Stage.TAKEN:
        return RunraError("INVALID_STATE", "another reader took over this process's output")
    if stage == Stage.PART:
        return RunraError(
            "INVALID_STATE",
            f"the sandbox's agent cannot let its processes be saved: {message}",
            details={"reason": "not_saved", "errno": _name(code)},
        )
    if stage == Stage.CONNECT:
        return port_error(code, message, about.get("port"))
    if code in _EXHAUSTED:
        return _exhausted(code, message)
    details: dict[str, Any] = {"reason": REASONS.get(code, "failed"), "errno": _name(code)}
    if stage == Stage.CWD:
        details |= {"reason": "bad_cwd", "cwd": about.get("cwd")}
        return RunraError("INVALID_REQUEST", f"cwd {about.get('cwd')!r}: {message}", details=details)
    if stage == Stage.USER:
        reason = "unknown_user" if code == errno.ENOENT else "bad_user"
        text = "is not in the sandbox's /etc/passwd" if code == errno.ENOENT else f"cannot be used: {message}"
        details |= {"reason": reason, "user": about.get("user")}
        return RunraError("INVALID_REQUEST", f"user {about.get('user')!r} {text}", details=details)
    if stage == Stage.PTY:
        details["reason"] = "no_terminal"
        return RunraError("INVALID_REQUEST", f"the sandbox gives no terminal: {message}", details=details)
    if stage == Stage.REQUEST:
        return RunraError("INVALID_REQUEST", message, details=details)
    return RunraError("INTERNAL_ERROR", f"the sandbox could not start it: {message}", details=details)


def port_error(code: int, message: str, port: object) -> RunraError:
    """A connection to a port inside that could not be made, or broke."""
    closed = code in (errno.ECONNREFUSED, errno.EADDRNOTAVAIL)
    text = "nothing listens there in the sandbox; start the server first" if closed else message
    details = {"reason": "port_closed" if closed else "connection_broke", "port": port, "errno": _name(code)}
    return RunraError("INVALID_STATE", f"port {port}: {text}", details=details)


def signal_name(number: int) -> str:
    """A signal's name as `kill -l` shows it."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - 34}" if 34 <= number <= 64 else f"SIG{number}"
