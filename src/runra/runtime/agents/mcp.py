"""Tools as an MCP server on this machine's loopback, for an agent that runs here and works in a sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final

from runra.errors import RunraError
from runra.runtime.agents.hands import Tool, ToolFailed

_log = logging.getLogger("runra.runtime")

#: The name an agent knows the server by; its tools are `mcp__runra__bash` and so on to some.
NAME: Final = "runra"
_PATH: Final = "/mcp"
_START_S: Final = 20.0
_STOP_S: Final = 5.0
#: Most calls at work at once; more are told to wait.
_AT_ONCE: Final = 32


@dataclass(frozen=True)
class ToolServer:
    """Where the tools are, and the token every request must carry (`Authorization: Bearer …`)."""

    url: str
    token: str = field(repr=False)


@asynccontextmanager
async def serving(tools: Sequence[Tool]) -> AsyncIterator[ToolServer]:
    """Serve tools until the block ends; calls under way then are cancelled. Raises INVALID_CONFIG without the package
    `mcp`."""
    # Importing it takes a second of work: not on the loop.
    types, lowlevel, manager_of, security, uvicorn = await asyncio.to_thread(_imported)
    by_name = {tool.name: tool for tool in tools}
    listed = [
        types.Tool(name=tool.name, description=tool.description, input_schema=tool.input_schema) for tool in tools
    ]
    at_once = asyncio.Semaphore(_AT_ONCE)

    async def list_tools(ctx: Any, params: Any) -> Any:
        return types.ListToolsResult(tools=listed)

    async def call_tool(ctx: Any, params: Any) -> Any:
        async with at_once:
            text, failed = await _called(by_name, params.name, params.arguments or {})
        return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=failed)

    server = lowlevel.Server(NAME, version="1", on_list_tools=list_tools, on_call_tool=call_tool)
    # `Host` must be ours: a page in a browser on this machine that was led here by DNS is refused.
    allowed = security.TransportSecuritySettings(allowed_hosts=["127.0.0.1:*"])
    sessions = manager_of.StreamableHTTPSessionManager(server, security_settings=allowed, max_sessions=16)
    token = secrets.token_urlsafe(32)
    listening = socket.socket()
    try:
        listening.bind(("127.0.0.1", 0))
        async with sessions.run():
            app = _guarded(sessions.handle_request, token)
            config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none")
            http = _quiet(uvicorn)(config)
            task = asyncio.create_task(http.serve(sockets=[listening]), name="runra-tool-server")
            try:
                await _started(http, task)
                yield ToolServer(f"http://127.0.0.1:{listening.getsockname()[1]}{_PATH}", token)
            finally:
                http.should_exit = http.force_exit = True
                await asyncio.wait({task}, timeout=_STOP_S)
                task.cancel()
    finally:
        listening.close()


async def _called(tools: Mapping[str, Tool], name: str, given: Any) -> tuple[str, bool]:
    """What a call gave back, and whether it failed."""
    tool = tools.get(name)
    if tool is None:
        return f"There is no tool {name[:80]!r}; there is {', '.join(tools)}.", True
    try:
        output = await tool.call(given)
    except ToolFailed as error:
        return str(error), True
    except RunraError as error:  # the sandbox's own trouble: the run ends by it, and the agent is told meanwhile
        _log.warning("the tool %s: %s", name, error)
        return f"The sandbox did not do it: {error.message}", True
    return output.text, output.is_error and output.exit_code is None


def _guarded(app: Any, token: str) -> Any:
    """The app for those who have the token."""
    expected = f"Bearer {token}".encode()

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        given = [value for name, value in scope.get("headers", ()) if name == b"authorization"]
        if scope["type"] == "http" and len(given) == 1 and hmac.compare_digest(given[0], expected):
            if scope["path"] == _PATH:
                await app(scope, receive, send)
                return
            status = 404
        else:
            status = 401
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    return guarded


def _quiet(uvicorn: Any) -> Any:
    """uvicorn inside somebody else's program, whose signals are not ours."""

    class Server(uvicorn.Server):  # type: ignore[misc, unused-ignore]
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    return Server


async def _started(http: Any, task: asyncio.Task[Any]) -> None:
    async with asyncio.timeout(_START_S):
        while not http.started:
            if task.done():
                task.result()
                raise RunraError("INTERNAL_ERROR", "the tool server ended before it began", status=0)
            await asyncio.sleep(0.01)


def _imported() -> tuple[Any, ...]:
    names = (
        "mcp.types",
        "mcp.server.lowlevel",
        "mcp.server.streamable_http_manager",
        "mcp.server.transport_security",
        "uvicorn",
    )
    try:
        return tuple(import_module(name) for name in names)
    except ModuleNotFoundError as error:
        raise RunraError(
            "INVALID_CONFIG",
            f"placement host needs the package {error.name}: pip install 'runra[mcp]'",
            details={"field": "agent.config.placement", "missing": error.name, "kind": "setup"},
        ) from None
