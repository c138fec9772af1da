"""Processes of a sandbox: those running and those remembered, their output, stdin and signals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Final

from pydantic import Field
from starlette.responses import Response

from runra.contract import Page, ProcessInfo, SignalRequest
from runra.errors import RunraError
from runra.server.answers import answer, empty, page
from runra.server.calls import Query
from runra.server.faults import bad_request
from runra.server.routes.commands import output_events
from runra.server.routing import Caller, Parameters, Routes
from runra.server.streams import EVENT_HEADERS, Opened, events
from runra.server.wire import process_info, signal_number

routes: Final = Routes("processes")

_MAX_OFFSET: Final = 2**62


class OutputQuery(Query):
    #: Where to continue, in bytes of stdout and stderr together.
    offset: Annotated[int, Field(ge=0, le=_MAX_OFFSET)] | None = None


class StdinQuery(Query):
    close: bool = False


@contextmanager
def _named(pid: int) -> Iterator[None]:
    """A process named in the path that is not there is a 404, as anything else named there."""
    try:
        yield
    except RunraError as error:
        if error.details.get("reason") == "no_such_process":
            raise _missing(pid) from error
        raise


def _missing(pid: int) -> RunraError:
    return RunraError(
        "INVALID_REQUEST",
        f"pid: no process {pid} here, or it ended too long ago; list them with GET …/processes",
        details={"field": "pid", "value": pid, "reason": "no_such_process"},
        status=404,
    )


async def _processes(call: Caller) -> list[ProcessInfo]:
    sandbox, executions = call.sandbox, call.services.executions
    async with sandbox.use() as link:
        return [process_info(it, oom=executions.teller.was_oom(sandbox.id, it.pid)) for it in await link.processes()]


@routes.route("GET", "/sandboxes/{id}/processes", scope="sandbox:execute", answer=Page[ProcessInfo])
async def list_processes(call: Caller) -> Response:
    """List the commands that run and the latest that ended."""
    found = await _processes(call)
    return page(found, len(found), len(found), 0)


@routes.route("GET", "/sandboxes/{id}/processes/{pid}", scope="sandbox:execute", answer=ProcessInfo)
async def get_process(call: Caller) -> Response:
    """Get one command's state."""
    pid = call.pid
    for process in await _processes(call):
        if process.pid == pid:
            return answer(process)
    raise _missing(pid)


@routes.route(
    "GET",
    "/sandboxes/{id}/processes/{pid}/output",
    scope="sandbox:execute",
    content={"text/event-stream": 'event: start\ndata: {"pid":7}\n\n'},
    headers={"Last-Event-ID": "continue after this event; `offset` wins over it"},
)
async def follow_output(call: Caller, query: Annotated[OutputQuery, Parameters()]) -> Response:
    """Stream a command's output from an offset, past and to come; events as in execute."""
    pid, offset = call.pid, query.offset
    if offset is None:
        last = call.header(b"last-event-id") or "0"
        if not (last.isascii() and last.isdigit() and len(last) < 19):
            raise bad_request("Last-Event-ID", "must be the id of an output event, a number", last)
        offset = int(last)
    return events(call, _followed(call, pid, offset))


@asynccontextmanager
async def _followed(call: Caller, pid: int, offset: int) -> AsyncIterator[Opened]:
    sandbox = call.sandbox
    # `use`: an open stream is activity, and a paused sandbox answers INVALID_STATE (or resumes).
    with _named(pid):
        async with sandbox.use(), call.services.executions.attached(sandbox, pid, offset) as (_, stream):
            yield Opened(output_events(call, sandbox, pid, stream, offset, None), EVENT_HEADERS)


@routes.route(
    "POST",
    "/sandboxes/{id}/processes/{pid}/stdin",
    scope="sandbox:execute",
    status=204,
    raw_body="application/octet-stream",
)
async def write_stdin(call: Caller, query: Annotated[StdinQuery, Parameters()]) -> Response:
    """Write the body to a command's stdin as it comes; `close=true` ends it."""
    pid, sandbox = call.pid, call.sandbox
    with _named(pid):
        async with sandbox.use():
            process = await call.services.executions.find(sandbox, pid)
            async with _while_serving(call):
                async for chunk in call.chunks():
                    await process.write(chunk)
            if query.close:
                await process.close_stdin()
    return empty()


@asynccontextmanager
async def _while_serving(call: Caller) -> AsyncIterator[None]:
    """End a body whose length nobody knows when the server stops: it may stay open for ever, and others would be waited
    for in vain. The edge answers that the server is stopping."""
    task = asyncio.current_task()
    if task is None or call.header(b"content-length") is not None:
        yield
        return
    stopping = asyncio.create_task(call.services.closing.wait())
    stopping.add_done_callback(lambda it: it.cancelled() or task.cancel())
    try:
        yield
    finally:
        stopping.cancel()


@routes.route("POST", "/sandboxes/{id}/processes/{pid}/signal", scope="sandbox:execute", status=204)
async def signal_process(call: Caller, body: SignalRequest) -> Response:
    """Send a signal to a command and everything it started."""
    number = signal_number(body.signal)
    pid = call.pid
    with _named(pid):
        async with call.sandbox.use() as link:
            await link.signal(pid, number)
    return empty()
