"""Gemini generateContent: requests written, streamed answers read. Nobody speaks it to us."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from runra.runtime.llms.failures import in_stream
from runra.runtime.llms.types import (
    Block,
    BlockEnded,
    BlockKind,
    BlockStarted,
    Counted,
    Delta,
    Failed,
    ImageBlock,
    LLMRequest,
    Started,
    Stopped,
    StopReason,
    StreamEvent,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    Usage,
    flat_name,
)
from runra.runtime.llms.wires.parts import (
    arguments,
    count,
    mapping,
    new_id,
    objects,
    own_thinking,
    parameters,
    result_text,
    split_system,
    text,
    turns,
)
from runra.sdk.sse import ServerEvent

if TYPE_CHECKING:
    from runra.runtime.llms.targets import Target

_STOPS: Final[dict[str, StopReason]] = {
    "STOP": "end_turn",
    "MAX_TOKENS": "max_tokens",
    "SAFETY": "refusal",
    "RECITATION": "refusal",
    "BLOCKLIST": "refusal",
    "PROHIBITED_CONTENT": "refusal",
    "SPII": "refusal",
    "IMAGE_SAFETY": "refusal",
}
_BUDGETS: Final = {"none": 0, "minimal": 512, "low": 2048, "medium": 8192, "high": 16_384, "xhigh": 24_576, "max": -1}
#: Gemini 3 refuses a history whose calls lack their signatures, and names this value for calls it did not make.
_NO_SIGNATURE: Final = "skip_thought_signature_validator"


def encode(request: LLMRequest, target: Target) -> dict[str, Any]:
    """The request for a model that speaks Gemini's API. The model's name is in the URL."""
    system, messages = split_system(request)
    names = {
        block.id: block.name for message in messages for block in message.blocks() if isinstance(block, ToolUseBlock)
    }
    contents = []
    for role, blocks in turns(messages):
        parts = [part for block in blocks for part in _parts(block, names)]
        if parts:
            contents.append({"role": "model" if role == "assistant" else "user", "parts": parts})
    body: dict[str, Any] = {"contents": contents}
    if system:
        body["systemInstruction"] = {"parts": [{"text": system}]}
    if request.tools:
        body["tools"] = [
            {
                "functionDeclarations": [
                    {
                        "name": flat_name(tool),
                        "description": tool.description,
                        "parametersJsonSchema": parameters(tool),
                    }
                    for tool in request.tools
                ]
            }
        ]
        if request.tool_choice:
            calling: dict[str, Any] = {"mode": "ANY", "allowedFunctionNames": [request.tool_choice]}
            if request.tool_choice in ("auto", "none", "any"):
                calling = {"mode": request.tool_choice.upper()}
            body["toolConfig"] = {"functionCallingConfig": calling}
    generation = _generation(request, target)
    if generation:
        body["generationConfig"] = generation
    return {**body, **request.extra}


def _generation(request: LLMRequest, target: Target) -> dict[str, Any]:
    limit = min(request.max_tokens or 1 << 30, target.max_output_tokens or 1 << 30)
    settings: dict[str, Any] = {
        "temperature": request.temperature,
        "topP": request.top_p,
        "maxOutputTokens": limit if limit < 1 << 30 else None,
        "stopSequences": request.stop or None,
    }
    if request.output is not None:
        settings["responseMimeType"] = "application/json"
        settings["responseJsonSchema"] = request.output.json_schema
    if target.reasoning == "budget" and (request.effort or request.thinking_budget is not None):
        budget = request.thinking_budget
        if budget is None and request.effort:
            budget = _BUDGETS[request.effort]
        settings["thinkingConfig"] = {"thinkingBudget": budget, "includeThoughts": budget != 0}
    elif target.reasoning == "effort" and request.effort:
        level = "low" if request.effort in ("none", "minimal", "low") else "high"
        settings["thinkingConfig"] = {"thinkingLevel": level, "includeThoughts": True}
    return {name: value for name, value in settings.items() if value is not None}


def _parts(block: Block, names: dict[str, str]) -> list[dict[str, Any]]:
    match block:
        case TextBlock():
            return [{"text": block.text}] if block.text else []
        case ImageBlock():
            return [_image(block)]
        case ThinkingBlock():
            if not own_thinking(block, "gemini"):
                return []
            return [{"text": block.text, "thought": True, "thoughtSignature": block.signature}]
        case ToolUseBlock():
            call = {"name": block.name, "args": arguments(block)}
            return [{"functionCall": call, "thoughtSignature": block.signature or _NO_SIGNATURE}]
        case ToolResultBlock():
            said = "error" if block.is_error else "output"
            response = {"name": names.get(block.id, block.id), "response": {said: result_text(block)}}
            images = [] if isinstance(block.content, str) else block.content
            return [{"functionResponse": response}, *(_image(one) for one in images if isinstance(one, ImageBlock))]


def _image(block: ImageBlock) -> dict[str, Any]:
    if block.url:
        return {"fileData": {"fileUri": block.url}}
    return {"inlineData": {"mimeType": block.media_type, "data": block.data}}


def read_usage(value: Any) -> Usage:
    """A `usageMetadata` object: its prompt includes what the cache read, its candidates not the thoughts."""
    usage = mapping(value)
    read, thoughts = count(usage.get("cachedContentTokenCount")), count(usage.get("thoughtsTokenCount"))
    prompt = count(usage.get("promptTokenCount")) + count(usage.get("toolUsePromptTokenCount"))
    return Usage(
        input_tokens=max(0, prompt - read),
        cache_read_tokens=read,
        output_tokens=count(usage.get("candidatesTokenCount")) + thoughts,
        reasoning_tokens=thoughts,
    )


def usage_of_body(body: Any) -> Usage:
    return read_usage(mapping(body).get("usageMetadata"))


class Decoder:
    """Reads a stream of partial answers. There is no last event: an answer ends with its finish reason."""

    def __init__(self) -> None:
        self.done = False
        self._started = False
        self._next = 0
        self._prose: tuple[BlockKind, int] | None = None
        self._signature = ""
        self._any_call = False

    def feed(self, event: ServerEvent) -> list[StreamEvent]:
        data = event.json()
        if data.get("error"):
            self.done = True
            return [Failed(*in_stream(data["error"]))]
        events: list[StreamEvent] = []
        if not self._started and data:
            self._started = True
            events.append(Started(text(data.get("responseId")), text(data.get("modelVersion"))))
        if data.get("usageMetadata"):
            events.append(Counted(read_usage(data["usageMetadata"])))
        if mapping(data.get("promptFeedback")).get("blockReason"):
            self.done = True
            return [*events, Stopped("refusal")]
        candidate = next(objects(data.get("candidates")), {})
        for part in objects(mapping(candidate.get("content")).get("parts")):
            events += self._part(part)
        finish = text(candidate.get("finishReason"))
        if finish:
            self.done = True
            events += self._close()
            reason = _STOPS.get(finish)
            if reason is None:
                events.append(Failed("protocol", f"the model's answer ended with {finish[:60]}"))
            else:
                events.append(Stopped("tool_use" if reason == "end_turn" and self._any_call else reason))
        return events

    def _part(self, part: dict[str, Any]) -> list[StreamEvent]:
        signature = text(part.get("thoughtSignature"))
        call = part.get("functionCall")
        if isinstance(call, dict):
            events = self._close()
            self._any_call = True
            index = self._take()
            id = text(call.get("id")) or new_id("call_")
            given = json.dumps(mapping(call.get("args")), ensure_ascii=False)
            return [
                *events,
                BlockStarted(index, "tool", id, text(call.get("name"))),
                Delta(index, given, "tool"),
                BlockEnded(index, signature),
            ]
        said = text(part.get("text"))
        if not said:
            return []
        kind: BlockKind = "thinking" if part.get("thought") is True else "text"
        events = []
        if self._prose is None or self._prose[0] != kind:
            events = self._close()
            self._prose = (kind, self._take())
            events.append(BlockStarted(self._prose[1], kind))
        if kind == "thinking":
            self._signature = signature or self._signature
        return [*events, Delta(self._prose[1], said, kind)]

    def _take(self) -> int:
        self._next += 1
        return self._next - 1

    def _close(self) -> list[StreamEvent]:
        if self._prose is None:
            return []
        kind, index = self._prose
        signature = self._signature if kind == "thinking" else ""
        self._prose, self._signature = None, ""
        return [BlockEnded(index, signature)]
