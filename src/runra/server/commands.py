"""A command as the request has it and as the agent wants it, and what is said when it cannot be or takes too long."""

from __future__ import annotations

import posixpath
from typing import Final

from runra.contract import MAX_COMMAND_BYTES, ExecRequest, ExecutionResult
from runra.errors import RunraError
from runra.node.agent.types import ExecSpec
from runra.server.nodeport import Sandbox

#: What a terminal runs when the caller names nothing: the sandbox's best shell.
SHELL: Final = "if command -v bash >/dev/null; then exec bash; else exec sh; fi"


def check_length(request: ExecRequest) -> None:
    """COMMAND_TOO_LONG beyond 1 MiB of UTF-8, for `argv` in total."""
    if request.command is not None:
        size = len(request.command.encode()) if len(request.command) > MAX_COMMAND_BYTES // 4 else 0
    else:
        size = sum(len(word.encode()) for word in request.argv or ())
    if size > MAX_COMMAND_BYTES:
        raise RunraError(
            "COMMAND_TOO_LONG",
            f"the command has {size} bytes, at most {MAX_COMMAND_BYTES} are possible; "
            "write it to a file with PUT …/files and run that",
            details={"bytes": size, "maximum": MAX_COMMAND_BYTES},
        )


def spec_of(sandbox: Sandbox, request: ExecRequest, tag: str) -> ExecSpec:
    """The request as the agent wants it: absolute folder, whole environment, the timeout that really applies."""
    config = sandbox.config
    limited = not request.background or "timeout_ms" in request.model_fields_set
    return ExecSpec(
        command=request.command,
        argv=tuple(request.argv or ()),
        cwd=posixpath.join(config.workdir, request.cwd) if request.cwd else config.workdir,
        env={**sandbox.env, **request.env} if request.env else sandbox.env,
        user=request.user or "",
        timeout_ms=request.timeout_ms if limited else None,
        stdin=request.stdin is not None or request.background,
        tag=tag,
    )


def timeout_error(timeout_ms: int | None, result: ExecutionResult) -> RunraError:
    return RunraError(
        "EXECUTION_TIMEOUT",
        f"the command ran longer than timeoutMs {timeout_ms} and was killed with all it started; "
        "raise timeoutMs (at most 300000), or run it with background: true",
        details={
            "timeoutMs": timeout_ms,
            "durationMs": result.duration_ms,
            "stdout": result.stdout,
            "stderr": result.stderr,
            "truncated": result.truncated,
        },
    )
