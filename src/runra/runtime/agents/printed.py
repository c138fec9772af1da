"""What any command prints, text or JSON lines, as events and a verdict."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal

from runra.runtime.agents.transcripts.types import (
    MAX_TEXT,
    AgentEvent,
    Verdict,
    answered,
    called,
    failed,
    kind_of,
    read_line,
    said,
)
from runra.runtime.llms.wires.parts import text

Shape = Literal["text", "jsonl", "auto"]

_KNOWN: Final = ("thinking", "message", "tool_call", "tool_result", "error", "result")
#: How long lines of text are gathered before they are told as one event, in seconds.
_GATHER_S: Final = 0.2


class Line(AgentEvent):
    """A line of plain text: part of a message rather than one."""

    __slots__ = ()


class Printed:
    """Reads lines in one of these shapes; a field that is missing is empty, and others are ignored.

    {"type": "thinking" | "message", "text"}
    {"type": "tool_call", "id", "name", "input"}
    {"type": "tool_result", "id", "name", "output", "isError", "exitCode"}
    {"type": "error", "message", "fatal"}                       fatal (default false) fails the run
    {"type": "result", "text", "success", "error", "sessionId"} success: true by default

    Any other line is text: a message. `jsonl` ignores it, `text` reads no JSON. The run has succeeded when the command
    left with 0 and neither a fatal error nor a result denies it.
    """

    ended = False  # a command may well print its result and go on: it has ended when it has left

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._names: dict[str, str] = {}
        self._failure = ""
        self._result: dict[str, Any] | None = None
        self._message = ""
        self._tail: deque[str] = deque()
        self._length = 0

    def feed(self, line: str) -> list[AgentEvent]:
        if self._shape != "text" and line.lstrip().startswith("{"):
            event = read_line(line)
            if event.get("type") in _KNOWN:
                return self._known(event)
        if self._shape == "jsonl":
            return []
        kept = line[:MAX_TEXT]
        self._tail.append(kept)
        self._length += len(kept) + 1
        while self._length > MAX_TEXT and len(self._tail) > 1:
            self._length -= len(self._tail.popleft()) + 1
        return [Line("agent.message", {"text": kept, **({"truncated": True} if kept is not line else {})})]

    def verdict(self, exit_code: int | None) -> Verdict:
        result = self._result or {}
        told = text(result.get("text")).strip()
        summary = told or self._message or "\n".join(self._tail).strip()
        session = text(result.get("sessionId"))
        error = self._failure
        if not error and result.get("success") is False:
            error = text(result.get("error")).strip() or told or "the command says that it failed"
        if error:
            return Verdict(False, summary=summary, kind=kind_of(error), error=error, session_id=session)
        if exit_code != 0:
            how = "was killed" if exit_code is None else f"left with exit code {exit_code}"
            return Verdict(False, summary=summary, kind="failed", error=f"the command {how}", session_id=session)
        return Verdict(True, summary=summary, session_id=session)

    def _known(self, event: dict[str, Any]) -> list[AgentEvent]:
        id, name = text(event.get("id"))[:200], text(event.get("name"))[:200]
        match event["type"]:
            case "thinking":
                return said("agent.thinking", text(event.get("text")))
            case "message":
                words = text(event.get("text")).strip()
                self._message = words[:MAX_TEXT] or self._message
                return said("agent.message", words)
            case "tool_call":
                if len(self._names) < 1000:
                    self._names[id] = name
                return [called(id, name, event.get("input"))]
            case "tool_result":
                code = event.get("exitCode")
                name = name or self._names.get(id, "")
                self._names.pop(id, None)
                ok = isinstance(code, int) and not isinstance(code, bool)
                broke = event.get("isError") is True
                output = text(event.get("output"))
                return [answered(id, name, output, failed=broke, exit_code=code if ok else None)]
            case "error":
                message = text(event.get("message")) or "an error without words"
                fatal = event.get("fatal") is True
                self._failure = message[:MAX_TEXT] if fatal else self._failure
                return [failed(message, fatal=fatal)]
            case _:
                self._result = event
                return []


class Gathered:
    """Tells lines of text together, a fifth of a second's at a time: never one event a line. What is more than an event
    holds is dropped from it, and `truncated` says so."""

    def __init__(self, tell: Callable[[AgentEvent], object]) -> None:
        self._tell = tell
        self._lines: list[str] = []
        self._length = 0
        self._cut = False
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, event: AgentEvent) -> None:
        if not isinstance(event, Line):
            self.flush()
            self._tell(event)
            return
        words = str(event.data["text"])
        room = MAX_TEXT - self._length
        self._cut = self._cut or len(words) > room or bool(event.data.get("truncated"))
        if room > 0:
            self._lines.append(words[:room])
            self._length += len(words) + 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_GATHER_S, self.flush)

    def flush(self) -> None:
        """Tell what is there."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        whole, cut = "\n".join(self._lines).strip("\n"), self._cut
        self._lines, self._length, self._cut = [], 0, False
        if whole.strip():
            self._tell(AgentEvent("agent.message", {"text": whole, **({"truncated": True} if cut else {})}))
