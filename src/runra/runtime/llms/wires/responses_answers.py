"""OpenAI Responses: answers, read and written, streamed and whole."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any, Final

from runra.runtime.llms.collect import tool_input
from runra.runtime.llms.failures import in_stream
from runra.runtime.llms.types import (
    NAMESPACE_SEPARATOR,
    BlockEnded,
    BlockKind,
    BlockStarted,
    Counted,
    Delta,
    Failed,
    LLMRequest,
    LLMResponse,
    Started,
    Stopped,
    StopReason,
    StreamEvent,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
    Usage,
    flat_name,
)
from runra.runtime.llms.wires.parts import arguments, count, mapping, new_id, objects, pack, sse, text
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


@dataclass
class _Item:
    """An output item being written: its number, its kind, what was said in it so far."""

    number: int
    kind: str
    item: dict[str, Any]
    pieces: list[str] = field(default_factory=list)


class Encoder:
    """Writes a stream of Responses events. The last one repeats the whole answer, so it is kept until then."""

    def __init__(self, request: LLMRequest, client: dict[str, Any], source: str = "") -> None:
        self._client = client
        self._source = source
        self._tools = {flat_name(tool): tool for tool in request.tools}
        self._id = new_id("resp_")
        self._sequence = 0
        self._usage = Usage()
        self._reason: StopReason = "end_turn"
        self._items: dict[int, _Item] = {}
        self._output: list[dict[str, Any]] = []
        self._begun = False

    def feed(self, event: StreamEvent) -> bytes:
        match event:
            case Started():
                return self._begin()
            case Counted(usage):
                self._usage = usage
            case Stopped(reason):
                self._reason = reason
            case Failed(kind, message):
                return self.fail(kind, message)
            case BlockStarted():
                return self._begin() + self._open(event)
            case Delta(index, said):
                item = self._items[index]
                item.pieces.append(said)
                return self._delta(item, said)
            case BlockEnded(index, signature):
                return self._close(self._items.pop(index), signature)
        return b""

    def finish(self) -> bytes:
        begun = self._begin()
        incomplete = {"max_tokens": "max_output_tokens", "refusal": "content_filter"}.get(self._reason)
        whole = self._response("incomplete" if incomplete else "completed")
        if incomplete:
            whole["incomplete_details"] = {"reason": incomplete}
        return begun + self._event("response.incomplete" if incomplete else "response.completed", response=whole)

    def fail(self, kind: str, message: str) -> bytes:
        error = {"code": ERROR_CODES.get(kind, "server_error"), "message": message}
        begun = self._begin()
        return begun + self._event("response.failed", response={**self._response("failed"), "error": error})

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        response = self._response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def _open(self, event: BlockStarted) -> bytes:
        item: dict[str, Any]
        if event.kind == "text":
            item = {"type": "message", "id": new_id("msg_"), "status": "in_progress"}
            item.update(role="assistant", content=[])
        elif event.kind == "thinking":
            item = {"type": "reasoning", "id": new_id("rs_"), "summary": []}
        else:
            item = _call(event.id, event.name, self._tools, None)
        opened = _Item(len(self._output), event.kind, item)
        self._items[event.index] = opened
        self._output.append(item)
        written = self._event("response.output_item.added", output_index=opened.number, item=item)
        where = {"item_id": item["id"], "output_index": opened.number}
        if event.kind == "text":
            part = {"type": "output_text", "text": "", "annotations": []}
            return written + self._event("response.content_part.added", **where, content_index=0, part=part)
        if event.kind == "thinking":
            part = {"type": "summary_text", "text": ""}
            return written + self._event("response.reasoning_summary_part.added", **where, summary_index=0, part=part)
        return written

    def _delta(self, item: _Item, said: str) -> bytes:
        where = {"item_id": item.item["id"], "output_index": item.number, "delta": said}
        if item.kind == "text":
            return self._event("response.output_text.delta", **where, content_index=0, logprobs=[])
        if item.kind == "thinking":
            return self._event("response.reasoning_summary_text.delta", **where, summary_index=0)
        if item.item["type"] == "custom_tool_call":
            return b""  # its text is inside the JSON that is still coming
        return self._event("response.function_call_arguments.delta", **where)

    def _close(self, open_: _Item, signature: str) -> bytes:
        item, said = open_.item, "".join(open_.pieces)
        where = {"item_id": item["id"], "output_index": open_.number}
        written = b""
        if open_.kind == "text":
            part = {"type": "output_text", "text": said, "annotations": []}
            item.update(status="completed", content=[part])
            written = self._event("response.output_text.done", **where, content_index=0, text=said, logprobs=[])
            written += self._event("response.content_part.done", **where, content_index=0, part=part)
        elif open_.kind == "thinking":
            part = {"type": "summary_text", "text": said}
            item["summary"] = [part]
            if signature:
                item["encrypted_content"] = pack(self._source, signature, "responses")
            written = self._event("response.reasoning_summary_text.done", **where, summary_index=0, text=said)
            written += self._event("response.reasoning_summary_part.done", **where, summary_index=0, part=part)
        elif item["type"] == "custom_tool_call":
            item.update(status="completed", input=_freeform(tool_input(said)))
            written = self._event("response.custom_tool_call_input.delta", **where, delta=item["input"])
            written += self._event("response.custom_tool_call_input.done", **where, input=item["input"])
        else:
            item.update(status="completed", arguments=said or "{}")
            written = self._event("response.function_call_arguments.done", **where, arguments=item["arguments"])
        return written + self._event("response.output_item.done", output_index=open_.number, item=item)

    def _response(self, status: str) -> dict[str, Any]:
        ended = status != "in_progress"
        return _whole(self._id, status, self._client, self._output if ended else [], self._usage if ended else None)

    def _event(self, type: str, **fields: Any) -> bytes:
        self._sequence += 1
        return sse({"type": type, "sequence_number": self._sequence - 1, **fields}, type)


def encode_answer(response: LLMResponse, request: LLMRequest) -> dict[str, Any]:
    """A whole answer."""
    tools = {flat_name(tool): tool for tool in request.tools}
    output: list[dict[str, Any]] = []
    for block in response.blocks:
        match block:
            case TextBlock():
                part = {"type": "output_text", "text": block.text, "annotations": []}
                message = {"type": "message", "id": new_id("msg_"), "status": "completed", "role": "assistant"}
                output.append({**message, "content": [part]})
            case ThinkingBlock():
                item = {"type": "reasoning", "id": new_id("rs_")}
                summary = [{"type": "summary_text", "text": block.text}] if block.text else []
                signature = pack(block.source, block.signature, "responses")
                output.append({**item, "summary": summary, "encrypted_content": signature or None})
            case ToolUseBlock():
                output.append({**_call(block.id, block.name, tools, block), "status": "completed"})
            case _:  # a model answers with nothing else
                pass
    incomplete = {"max_tokens": "max_output_tokens", "refusal": "content_filter"}.get(response.stop_reason)
    status = "incomplete" if incomplete else "completed"
    whole = _whole(new_id("resp_"), status, {"model": response.model}, output, response.usage)
    return {**whole, "incomplete_details": {"reason": incomplete} if incomplete else None}


#: OpenAI's codes of a failed response, by kind: what clients decide by whether to try again. Anything else is
#: `server_error`, also what is overloaded: codex gives up at once on the code for that.
ERROR_CODES: Final = {
    "context_too_long": "context_length_exceeded",
    "quota": "insufficient_quota",
    "budget": "insufficient_quota",
    "turns": "insufficient_quota",
    "rate_limit": "rate_limit_exceeded",
    "auth": "invalid_prompt",
    "refused": "invalid_prompt",
    "invalid": "invalid_prompt",
    "unsupported": "invalid_prompt",
    "model_not_found": "invalid_prompt",
}


def _call(id: str, name: str, tools: dict[str, Any], block: ToolUseBlock | None) -> dict[str, Any]:
    """A call's item, under the name and in the kind the client's own tool has."""
    tool = tools.get(name)
    named = {"call_id": id, "name": tool.name if tool else name, "status": "in_progress"}
    if tool is not None and tool.namespace:
        named["namespace"] = tool.namespace
    if tool is not None and tool.freeform:
        given = _freeform(block.input) if block else ""
        return {"type": "custom_tool_call", "id": new_id("ctc_"), **named, "input": given}
    written = json.dumps(arguments(block), ensure_ascii=False) if block else ""
    return {"type": "function_call", "id": new_id("fc_"), **named, "arguments": written}


def _freeform(value: Any) -> str:
    """The text for a freeform tool from the object a model was made to write."""
    if isinstance(value, dict):
        value = value.get("input", value.get("_raw", ""))
    return value if isinstance(value, str) else json.dumps(value)


def _whole(
    id: str, status: str, client: dict[str, Any], output: list[dict[str, Any]], usage: Usage | None
) -> dict[str, Any]:
    choice = client.get("tool_choice")
    return {
        "id": id,
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": text(client.get("model")),
        "output": output,
        "parallel_tool_calls": client.get("parallel_tool_calls") is not False,
        "tool_choice": choice if choice is not None else "auto",
        "tools": [],  # the client knows what it offered
        "usage": write_usage(usage) if usage else None,
    }
