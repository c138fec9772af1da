"""Terminals over WebSocket: binary frames are the terminal's bytes, text frames are JSON about it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from runra.contract import ExecRequest, PathText, Text
from runra.errors import RunraError
from runra.node.agent.types import ExecSpec, Output
from runra.server.calls import Query
from runra.server.commands import SHELL, check_length, spec_of
from runra.server.faults import bad_request, invalid
from runra.server.follow import Followed, Stream
from runra.server.nodeport import Sandbox
from runra.server.patience import lost
from runra.server.routing import Caller, Parameters, Routes

routes: Final = Routes("terminals")

_PATH: Final = "/sandboxes/{id}/pty"
_GOING_AWAY: Final = 1001
_BAD_FRAME: Final = 1008
_FAILED: Final = 1011

Cells = Annotated[int, Field(ge=1, le=10_000)]


class PtyQuery(Query):
    cols: Cells = 80
    rows: Cells = 24
    command: Annotated[Text, Field(min_length=1)] | None = None
    cwd: PathText | None = None
    user: Annotated[Text, Field(min_length=1, max_length=64)] | None = None
    #: Attach to this terminal instead of starting one; `offset` is where its output goes on.
    pid: Annotated[int, Field(ge=1)] | None = None
    offset: Annotated[int, Field(ge=0, le=2**62)] = 0


class _Size(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    rows: Cells
    cols: Cells


class _Frame(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    resize: _Size


@routes.route(
    "GET",
    _PATH,
    scope="sandbox:execute",
    status=101,
    also={400: {"description": "this request asked for no WebSocket"}},
)
async def open_terminal(call: Caller, query: Annotated[PtyQuery, Parameters()]) -> Response:
    """Open a terminal, or attach to one by `pid`. A WebSocket: binary frames are the terminal's bytes both ways. Text
    frames are JSON: `{"resize":{"rows","cols"}}` to the server; to the client `{"start":{"pid"}}` first, and
    `{"exit":{ExecutionResult}}` or `{"error":{…}}` at the end."""
    raise bad_request("Upgrade", "a terminal is a WebSocket; connect to this URL with a WebSocket client")


@routes.socket(_PATH, scope="sandbox:execute", query=PtyQuery)
async def terminal(call: Caller, socket: WebSocket) -> None:
    query: PtyQuery = call.query
    sandbox = call.sandbox
    async with _opened(call, sandbox, query) as (followed, stream):
        await socket.accept()
        await _say(socket, {"start": {"pid": followed.pid}})
        loop = asyncio.get_running_loop()
        tasks = {
            "out": loop.create_task(_to_client(call, sandbox, socket, stream)),
            "in": loop.create_task(_from_client(call, socket, followed)),
            "closing": loop.create_task(call.services.closing.wait()),
        }
        try:
            await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
            if tasks["closing"].done() and not tasks["in"].done():
                await socket.close(_GOING_AWAY, "the server is stopping; attach again")
            for task in (tasks["in"], tasks["out"]):
                if task.done():
                    task.result()
        except WebSocketDisconnect:
            return
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)


@asynccontextmanager
async def _opened(call: Caller, sandbox: Sandbox, query: PtyQuery) -> AsyncIterator[tuple[Followed, Stream]]:
    executions = call.services.executions
    # `use`: an open terminal is activity.
    async with sandbox.use():
        if query.pid is not None:
            async with executions.attached(sandbox, query.pid, query.offset) as (followed, stream):
                await followed.resize(query.rows, query.cols)
                yield followed, stream
            return
        async with executions.terminal(sandbox, _spec(sandbox, query)) as (followed, stream):
            yield followed, stream


def _spec(sandbox: Sandbox, query: PtyQuery) -> ExecSpec:
    request = ExecRequest(command=query.command or SHELL, cwd=query.cwd, user=query.user, background=True)
    check_length(request)
    spec = spec_of(sandbox, request, "")
    return ExecSpec(
        command=spec.command,
        cwd=spec.cwd,
        env={"TERM": "xterm-256color", **spec.env},
        user=spec.user,
        stdin=True,
        pty=(query.rows, query.cols),
    )


async def _to_client(call: Caller, sandbox: Sandbox, socket: WebSocket, stream: Stream) -> None:
    while isinstance(item := await stream.next(), Output):
        await socket.send_bytes(item.data)
    if isinstance(item, RunraError):
        await _say(socket, (await lost(sandbox, item)).to_wire(call.request_id))
        await socket.close(_FAILED)
    else:
        await _say(socket, {"exit": item.result.to_wire()})
        await socket.close()


async def _from_client(call: Caller, socket: WebSocket, followed: Followed) -> None:
    """Until the client goes. A frame that says nothing we know ends the connection; the command runs on."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        try:
            if (data := message.get("bytes")) is not None:
                await followed.write(data)
            else:
                size = _Frame.model_validate_json(message.get("text") or "").resize
                await followed.resize(size.rows, size.cols)
        except ValidationError as error:
            await _say(socket, invalid(error, prefix="frame").to_wire(call.request_id))
            await socket.close(_BAD_FRAME, "send binary frames, or the JSON {resize: {rows, cols}}")
            return
        except RunraError:
            # The command has ended, or its terminal has: the other task says so.
            continue


async def _say(socket: WebSocket, content: dict[str, Any]) -> None:
    await socket.send_text(json.dumps(content, ensure_ascii=False))
