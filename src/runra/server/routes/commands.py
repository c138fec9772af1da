"""Running a command: one answer, a stream of events, or a process left in the background."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from pydantic_core import to_json
from starlette.responses import Response

from runra.contract import ExecRequest, ExecutionResult, ProcessStarted
from runra.errors import RunraError
from runra.node.agent.types import Output
from runra.server.answers import answer
from runra.server.commands import check_length, timeout_error
from runra.server.decode import OutputDecoder, Piece
from runra.server.follow import Stream
from runra.server.nodeport import Sandbox
from runra.server.patience import lost
from runra.server.routing import Caller, Routes
from runra.server.streams import EVENT_HEADERS, Opened, event, events
from runra.server.wire import iso

routes: Final = Routes("commands")

_EXAMPLE: Final = (
    'event: start\ndata: {"pid":7}\n\nid: 3\nevent: stdout\ndata: {"data":"hi\\n","offset":0}\n\n'
    'id: 3\nevent: exit\ndata: {"stdout":"","stderr":"","exitCode":0,"durationMs":2,"signal":null,"oom":false,'
    '"truncated":false}\n\n'
)


@routes.route(
    "POST",
    "/sandboxes/{id}/execute",
    scope="sandbox:execute",
    answer=ExecutionResult,
    content={"text/event-stream": _EXAMPLE},
    also={202: {"description": "`background: true`: the command runs", "model": ProcessStarted}},
    headers={
        "Idempotency-Key": "a retry with the same key attaches to the first call's process and runs nothing twice",
        "Accept": "`text/event-stream` streams the output: events start, stdout, stderr, exit (or error)",
    },
)
async def execute(call: Caller, body: ExecRequest) -> Response:
    """Run a program. A non-zero exit code is a result, not an error.

    A client that goes away does not end the command: its timeout does, or a signal. In the event stream the `exit`
    event's `stdout` and `stderr` are empty, since they have been streamed.
    """
    check_length(body)
    sandbox = call.sandbox
    executions = call.services.executions
    tag = executions.tags.tag(call.key.id, sandbox, call.idempotency_key, body)
    if body.background:
        process = await executions.background(sandbox, body, tag)
        return answer(ProcessStarted(pid=process.pid, started_at=iso(process.started_at_ms)), 202)
    if "text/event-stream" in (call.header(b"accept") or ""):
        return events(call, _streamed(call, sandbox, body, tag))
    return answer(await executions.collect(sandbox, body, tag))


@asynccontextmanager
async def _streamed(call: Caller, sandbox: Sandbox, body: ExecRequest, tag: str) -> AsyncIterator[Opened]:
    async with call.services.executions.stream(sandbox, body, tag) as (pid, stream):
        yield Opened(output_events(call, sandbox, pid, stream, 0, body.timeout_ms), EVENT_HEADERS)


async def output_events(
    call: Caller, sandbox: Sandbox, pid: int, stream: Stream, offset: int, timeout_ms: int | None
) -> AsyncGenerator[bytes]:
    """A process's output as server-sent events, from `start` to `exit` or `error`."""
    yield event("start", {"pid": pid})
    decoder = OutputDecoder(offset)
    reached, gap = offset, False
    while True:
        item = await stream.next()
        if isinstance(item, Output):
            gap = gap or item.offset > reached
            reached = item.offset + len(item.data)
            if (piece := decoder.feed(item)) is not None:
                yield _piece(piece)
            continue
        for piece in decoder.finish():
            yield _piece(piece)
        if isinstance(item, RunraError):
            yield event("error", (await lost(sandbox, item)).to_wire(call.request_id))
        elif item.timed_out:
            yield event("error", timeout_error(timeout_ms, item.result).to_wire(call.request_id))
        else:
            # A gap: the agent's buffer had let go of what came before. Never silently.
            result = item.result.model_copy(update={"truncated": gap})
            yield event("exit", result.model_dump_json(by_alias=True), decoder.resume)
        return


def _piece(piece: Piece) -> bytes:
    # Six times as fast as `json`, which is what much output costs. It is UTF-8 all through: `as_fields` sees to that.
    return event(piece.stream, to_json(piece.fields), piece.resume)
