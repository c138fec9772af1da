"""OpenAI Responses: streamed answers, read; usage, both ways."""

from __future__ import annotations

from typing import Any, Final

from runra.runtime.llms.failures import in_stream
from runra.runtime.llms.types import (
    NAMESPACE_SEPARATOR,
    BlockEnded,
    BlockKind,
    BlockStarted,
    Counted,
    Delta,
    Failed,
    Started,
    Stopped,
    StopReason,
    StreamEvent,
    Usage,
)
from runra.runtime.llms.wires.parts import count, mapping, objects, text
from runra.sdk.sse import ServerEvent

_INCOMPLETE: Final[dict[str, StopReason]] = {"max_output_tokens": "max_tokens", "content_filter": "refusal"}


def read_usage(value: Any) -> Usage:
    """A `usage` object: its input includes what the cache read, its output the reasoning."""
    usage = mapping(value)
    details = mapping(usage.get("input_tokens_details"))
    read, written = count(details.get("cached_tokens")), count(details.get("cache_write_tokens"))
    return Usage(
        input_tokens=max(0, count(usage.get("input_tokens")) - read - written),
        cache_read_tokens=read,
        cache_write_tokens=written,
        output_tokens=count(usage.get("output_tokens")),
        reasoning_tokens=count(mapping(usage.get("output_tokens_details")).get("reasoning_tokens")),
    )


def usage_of_body(body: Any) -> Usage:
    return read_usage(mapping(body).get("usage"))


def write_usage(usage: Usage) -> dict[str, Any]:
    total = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
    return {
        "input_tokens": total,
        "input_tokens_details": {"cached_tokens": usage.cache_read_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": total + usage.output_tokens,
    }


class Decoder:
    """Reads a stream of Responses events."""

    def __init__(self) -> None:
        self.done = False
        self._next = 0
        self._open: dict[tuple[int, int], tuple[int, BlockKind]] = {}  # output and part index: ours
        self._said: set[int] = set()
        self._any_call = False
        self._refused = False

    def feed(self, event: ServerEvent) -> list[StreamEvent]:
        data = event.json()
        type = text(data.get("type"))
        output, part = count(data.get("output_index")), count(data.get("content_index"))
        match type.removeprefix("response."):
            case "created":
                response = mapping(data.get("response"))
                return [Started(text(response.get("id")), text(response.get("model")))]
            case "output_item.added":
                return self._item(output, mapping(data.get("item")))
            case "output_text.delta":
                return self._delta((output, part), "text", text(data.get("delta")))
            case "refusal.delta":
                self._refused = True
                return self._delta((output, part), "text", text(data.get("delta")))
            case "reasoning_summary_part.added" if count(data.get("summary_index")):
                return self._delta((output, 0), "thinking", "\n\n")
            case "reasoning_summary_text.delta" | "reasoning_text.delta":
                return self._delta((output, 0), "thinking", text(data.get("delta")))
            case "function_call_arguments.delta" | "custom_tool_call_input.delta":
                return self._delta((output, 0), "tool", text(data.get("delta")))
            case "output_item.done":
                return self._done(output, mapping(data.get("item")))
            case "completed" | "incomplete" | "failed":
                self.done = True
                return self._end(mapping(data.get("response")))
            case "error":
                self.done = True
                return [Failed(*in_stream(data.get("error") or data))]
            case _:
                return []

    def _item(self, output: int, item: dict[str, Any]) -> list[StreamEvent]:
        match item.get("type"):
            case "reasoning":
                return [self._begin((output, 0), "thinking")]
            case "function_call" | "custom_tool_call":
                self._any_call = True
                name = text(item.get("name"))
                if item.get("namespace"):
                    name = f"{text(item.get('namespace'))}{NAMESPACE_SEPARATOR}{name}"
                return [self._begin((output, 0), "tool", text(item.get("call_id")), name)]
            case _:  # a message begins with its first text
                return []

    def _begin(self, key: tuple[int, int], kind: BlockKind, id: str = "", name: str = "") -> StreamEvent:
        self._open[key] = (self._next, kind)
        self._next += 1
        return BlockStarted(self._next - 1, kind, id, name)

    def _delta(self, key: tuple[int, int], kind: BlockKind, said: str) -> list[StreamEvent]:
        events: list[StreamEvent] = []
        if key not in self._open:
            if kind == "tool":
                return []  # of an item that was never announced
            events.append(self._begin(key, kind))
        index, kind = self._open[key]
        self._said.add(index)
        return [*events, Delta(index, said, kind)] if said else events

    def _done(self, output: int, item: dict[str, Any]) -> list[StreamEvent]:
        """An item is whole. What came without deltas is in it."""
        events: list[StreamEvent] = []
        if item.get("type") == "message":
            for part, content in enumerate(objects(item.get("content"))):
                said = text(content.get("text")) or text(content.get("refusal"))
                if said and (output, part) not in self._open:
                    events += self._delta((output, part), "text", said)
        for key in [key for key in self._open if key[0] == output]:
            index, kind = self._open.pop(key)
            if kind == "tool" and index not in self._said:
                said = text(item.get("arguments")) or text(item.get("input"))
                events += [Delta(index, said, kind)] if said else []
            signature = ""
            if kind == "thinking" and item.get("encrypted_content"):
                signature = f"{text(item.get('id'))}|{text(item.get('encrypted_content'))}"
            events.append(BlockEnded(index, signature))
        return events

    def _end(self, response: dict[str, Any]) -> list[StreamEvent]:
        events: list[StreamEvent] = [BlockEnded(index) for index, _ in self._open.values()]
        self._open.clear()
        if response.get("usage"):
            events.append(Counted(read_usage(response["usage"])))
        if response.get("status") == "failed" or response.get("error"):
            return [*events, Failed(*in_stream(response.get("error")))]
        reason: StopReason = "tool_use" if self._any_call else "end_turn"
        if response.get("status") == "incomplete":
            reason = _INCOMPLETE.get(text(mapping(response.get("incomplete_details")).get("reason")), "max_tokens")
        elif self._refused:
            reason = "refusal"
        return [*events, Stopped(reason)]
