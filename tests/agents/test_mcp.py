"""The tools as an MCP server, asked by the official client."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

from runra.runtime.agents.hands import own_tools
from runra.runtime.agents.mcp import serving
from tests.hosting import until


async def test_tools_are_listed_called_and_cancelled() -> None:
    seen: list[str] = []

    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    async def slow() -> str:
        seen.append("begun")
        try:
            await asyncio.sleep(100)
        finally:
            seen.append("ended")
        return ""

    async with (
        serving(own_tools([add, slow])) as server,
        httpx2.AsyncClient(headers={"authorization": f"Bearer {server.token}"}) as http,
    ):
        assert server.token not in repr(server)
        async with (
            streamable_http_client(server.url, http_client=http) as streams,
            ClientSession(streams[0], streams[1]) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            assert [(tool.name, tool.description) for tool in tools] == [("add", "Adds."), ("slow", "")]
            done = await session.call_tool("add", {"a": 1, "b": 2})
            assert (done.content[0].text, done.is_error) == ("3", False)  # type: ignore[union-attr]
            for name, given in (("add", {"a": "x"}), ("none", {})):
                assert (await session.call_tool(name, given)).is_error
            call = asyncio.create_task(session.call_tool("slow", {}))
            await until(lambda: seen == ["begun"])
            call.cancel()
            await until(lambda: seen == ["begun", "ended"])


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"authorization": "Bearer wrong"}, 401), ({"authorization": "TOKEN", "host": "evil.example:80"}, 421)],
)
async def test_who_has_no_business_here_is_refused(headers: dict[str, str], status: int) -> None:
    def add(a: int) -> int:
        return a

    body: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    async with serving(own_tools([add])) as server, httpx2.AsyncClient() as http:
        given = {name: value.replace("TOKEN", f"Bearer {server.token}") for name, value in headers.items()}
        assert (await http.post(server.url, json=body, headers=given)).status_code == status
    with pytest.raises(httpx2.ConnectError):
        async with httpx2.AsyncClient() as http:
            await http.post(server.url, json=body)
