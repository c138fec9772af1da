"""What a transcript gives: events of the contract's `agent.*` types, and the verdict on the run."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from runra.runtime.llms.types import Usage

EventType = Literal["agent.thinking", "agent.message", "agent.tool_call", "agent.tool_result", "agent.error"]

#: Longest text that goes into one event, in characters; the rest is cut, and `truncated` says so.
MAX_TEXT: Final = 64 << 10

#: The contract's names for what agents call their tools.
_TOOLS: Final = {
    "bash": "bash",
    "shell": "bash",
    "command_execution": "bash",
    "read": "read",
    "write": "write",
    "edit": "edit",
    "multiedit": "edit",
    "notebookedit": "edit",
    "file_change": "edit",
    "patch": "edit",
    "glob": "glob",
    "grep": "grep",
}

#: Words in a failure's message, and its kind; the first that is found counts. Kinds are those of `llms.failures`.
_KINDS: Final = (
    (r"the run has made its \d+ turns", "turns"),
    (r"has spent its budget|budget of .* is spent|quota exceeded|insufficient.quota", "budget"),
    (r"prompt is too long|context window|maximum context|too long for the model", "context_too_long"),
    (r"\b401\b|\b403\b|unauthorized|authenticat|does not accept the api key|invalid api key", "auth"),
    (r"\b429\b|rate.?limit|limits the rate", "rate_limit"),
    (r"\b5\d\d\b|overloaded|high demand|at capacity|disconnected|broke off|temporary", "unavailable"),
)


@dataclass(frozen=True, slots=True)
class AgentEvent:
    """One event. `data`: thinking and message {text}; tool_call {id, tool, name, input}; tool_result {id, tool, name,
    output, isError, exitCode?}; error {message, fatal}. `tool` is the contract's name where there is one, `name` the
    agent's own. What a sub-agent does carries `parentId`."""

    type: EventType
    data: dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """How a run ended. `kind` of failure: one of `llms.failures.KINDS`, `no_result` (it never said how it ended),
    or `failed`. `cost` in US dollars is the agent's own claim; the gateway's count is the one to go by."""

    success: bool
    summary: str = ""
    kind: str = ""
    error: str | None = None
    turns: int = 0
    session_id: str = ""
    usage: Usage = field(default_factory=Usage)
    cost: float | None = None
    warnings: tuple[str, ...] = ()


def read_line(line: str) -> dict[str, Any]:
    """The object in a line; an empty one for anything else, such as a warning printed among the events."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def said(type: Literal["agent.thinking", "agent.message"], text: str, parent: str = "") -> list[AgentEvent]:
    """A text as an event; none for an empty one."""
    return [AgentEvent(type, _with(parent, **_cut("text", text)))] if text.strip() else []


def called(id: str, name: str, input: Any, parent: str = "") -> AgentEvent:
    return AgentEvent("agent.tool_call", _with(parent, id=id, tool=tool(name), name=name, input=input))


def answered(
    id: str, name: str, output: str, *, failed: bool, exit_code: int | None = None, parent: str = ""
) -> AgentEvent:
    data = _with(parent, id=id, tool=tool(name), name=name, **_cut("output", output), isError=failed)
    if exit_code is not None:
        data["exitCode"] = exit_code
    return AgentEvent("agent.tool_result", data)


def failed(message: str, *, fatal: bool) -> AgentEvent:
    return AgentEvent("agent.error", {**_cut("message", message), "fatal": fatal})


def tool(name: str) -> str:
    """The contract's name of a tool; the agent's own where it has none."""
    ours = name.removeprefix("mcp__").removeprefix("runra__").removeprefix("runra_")  # by way of MCP
    return _TOOLS.get(ours.lower(), name)


def kind_of(message: str) -> str:
    """The kind of a failure, from its words."""
    return next((kind for pattern, kind in _KINDS if re.search(pattern, message, re.IGNORECASE)), "failed")


def _with(parent: str, **data: Any) -> dict[str, Any]:
    return {**data, "parentId": parent} if parent else data


def _cut(name: str, text: str) -> dict[str, Any]:
    return {name: text[:MAX_TEXT], "truncated": True} if len(text) > MAX_TEXT else {name: text}
