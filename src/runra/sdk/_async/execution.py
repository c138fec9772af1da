"""Running a command: answered whole, streamed line by line, or left in the background."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

from runra.contract import ExecRequest, ExecutionResult, ProcessStarted
from runra.errors import RunraError
from runra.sdk._async.api import AsyncApi
from runra.sdk._async.outputs import AsyncOutputs
from runra.sdk._async.processes import AsyncProcess
from runra.sdk.concurrency_async import call_back
from runra.sdk.failures import CommandFailed, invalid
from runra.sdk.output import Kept, Lines, OutputChunk
from runra.sdk.types import ExecOptions, checked, parsed
from runra.sdk.wire import new_key, sandbox_path

#: What a command has when nothing is said, in ms (the document's default).
_DEFAULT_MS = 60_000


async def execute(
    api: AsyncApi, sandbox_id: str, command: str | Sequence[str], options: ExecOptions
) -> ExecutionResult | AsyncProcess:
    request = _request(command, options)
    told = command if isinstance(command, str) else shlex.join(command)
    if options.background:
        return await _background(api, sandbox_id, told, request, options)
    if options.on_stdout is not None or options.on_stderr is not None:
        result = await _streamed(api, sandbox_id, request, options)
    else:
        result = await _whole(api, sandbox_id, request)
    if options.check and result.exit_code != 0:
        raise CommandFailed(told, result)
    return result


def _request(command: str | Sequence[str], options: ExecOptions) -> ExecRequest:
    if isinstance(command, str):
        given: dict[str, Any] = {"command": command}
    elif isinstance(command, Sequence) and not isinstance(command, bytes | bytearray):
        given = {"argv": list(command)}
    else:
        raise invalid("command", f"must be a string or a list of strings, not {type(command).__name__}")
    stdin = options.stdin
    if isinstance(stdin, bytes):
        try:
            stdin = stdin.decode()
        except UnicodeDecodeError:
            raise invalid(
                "stdin", "bytes must be UTF-8 here; for others run it with background=True and use send_stdin"
            ) from None
    given.update(cwd=options.cwd, env=options.env, timeout_ms=options.timeout_ms, stdin=stdin, user=options.user)
    if options.background:
        given["background"] = True
    return checked(ExecRequest, {name: value for name, value in given.items() if value is not None})


async def _whole(api: AsyncApi, sandbox_id: str, request: ExecRequest) -> ExecutionResult:
    path = sandbox_path(sandbox_id, "execute")
    limit = (request.timeout_ms if "timeout_ms" in request.model_fields_set else _DEFAULT_MS) + api.settings.timeout_ms
    answer = await api.call("POST", path, content=request.to_wire(), key=new_key(), timeout_ms=limit)
    doing = f"POST {path}"
    return parsed(ExecutionResult, answer.json(doing), doing, answer.headers.get("x-request-id", ""))


async def _background(
    api: AsyncApi, sandbox_id: str, told: str, request: ExecRequest, options: ExecOptions
) -> AsyncProcess:
    if options.on_stdout is not None or options.on_stderr is not None or options.check:
        raise invalid("background", "has no callbacks and no check; use the handle's logs() and wait()")
    path = sandbox_path(sandbox_id, "execute")
    answer = await api.call("POST", path, content=request.to_wire(), key=new_key())
    started = parsed(ProcessStarted, answer.json(f"POST {path}"), f"POST {path}")
    return AsyncProcess(api, sandbox_id, started.pid, command=told, started_at=started.started_at)


async def _streamed(api: AsyncApi, sandbox_id: str, request: ExecRequest, options: ExecOptions) -> ExecutionResult:
    kept = Kept()
    lines = {"stdout": (Lines(), options.on_stdout), "stderr": (Lines(), options.on_stderr)}
    outputs = AsyncOutputs(api, sandbox_id, start=request.to_wire())
    try:
        async with aclosing(outputs.chunks()) as chunks:
            async for chunk in chunks:
                kept.add(chunk)
                await _tell(*lines[chunk.stream], chunk, last=False)
    except RunraError as error:
        if error.code == "EXECUTION_TIMEOUT":
            for name in ("stdout", "stderr"):
                if not error.details.get(name):
                    error.details[name] = kept.text("stdout" if name == "stdout" else "stderr")
            await _end(lines)
        raise
    await _end(lines)
    return outputs.finished(kept)


async def _end(lines: dict[str, tuple[Lines, Callable[[str], Any] | None]]) -> None:
    """Tell the last line of each stream, which had no end."""
    for splitter, callback in lines.values():
        await _tell(splitter, callback, OutputChunk("stdout", b"", 0), last=True)


async def _tell(splitter: Lines, callback: Callable[[str], Any] | None, chunk: OutputChunk, *, last: bool) -> None:
    if callback is None:
        return
    for line in splitter.feed(chunk.data, last):
        await call_back(callback, line)
