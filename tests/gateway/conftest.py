"""A gateway with its HTTP door, in front of a scripted model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from runra.runtime.gateway import Gateway, GatewayServer, RunLimits
from runra.runtime.llms import resolve
from tests.scripted import ScriptedModel

#: Provider and path of the scripted model's URL for each format a model may speak.
SPEAKS = {
    "messages": ("anthropic", ""),
    "responses": ("openai", "/v1"),
    "chat": ("openrouter", "/v1"),
    "gemini": ("gemini", "/v1beta"),
}
PRICE = {"m-1": {"input": 10, "output": 100}}
PATHS = {"messages": "/v1/messages", "responses": "/v1/responses", "chat": "/v1/chat/completions"}


def hello(format: str, stream: bool = True, **more: Any) -> dict[str, Any]:
    """A small request in a client's format."""
    if format == "responses":
        return {"model": "any", "input": "hi", "stream": stream, "store": False, **more}
    return {
        "model": "any",
        "max_tokens": 1000,
        "messages": [{"role": "user", "content": "hi"}],
        "stream": stream,
        **more,
    }


def tool(format: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"command": {"type": "string"}}}
    if format == "messages":
        return {"name": "bash", "description": "runs", "input_schema": schema}
    if format == "responses":
        return {"type": "function", "name": "bash", "description": "runs", "parameters": schema}
    return {"type": "function", "function": {"name": "bash", "description": "runs", "parameters": schema}}


@dataclass
class Stand:
    gateway: Gateway
    server: GatewayServer
    model: ScriptedModel
    session: aiohttp.ClientSession
    token: str
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    async def ask(
        self, format: str, body: Mapping[str, Any] | bytes, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        raw = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.session.post(
            self.server.url + PATHS[format], headers={**self.headers, **headers}, **raw
        ) as response:  # type: ignore[arg-type]
            return response.status, {k.lower(): v for k, v in response.headers.items()}, await response.read()


@asynccontextmanager
async def stand(
    model: ScriptedModel, speaks: str, limits: RunLimits | None = None, **config: Any
) -> AsyncIterator[Stand]:
    provider, path = SPEAKS[speaks]
    target = resolve(
        provider,
        {"model": "m-1", "apiKey": model.key, "baseUrl": model.url + path, "prices": PRICE, "format": speaks, **config},
    )
    gateway = Gateway()
    server = GatewayServer(gateway)
    events: list[dict[str, Any]] = []
    await server.start()
    try:
        admission = await gateway.admit("run_1", target, emit=lambda _, data: events.append(data), limits=limits)
        async with aiohttp.ClientSession() as session:
            yield Stand(gateway, server, model, session, admission.token, events)
    finally:
        await gateway.close()
        await server.stop()
