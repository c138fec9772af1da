"""codex: `codex exec --json`."""

from __future__ import annotations

from typing import Any

from runra.runtime.agents.transcripts.types import (
    AgentEvent,
    Verdict,
    answered,
    called,
    failed,
    kind_of,
    read_line,
    said,
)
from runra.runtime.llms.types import Usage
from runra.runtime.llms.wires.parts import count, mapping, objects, text

#: Fields of an item that say how it is and went, not what was asked.
_STATE = ("id", "type", "status", "aggregated_output", "exit_code", "result", "error")


class Codex:
    """A run has succeeded when its last turn was completed and codex left with 0. Items and lines of type `error` are
    told and passed over: codex goes on after most of them. Its usage is that of the whole thread."""

    def __init__(self) -> None:
        self._session = ""
        self._turns = 0
        self._completed = False
        self._failure = ""
        self._last_error = ""
        self._summary = ""
        self._usage = Usage()
        self._begun: set[str] = set()

    @property
    def ended(self) -> bool:
        return self._completed or bool(self._failure)

    def feed(self, line: str) -> list[AgentEvent]:
        event = read_line(line)
        match event.get("type"):
            case "thread.started":
                self._session = text(event.get("thread_id"))
            case "turn.started":
                self._turns += 1
                self._completed = False
            case "turn.completed":
                self._completed, self._failure = True, ""
                self._usage = _usage(mapping(event.get("usage")))
            case "turn.failed":
                self._failure = text(mapping(event.get("error")).get("message")) or "the turn failed without words"
                return [failed(self._failure, fatal=True)]
            case "error":
                self._last_error = text(event.get("message"))
                return [failed(self._last_error, fatal=False)]
            case "item.started":
                return self._call(mapping(event.get("item")))
            case "item.completed":
                return self._item(mapping(event.get("item")))
        return []

    def verdict(self, exit_code: int | None) -> Verdict:
        success = self._completed and not self._failure and exit_code == 0
        error: str | None = None
        kind = ""
        if not success:
            kind = "no_result" if self._completed or not (self._failure or self._last_error) else ""
            error = self._failure or self._last_error or f"codex ended without a result (exit code {exit_code})"
            if self._completed and not self._failure:
                error = f"codex completed its turn, but left with exit code {exit_code}"
            kind = kind or kind_of(error)
        return Verdict(
            success,
            summary=self._summary,
            kind=kind,
            error=error,
            turns=self._turns,
            session_id=self._session,
            usage=self._usage,
        )

    def _call(self, item: dict[str, Any]) -> list[AgentEvent]:
        id, kind = text(item.get("id")), text(item.get("type"))
        if kind in ("reasoning", "agent_message", "error", "todo_list"):
            return []
        self._begun.add(id)
        asked: Any = {name: value for name, value in item.items() if name not in _STATE}
        if kind == "mcp_tool_call":
            asked = item.get("arguments")
        return [called(id, _name(item), asked)]

    def _item(self, item: dict[str, Any]) -> list[AgentEvent]:
        match item.get("type"):
            case "reasoning":
                return said("agent.thinking", text(item.get("text")))
            case "agent_message":
                self._summary = text(item.get("text")).strip()
                return said("agent.message", self._summary)
            case "error":
                return [failed(text(item.get("message")), fatal=False)]
            case "todo_list":
                return []
        id = text(item.get("id"))
        events = [] if id in self._begun else self._call(item)
        self._begun.discard(id)
        code = item.get("exit_code")
        output = text(item.get("aggregated_output"))
        if item.get("type") == "file_change":
            output = "\n".join(
                f"{text(one.get('kind'))} {text(one.get('path'))}" for one in objects(item.get("changes"))
            )
        elif item.get("type") == "mcp_tool_call":
            parts = objects(mapping(item.get("result")).get("content"))
            output = "\n".join(text(part.get("text")) for part in parts) or text(
                mapping(item.get("error")).get("message")
            )
        elif not output and item.get("result") is not None:
            output = str(item["result"])
        result = answered(
            id,
            _name(item),
            output,
            failed=item.get("status") in ("failed", "declined") or bool(item.get("error")),
            exit_code=code if isinstance(code, int) else None,
        )
        return [*events, result]


def _name(item: dict[str, Any]) -> str:
    return text(item.get("tool")) or text(item.get("type"))


def _usage(usage: dict[str, Any]) -> Usage:
    read, written = count(usage.get("cached_input_tokens")), count(usage.get("cache_write_input_tokens"))
    return Usage(
        input_tokens=max(0, count(usage.get("input_tokens")) - read - written),
        cache_read_tokens=read,
        cache_write_tokens=written,
        output_tokens=count(usage.get("output_tokens")),
        reasoning_tokens=count(usage.get("reasoning_output_tokens")),
    )
