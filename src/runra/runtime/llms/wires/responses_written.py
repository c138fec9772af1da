"""OpenAI Responses: answers, written, streamed and whole."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any, Final

from runra.runtime.llms.collect import tool_input
from runra.runtime.llms.types import (
    BlockEnded,
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
from runra.runtime.llms.wires.parts import arguments, new_id, pack, sse, text
from runra.runtime.llms.wires.responses_answers import write_usage


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
