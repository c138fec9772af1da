"""opencode: `opencode run --format json`."""

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
from runra.runtime.llms.wires.parts import count, mapping, text


class OpenCode:
    """There is no last line that says how it went. A run has succeeded when opencode left with 0, printed no `error`,
    and its last step ended with `stop`: one whose tool was blocked leaves with 0 as well. Its call for a title is in no
    sum."""

    def __init__(self) -> None:
        self._session = ""
        self._steps = 0
        self._reason = ""
        self._failure = ""
        self._summary = ""
        self._refused = ""
        self._usage = Usage()
        self._cost = 0.0

    @property
    def ended(self) -> bool:
        return self._reason == "stop"

    def feed(self, line: str) -> list[AgentEvent]:
        event = read_line(line)
        self._session = text(event.get("sessionID")) or self._session
        part = mapping(event.get("part"))
        match event.get("type"):
            case "text":
                self._summary = text(part.get("text")).strip()
                return said("agent.message", self._summary)
            case "reasoning":
                return said("agent.thinking", text(part.get("text")))
            case "tool_use":
                return self._tool(part)
            case "step_finish":
                self._step(part)
            case "error":
                error = mapping(event.get("error"))
                data = mapping(error.get("data"))
                words = text(data.get("message")) or text(error.get("name")) or "an error without words"
                self._failure = f"{words} ({data['statusCode']})" if data.get("statusCode") else words
                return [failed(self._failure, fatal=True)]
        return []

    def verdict(self, exit_code: int | None) -> Verdict:
        error: str | None = None
        kind = ""
        if self._failure:
            error, kind = self._failure, kind_of(self._failure)
        elif not self._steps:
            error, kind = f"opencode ended without a result (exit code {exit_code})", "no_result"
        elif self._reason != "stop":
            error, kind = f"opencode stopped after a step that ended with {self._reason!r}", "failed"
            error += f": {self._refused}" if self._refused else ""
        elif exit_code != 0:
            error, kind = f"opencode left with exit code {exit_code}", "no_result"
        return Verdict(
            error is None,
            summary=self._summary,
            kind=kind,
            error=error,
            turns=self._steps,
            session_id=self._session,
            usage=self._usage,
            cost=self._cost,
        )

    def _tool(self, part: dict[str, Any]) -> list[AgentEvent]:
        """Call and result come in one."""
        id, name, state = text(part.get("callID")), text(part.get("tool")), mapping(part.get("state"))
        broke = state.get("status") == "error"
        output = text(state.get("error")) if broke else text(state.get("output"))
        self._refused = output if broke else ""
        code = mapping(state.get("metadata")).get("exit")
        result = answered(id, name, output, failed=broke, exit_code=code if isinstance(code, int) else None)
        return [called(id, name, state.get("input")), result]

    def _step(self, part: dict[str, Any]) -> None:
        self._steps += 1
        self._reason = text(part.get("reason"))
        tokens, cost = mapping(part.get("tokens")), part.get("cost")
        cache, before = mapping(tokens.get("cache")), self._usage
        reasoning = count(tokens.get("reasoning"))  # beside its output, not in it
        self._usage = Usage(
            input_tokens=before.input_tokens + count(tokens.get("input")),
            cache_read_tokens=before.cache_read_tokens + count(cache.get("read")),
            cache_write_tokens=before.cache_write_tokens + count(cache.get("write")),
            output_tokens=before.output_tokens + count(tokens.get("output")) + reasoning,
            reasoning_tokens=before.reasoning_tokens + reasoning,
        )
        self._cost += float(cost) if isinstance(cost, int | float) and not isinstance(cost, bool) else 0.0
