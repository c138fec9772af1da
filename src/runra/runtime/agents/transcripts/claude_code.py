"""claude-code: `claude -p … --output-format stream-json --verbose`."""

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
from runra.runtime.llms.wires.messages_answers import read_usage
from runra.runtime.llms.wires.parts import count, mapping, objects, sequence, text


class ClaudeCode:
    """One message comes as several `assistant` lines, a content block each, which repeat its usage: only the `result`
    line's is to be counted. A run has succeeded when there is a `result` with `is_error` false: a failed one may call
    itself a success, too."""

    def __init__(self) -> None:
        self._session = ""
        self._result: dict[str, Any] | None = None
        self._names: dict[str, str] = {}
        self._last_error = ""

    @property
    def ended(self) -> bool:
        return self._result is not None

    def feed(self, line: str) -> list[AgentEvent]:
        event = read_line(line)
        self._session = text(event.get("session_id")) or self._session
        parent = text(event.get("parent_tool_use_id"))
        message = mapping(event.get("message"))
        match event.get("type"):
            case "assistant" if message.get("model") != "<synthetic>":  # an error's words, which `result` repeats
                return [one for block in objects(message.get("content")) for one in self._block(block, parent)]
            case "user":
                return [one for block in objects(message.get("content")) for one in self._answer(block, parent)]
            case "system" if event.get("subtype") == "api_retry":
                what = f"{text(event.get('error')) or 'the model could not be reached'} ({event.get('error_status')})"
                self._last_error = what
                return [failed(f"{what}; attempt {event.get('attempt')} of {event.get('max_retries')}", fatal=False)]
            case "result":
                self._result = event
                return [failed(_why(event), fatal=True)] if event.get("is_error") is not False else []
            case _:
                return []

    def verdict(self, exit_code: int | None) -> Verdict:
        result = self._result
        if result is None:
            why = f"claude-code ended without a result (exit code {exit_code})"
            why += f"; its last error: {self._last_error}" if self._last_error else ""
            kind = kind_of(self._last_error) if self._last_error else "no_result"
            return Verdict(False, kind=kind, error=why, session_id=self._session)
        success = result.get("is_error") is False
        cost = result.get("total_cost_usd")
        denied = [text(one.get("tool_name")) for one in objects(result.get("permission_denials"))]
        return Verdict(
            success,
            summary=text(result.get("result")).strip(),
            kind="" if success else _kind(result),
            error=None if success else _why(result),
            turns=count(result.get("num_turns")),
            session_id=self._session,
            usage=read_usage(result.get("usage")),
            cost=float(cost) if isinstance(cost, int | float) and not isinstance(cost, bool) else None,
            warnings=tuple(f"permission denied: {name}" for name in denied),
        )

    def _block(self, block: dict[str, Any], parent: str) -> list[AgentEvent]:
        match block.get("type"):
            case "thinking":
                return said("agent.thinking", text(block.get("thinking")), parent)
            case "text":
                return said("agent.message", text(block.get("text")), parent)
            case "tool_use":
                id, name = text(block.get("id")), text(block.get("name"))
                self._names[id] = name
                return [called(id, name, block.get("input"), parent)]
            case _:
                return []

    def _answer(self, block: dict[str, Any], parent: str) -> list[AgentEvent]:
        if block.get("type") != "tool_result":
            return []
        id, content = text(block.get("tool_use_id")), block.get("content")
        output = text(content) or "\n".join(text(part.get("text")) for part in objects(content))
        name = self._names.pop(id, "")
        return [answered(id, name, output, failed=block.get("is_error") is True, parent=parent)]


def _kind(result: dict[str, Any]) -> str:
    by_subtype = {"error_max_turns": "turns", "error_max_budget_usd": "budget"}.get(text(result.get("subtype")))
    return by_subtype or kind_of(f"{result.get('api_error_status') or ''} {text(result.get('result'))}")


def _why(result: dict[str, Any]) -> str:
    subtype = text(result.get("subtype"))
    limits = {"error_max_turns": "it used all its turns", "error_max_budget_usd": "it used all its budget"}
    words = "; ".join(one for one in sequence(result.get("errors")) if isinstance(one, str))
    return limits.get(subtype) or text(result.get("result")).strip() or words or subtype or "it failed without words"
