"""What a request makes the model's provider do on its own side, and what a run's limits say to that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from runra.runtime.gateway.runs import RunLimits
from runra.runtime.llms.types import Format
from runra.runtime.llms.wires.parts import unsupported

#: Types of tools that the client itself runs, by format; any other type the provider runs.
_CLIENT_TOOLS: Final[dict[Format, tuple[str, ...]]] = {
    "messages": ("custom", "bash_", "text_editor_", "computer_", "memory_", "tool_search_tool"),
    "responses": ("function", "custom", "namespace", "local_shell", "apply_patch", "computer", "tool_search"),
    "chat": ("function", "custom"),
}
#: Fields by which a provider fetches, keeps or runs something itself.
_OUTSIDE: Final[dict[Format, tuple[str, ...]]] = {
    "messages": ("mcp_servers", "container"),
    "responses": ("previous_response_id", "conversation", "background", "prompt"),
    "chat": ("web_search_options",),
}
#: Fields that make a call dearer than its model's price, and the values that do not.
_DEARER: Final = {"service_tier": ("auto", "default", "flex", "standard_only", None), "speed": ("standard", None)}
#: Where content names a URL or a file of the account.
_FETCHED: Final = ("url", "image_url", "file_url", "file_id", "fileUri", "server_url")


def server_tools(format: Format, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The offered tools that the provider runs."""
    tools = body.get("tools")
    return [
        tool
        for tool in (tools if isinstance(tools, list) else [])
        if isinstance(tool, dict) and _provider_runs(format, tool)
    ]


def _provider_runs(format: Format, tool: dict[str, Any]) -> bool:
    kind = str(tool.get("type") or ("custom" if format == "messages" else ""))
    # A namespace holds tools of its own.
    return not kind.startswith(_CLIENT_TOOLS[format]) or bool(kind == "namespace" and server_tools(format, tool))


def outside(format: Format, body: dict[str, Any]) -> list[str]:
    """What else makes the provider reach out, use what the account keeps, or cost more than it says, by name."""
    named = [name for name in _OUTSIDE[format] if body.get(name)]
    named += [name for name, usual in _DEARER.items() if body.get(name) not in usual]
    content = body.get("input" if format == "responses" else "messages")
    return named + sorted(set(_fetched(content)))


def _fetched(content: Any) -> Iterator[str]:
    """Names of what the provider would fetch in a conversation. Tools' inputs are data, not content: left alone."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            for name, inner in value.items():
                if name in _FETCHED and isinstance(inner, str) and not inner.startswith("data:"):
                    yield f"{value.get('type', 'content')}.{name}"[:60]
                elif name not in ("input", "arguments"):
                    waiting.append(inner)


def permitted(limits: RunLimits, format: Format, body: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request that the run's policy on its provider's own doings changes. Raises `unsupported` by name
    for what it refuses."""
    if limits.server_tools == "allow":
        return {}
    offered, refused = server_tools(format, body), outside(format, body)
    if limits.server_tools == "refuse":
        refused += [str(tool.get("type")) for tool in offered]
    if refused:
        raise unsupported(*refused, hint=", or allow server_tools for the run")
    return {"tools": [tool for tool in body["tools"] if tool not in offered]} if offered else {}
