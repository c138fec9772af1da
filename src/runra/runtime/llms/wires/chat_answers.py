"""OpenAI Chat Completions: answers, read and written, streamed and whole."""

from __future__ import annotations

import json
import time
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
    ThinkingBlock,
    Usage,
)
from runra.runtime.llms.wires.parts import UNSIGNED, count, mapping, new_id, objects, sse, text
from runra.sdk.sse import ServerEvent

_STOPS: Final[dict[str, StopReason]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_BACK: Final[dict[StopReason, str]] = {
    "end_turn": "stop",
    "stop": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "refusal": "content_filter",
}


def read_usage(value: Any) -> Usage:
    """A `usage` object: its prompt includes what the cache read, its completion the reasoning."""
    usage = mapping(value)
    prompt = mapping(usage.get("prompt_tokens_details"))
    read, written = count(prompt.get("cached_tokens")), count(prompt.get("cache_write_tokens"))
    cost = usage.get("cost")  # OpenRouter
    return Usage(
        input_tokens=max(0, count(usage.get("prompt_tokens")) - read - written),
        cache_read_tokens=read,
        cache_write_tokens=written,
        output_tokens=count(usage.get("completion_tokens")),
        reasoning_tokens=count(mapping(usage.get("completion_tokens_details")).get("reasoning_tokens")),
        cost=float(cost) if isinstance(cost, int | float) and not isinstance(cost, bool) and cost >= 0 else None,
    )


def usage_of_body(body: Any) -> Usage:
    return read_usage(mapping(body).get("usage"))


def write_usage(usage: Usage) -> dict[str, Any]:
    prompt = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage.output_tokens,
        "total_tokens": prompt + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


class Decoder:
    """Reads a stream of chat chunks. Servers differ: ids may be missing, several calls may share one index."""

    def __init__(self) -> None:
        self.done = False
        self._started = False
        self._next = 0
        self._prose: tuple[BlockKind, int] | None = None
        self._calls: dict[int, tuple[str, int]] = {}  # the chunk's index of a call: its id and our index
        self._open_calls: list[int] = []
        self._any_call = False
        self._refused = False

    def feed(self, event: ServerEvent) -> list[StreamEvent]:
        if event.data.strip() == "[DONE]":
            self.done = True
            return []
        data = event.json()
        if data.get("error"):
            self.done = True
            return [Failed(*in_stream(data["error"]))]
        events: list[StreamEvent] = []
        if not self._started and data.get("choices"):
            self._started = True
            events.append(Started(text(data.get("id")), text(data.get("model"))))
        for choice in objects(data.get("choices")):
            if count(choice.get("index")):
                continue
            events += self._choice(mapping(choice.get("delta")))
            finish = text(choice.get("finish_reason"))
            if finish:
                events += self._close()
                reason = _STOPS.get(finish, "end_turn")
                if self._refused:
                    reason = "refusal"
                elif self._any_call and reason == "end_turn":
                    reason = "tool_use"
                events.append(Stopped(reason))
        if data.get("usage"):
            events.append(Counted(read_usage(data["usage"])))
        return events

    def _choice(self, delta: dict[str, Any]) -> list[StreamEvent]:
        events: list[StreamEvent] = []
        thought = text(delta.get("reasoning_content")) or text(delta.get("reasoning"))
        refusal = text(delta.get("refusal"))
        self._refused = self._refused or bool(refusal)
        if thought:
            events += self._say("thinking", thought)
        if said := text(delta.get("content")) or refusal:
            events += self._say("text", said)
        for call in objects(delta.get("tool_calls")):
            events += self._call(call)
        return events

    def _say(self, kind: BlockKind, said: str) -> list[StreamEvent]:
        events: list[StreamEvent] = []
        if self._prose is None or self._prose[0] != kind:
            events += self._close()
            self._prose = (kind, self._take())
            events.append(BlockStarted(self._prose[1], kind))
        return [*events, Delta(self._prose[1], said, kind)]

    def _call(self, call: dict[str, Any]) -> list[StreamEvent]:
        function, key = mapping(call.get("function")), count(call.get("index"))
        id, name = text(call.get("id")), text(function.get("name"))
        events: list[StreamEvent] = []
        known = self._calls.get(key)
        if known is None or (id and name and id != known[0]):
            if self._prose is not None:
                events += self._close()
            known = (id or new_id("call_"), self._take())
            self._calls[key] = known
            self._open_calls.append(known[1])
            self._any_call = True
            events.append(BlockStarted(known[1], "tool", known[0], name))
        said = function.get("arguments")
        if isinstance(said, dict):  # some servers send the object itself
            said = json.dumps(said)
        return [*events, Delta(known[1], text(said), "tool")] if text(said) else events

    def _take(self) -> int:
        self._next += 1
        return self._next - 1

    def _close(self) -> list[StreamEvent]:
        closed: list[StreamEvent] = [BlockEnded(index) for index in self._open_calls]
        if self._prose is not None:
            kind, index = self._prose
            closed.append(BlockEnded(index, UNSIGNED if kind == "thinking" else ""))
        self._prose, self._open_calls = None, []
        self._calls = {}
        return closed


class Encoder:
    """Writes a stream of chat chunks."""

    def __init__(self, request: LLMRequest, client: dict[str, Any], source: str = "") -> None:
        self._base = {
            "id": new_id("chatcmpl-"),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": text(client.get("model")),
        }
        self._wants_usage = mapping(client.get("stream_options")).get("include_usage") is True
        self._usage = Usage()
        self._reason: StopReason = "end_turn"
        self._calls: dict[int, int] = {}
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
            case BlockStarted(index, "tool", id, name):
                number = self._calls[index] = len(self._calls)
                function = {"name": name, "arguments": ""}
                call = {"index": number, "id": id, "type": "function", "function": function}
                return self._begin() + self._chunk({"tool_calls": [call]})
            case Delta(index, said, "tool"):
                call = {"index": self._calls[index], "function": {"arguments": said}}
                return self._chunk({"tool_calls": [call]})
            case Delta(_, said, "thinking"):
                return self._begin() + self._chunk({"reasoning_content": said})
            case Delta(_, said, _):
                return self._begin() + self._chunk({"content": said})
            case _:
                pass
        return b""

    def finish(self) -> bytes:
        last = self._begin() + self._chunk({}, _BACK[self._reason])
        if self._wants_usage:
            last += sse({**self._base, "choices": [], "usage": write_usage(self._usage)})
        return last + b"data: [DONE]\n\n"

    def fail(self, kind: str, message: str) -> bytes:
        return sse({"error": {"message": message, "type": kind, "code": kind}})

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return self._chunk({"role": "assistant", "content": ""})

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        return sse({**self._base, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def encode_answer(response: LLMResponse, request: LLMRequest) -> dict[str, Any]:
    """A whole answer."""
    message: dict[str, Any] = {"role": "assistant", "content": response.content or None, "refusal": None}
    thought = "".join(block.text for block in response.blocks if isinstance(block, ThinkingBlock))
    if thought:
        message["reasoning_content"] = thought
    if response.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.input, ensure_ascii=False)},
            }
            for call in response.tool_calls
        ]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _BACK[response.stop_reason]}
    return {
        "id": new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": response.model,
        "choices": [choice],
        "usage": write_usage(response.usage),
    }
