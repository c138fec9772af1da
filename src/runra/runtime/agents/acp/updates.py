"""What an ACP agent tells by `session/update`, as events and sums. Pure: no process, no clock."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from runra.runtime.agents.transcripts.types import MAX_TEXT, AgentEvent, answered, called, said
from runra.runtime.llms.types import Usage
from runra.runtime.llms.wires.parts import count, mapping, objects, text

#: The contract's names for ACP's kinds of tools.
_KINDS: Final = {"execute": "bash", "read": "read", "edit": "edit", "search": "grep"}
#: How many calls may be open at once; the oldest is forgotten.
_OPEN: Final = 1000
_NAME: Final = re.compile(r"[A-Za-z][\w.:-]{0,63}")
_SHOWN: Final = {"completed": "x", "in_progress": "~"}


@dataclass
class _Call:
    """A tool's call as it is known so far: agents send it piece by piece."""

    id: str
    name: str = ""
    kind: str = ""
    title: str = ""
    parent: str = ""
    input: Any = None
    output: str = ""
    exit_code: int | None = None
    told: bool = False


@dataclass
class Updates:
    """The reader of one session. Chunks become whole messages and thoughts: one ends where another message, a thought,
    a tool, a plan or the turn's end comes. A call is told once its input is known. What is unknown is passed over."""

    summary: str = ""
    #: US dollars, as the agent counts them.
    cost: float | None = None
    _chunks: list[str] = field(default_factory=list)
    _length: int = 0
    _open: tuple[Literal["agent.message", "agent.thinking"], str, str] | None = None
    _calls: OrderedDict[str, _Call] = field(default_factory=OrderedDict)
    _plan: str = ""

    def feed(self, update: dict[str, Any]) -> list[AgentEvent]:
        match update.get("sessionUpdate"):
            case "agent_message_chunk":
                return self._chunk("agent.message", update)
            case "agent_thought_chunk":
                return self._chunk("agent.thinking", update)
            case "tool_call":
                return [*self._whole(), *self._tool(update, begins=True)]
            case "tool_call_update":
                return [*self._whole(), *self._tool(update, begins=False)]
            case "plan":
                return [*self._whole(), *self._planned(update)]
            case "usage_update":
                amount = mapping(update.get("cost")).get("amount")
                if isinstance(amount, int | float) and not isinstance(amount, bool):
                    self.cost = float(amount)
        return []

    def asked(self, call: dict[str, Any]) -> tuple[list[AgentEvent], str, Any]:
        """A permission is asked for: the events up to it, the tool's name (the contract's where there is one), and its
        input."""
        events = [*self._whole(), *self._tool(call, begins=False)]
        known = self._calls[text(call.get("toolCallId"))]
        if not known.told:
            events.append(self._tell(known))
        return events, _tool_name(known), known.input

    def turn_ended(self) -> list[AgentEvent]:
        """What was still open when the turn ended."""
        events = self._whole()
        events += [self._tell(call) for call in self._calls.values() if not call.told]
        self._calls.clear()
        return events

    def _chunk(self, type: Literal["agent.message", "agent.thinking"], update: dict[str, Any]) -> list[AgentEvent]:
        piece = text(mapping(update.get("content")).get("text"))
        message = (type, text(update.get("messageId")), _parent(update))
        events = self._whole() if message != self._open or self._length >= MAX_TEXT else []
        self._open = message
        self._chunks.append(piece)
        self._length += len(piece)
        return events

    def _whole(self) -> list[AgentEvent]:
        if self._open is None:
            return []
        (type, _, parent), said_now = self._open, "".join(self._chunks).strip()
        self._open, self._chunks, self._length = None, [], 0
        if type == "agent.message" and said_now and not parent:
            self.summary = said_now[:MAX_TEXT]
        return said(type, said_now, parent)

    def _tool(self, update: dict[str, Any], *, begins: bool) -> list[AgentEvent]:
        id = text(update.get("toolCallId"))
        call = self._calls.get(id)
        if call is None:
            call = self._calls[id] = _Call(id)
            if len(self._calls) > _OPEN:
                self._calls.popitem(last=False)
        call.kind = text(update.get("kind")) or call.kind
        call.title = text(update.get("title")) or call.title
        call.parent = _parent(update) or call.parent
        named = text(update.get("name")) or text(
            mapping(mapping(update.get("_meta")).get("claudeCode")).get("toolName")
        )
        if not call.name and (named or _NAME.fullmatch(call.title)):
            call.name = named or call.title
        given = update.get("rawInput")
        call.input = given if given else call.input
        self._result(call, update)
        status = update.get("status")
        ended = status in ("completed", "failed")
        events: list[AgentEvent] = []
        # The first word of a call may come before its input is there.
        known = bool(given) and (not begins or status not in (None, "pending"))
        if not call.told and (known or status == "in_progress" or ended):
            events.append(self._tell(call))
        if ended:
            self._calls.pop(id, None)
            failed = status == "failed"
            result = answered(id, call.name, call.output, failed=failed, exit_code=call.exit_code, parent=call.parent)
            events.append(_named(result, call))
        return events

    def _result(self, call: _Call, update: dict[str, Any]) -> None:
        raw = update.get("rawOutput")
        fields = mapping(raw)
        words = [text(fields.get(name)) for name in ("output", "stdout", "formatted_output", "error")]
        shown = text(raw) or next((word for word in words if word), "") or _content(update.get("content"))
        call.output = shown or call.output
        # Agents that have no terminal of ours show theirs beside the call, piece by piece (codex-acp).
        beside = mapping(update.get("_meta"))
        for name in ("terminal_output", "terminal_output_delta"):
            call.output = (call.output + text(mapping(beside.get(name)).get("data")))[: 2 * MAX_TEXT]
        for code in (
            mapping(beside.get("terminal_exit")).get("exit_code"),
            fields.get("exitCode"),
            fields.get("exit_code"),
            mapping(fields.get("metadata")).get("exit"),
        ):
            if isinstance(code, int) and not isinstance(code, bool):
                call.exit_code = code

    def _tell(self, call: _Call) -> AgentEvent:
        call.told = True
        call.name = call.name or _KINDS.get(call.kind, call.kind) or "tool"
        given = call.input if call.input is not None else {"title": call.title} if call.title else {}
        return _named(called(call.id, call.name, given, call.parent), call)

    def _planned(self, update: dict[str, Any]) -> list[AgentEvent]:
        steps = [
            f"[{_SHOWN.get(text(entry.get('status')), ' ')}] {text(entry.get('content'))}"
            for entry in objects(update.get("entries"))
        ]
        plan = "\n".join(steps)
        if plan == self._plan:
            return []
        self._plan = plan
        return said("agent.thinking", plan)


def read_usage(value: Any) -> Usage:
    """The tokens an agent says it has used: a turn's, with reasoning beside the output or in it."""
    told = mapping(value)
    thought, output = count(told.get("thoughtTokens")), count(told.get("outputTokens"))
    inputs = [count(told.get(name)) for name in ("inputTokens", "cachedReadTokens", "cachedWriteTokens")]
    # Its own total says which of the two it is.
    beside = thought > 0 and count(told.get("totalTokens")) == sum(inputs) + output + thought
    return Usage(
        input_tokens=inputs[0],
        cache_read_tokens=inputs[1],
        cache_write_tokens=inputs[2],
        output_tokens=output + (thought if beside else 0),
        reasoning_tokens=thought,
    )


def _tool_name(call: _Call) -> str:
    return str(_named(called(call.id, call.name, None), call).data["tool"])


def _named(event: AgentEvent, call: _Call) -> AgentEvent:
    """The contract's name by the tool's kind, where its own name says nothing."""
    by_kind = _KINDS.get(call.kind)
    if by_kind is not None and event.data["tool"] == call.name:
        event.data["tool"] = by_kind
    return event


def _parent(update: dict[str, Any]) -> str:
    return text(mapping(mapping(update.get("_meta")).get("claudeCode")).get("parentToolUseId"))


def _content(value: Any) -> str:
    parts = []
    for one in objects(value):
        match one.get("type"):
            case "content":
                parts.append(text(mapping(one.get("content")).get("text")))
            case "diff":
                parts.append(f"changed {text(one.get('path'))}")
    return "\n".join(part for part in parts if part)
