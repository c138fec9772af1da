"""Anthropic Messages: answers, read and written, streamed and whole."""

from __future__ import annotations

from typing import Any, Final

from runra.runtime.llms.failures import in_stream
from runra.runtime.llms.types import (
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
)
from runra.runtime.llms.wires.parts import arguments, count, mapping, new_id, pack, sse, text
from runra.sdk.sse import ServerEvent

_STOPS: Final[dict[str, StopReason]] = {
    "end_turn": "end_turn",
    "pause_turn": "end_turn",
    "tool_use": "tool_use",
    "max_tokens": "max_tokens",
    "model_context_window_exceeded": "max_tokens",
    "stop_sequence": "stop",
    "refusal": "refusal",
}
_BACK: Final[dict[StopReason, str]] = {
    "end_turn": "end_turn",
    "tool_use": "tool_use",
    "max_tokens": "max_tokens",
    "stop": "stop_sequence",
    "refusal": "refusal",
}
#: Blocks and deltas that have a place in the neutral form; a provider's own (server tools, citations) have none.
_KINDS: Final[dict[str, BlockKind]] = {
    "text": "text",
    "thinking": "thinking",
    "redacted_thinking": "thinking",
    "tool_use": "tool",
}


def read_usage(value: Any, before: Usage | None = None) -> Usage:
    """A `usage` object; a later one in a stream says only what has changed."""
    usage, known = mapping(value), before or Usage()

    def one(name: str, kept: int) -> int:
        return count(usage.get(name)) if usage.get(name) is not None else kept

    details = mapping(usage.get("output_tokens_details"))
    return Usage(
        input_tokens=one("input_tokens", known.input_tokens),
        cache_read_tokens=one("cache_read_input_tokens", known.cache_read_tokens),
        cache_write_tokens=one("cache_creation_input_tokens", known.cache_write_tokens),
        output_tokens=one("output_tokens", known.output_tokens),
        reasoning_tokens=count(details.get("thinking_tokens")) or known.reasoning_tokens,
    )


def usage_of_body(body: Any) -> Usage:
    return read_usage(mapping(body).get("usage"))


def write_usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cache_read_tokens,
        "output_tokens": usage.output_tokens,
    }


class Decoder:
    """Reads a stream of Messages events."""

    def __init__(self) -> None:
        self.done = False
        self._usage = Usage()
        self._open: dict[int, tuple[BlockKind, str, bool]] = {}

    def feed(self, event: ServerEvent) -> list[StreamEvent]:
        data = event.json()
        match data.get("type"):
            case "message_start":
                message = mapping(data.get("message"))
                self._usage = read_usage(message.get("usage"))
                return [Started(text(message.get("id")), text(message.get("model"))), Counted(self._usage)]
            case "content_block_start":
                return self._start(count(data.get("index")), mapping(data.get("content_block")))
            case "content_block_delta":
                return self._delta(count(data.get("index")), mapping(data.get("delta")))
            case "content_block_stop":
                index = count(data.get("index"))
                if index not in self._open:
                    return []
                _, signature, redacted = self._open.pop(index)
                return [BlockEnded(index, signature, redacted)]
            case "message_delta":
                self._usage = read_usage(data.get("usage"), self._usage)
                delta = mapping(data.get("delta"))
                reason = text(delta.get("stop_reason"))
                stopped = Stopped(_STOPS.get(reason, "end_turn"), text(delta.get("stop_sequence")) or None)
                return [Counted(self._usage), *([stopped] if reason else [])]
            case "message_stop":
                self.done = True
                return []
            case "error":
                self.done = True
                return [Failed(*in_stream(data.get("error")))]
            case _:
                return []

    def _start(self, index: int, block: dict[str, Any]) -> list[StreamEvent]:
        kind = _KINDS.get(text(block.get("type")))
        if kind is None:
            return []
        redacted = block.get("type") == "redacted_thinking"
        self._open[index] = (kind, text(block.get("data" if redacted else "signature")), redacted)
        events: list[StreamEvent] = [BlockStarted(index, kind, text(block.get("id")), text(block.get("name")))]
        said = text(block.get("text")) or text(block.get("thinking"))
        return [*events, Delta(index, said, kind)] if said else events

    def _delta(self, index: int, delta: dict[str, Any]) -> list[StreamEvent]:
        if index not in self._open:
            return []
        kind, signature, redacted = self._open[index]
        if delta.get("type") == "signature_delta":
            self._open[index] = (kind, signature + text(delta.get("signature")), redacted)
            return []
        said = text(delta.get("text")) or text(delta.get("thinking")) or text(delta.get("partial_json"))
        return [Delta(index, said, kind)] if said else []


class Encoder:
    """Writes a stream of Messages events."""

    def __init__(self, request: LLMRequest, client: dict[str, Any], source: str = "") -> None:
        self._model = text(client.get("model"))
        self.source = source
        self._usage = Usage()
        self._stopped = Stopped("end_turn")
        self._open: dict[int, BlockKind] = {}
        self._numbers: dict[int, int] = {}
        self._begun = False

    def feed(self, event: StreamEvent) -> bytes:
        match event:
            case Started(id, _):
                return self._begin(id)
            case Counted(usage):
                self._usage = usage
                return b""
            case Stopped():
                self._stopped = event
                return b""
            case Failed(kind, message):
                return self.fail(kind, message)
            case BlockStarted(index, kind, id, name):
                self._open[index] = kind
                number = self._numbers[index] = len(self._numbers)
                block: dict[str, Any] = {"type": "text", "text": ""}
                if kind == "thinking":
                    block = {"type": "thinking", "thinking": "", "signature": ""}
                elif kind == "tool":
                    block = {"type": "tool_use", "id": id, "name": name, "input": {}}
                return self._begin("") + _event("content_block_start", index=number, content_block=block)
            case Delta(index, said, kind):
                delta = {"type": "text_delta", "text": said}
                if kind == "thinking":
                    delta = {"type": "thinking_delta", "thinking": said}
                elif kind == "tool":
                    delta = {"type": "input_json_delta", "partial_json": said}
                return _event("content_block_delta", index=self._numbers[index], delta=delta)
            case BlockEnded(index, signature):
                number, kind = self._numbers[index], self._open.pop(index)
                signed = b""
                if kind == "thinking" and signature:
                    delta = {"type": "signature_delta", "signature": pack(self.source, signature, "messages")}
                    signed = _event("content_block_delta", index=number, delta=delta)
                return signed + _event("content_block_stop", index=number)

    def finish(self) -> bytes:
        delta = {"stop_reason": _BACK[self._stopped.reason], "stop_sequence": self._stopped.sequence}
        return (
            self._begin("")
            + _event("message_delta", delta=delta, usage=write_usage(self._usage))
            + _event("message_stop")
        )

    def fail(self, kind: str, message: str) -> bytes:
        return _event("error", error={"type": ERROR_TYPES.get(kind, "api_error"), "message": message})

    def _begin(self, id: str) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        message: dict[str, Any] = {
            "id": id if id.startswith("msg_") else new_id("msg_"),
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**write_usage(self._usage), "output_tokens": 0},
        }
        return _event("message_start", message=message)


def encode_answer(response: LLMResponse, request: LLMRequest) -> dict[str, Any]:
    """A whole answer."""
    content: list[dict[str, Any]] = []
    for block in response.blocks:
        match block:
            case TextBlock():
                content.append({"type": "text", "text": block.text})
            case ThinkingBlock():
                signature = pack(block.source, block.signature, "messages")
                content.append({"type": "thinking", "thinking": block.text, "signature": signature})
            case ToolUseBlock():
                content.append({"type": "tool_use", "id": block.id, "name": block.name, "input": arguments(block)})
            case _:  # a model answers with nothing else
                pass
    return {
        "id": response.id if response.id.startswith("msg_") else new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": response.model,
        "content": content,
        "stop_reason": _BACK[response.stop_reason],
        "stop_sequence": None,
        "usage": write_usage(response.usage),
    }


#: Anthropic's names of errors, by kind.
ERROR_TYPES: Final = {
    "auth": "permission_error",
    "token": "authentication_error",
    "quota": "billing_error",
    "rate_limit": "rate_limit_error",
    "context_too_long": "invalid_request_error",
    "refused": "invalid_request_error",
    "model_not_found": "not_found_error",
    "unsupported": "invalid_request_error",
    "invalid": "invalid_request_error",
    "unavailable": "overloaded_error",
    "budget": "invalid_request_error",
    "turns": "invalid_request_error",
}


def _event(type: str, **fields: Any) -> bytes:
    return sse({"type": type, **fields}, type)
