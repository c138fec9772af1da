"""Anthropic Messages: requests, read and written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from runra.runtime.llms.types import (
    Block,
    ImageBlock,
    LLMRequest,
    Message,
    OutputSchema,
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolResultBlock,
    ToolUseBlock,
    flat_name,
)
from runra.runtime.llms.wires.parts import (
    arguments,
    invalid,
    mapping,
    objects,
    own_thinking,
    parameters,
    sequence,
    split_system,
    text,
    turns,
    unpack,
    unsupported,
)

if TYPE_CHECKING:
    from runra.runtime.llms.targets import Target

#: `max_tokens` is required; this is asked for when nobody says how much.
DEFAULT_MAX_TOKENS: Final = 32_000
_BUDGETS: Final = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16_384, "xhigh": 24_576, "max": 30_000}


def decode(body: dict[str, Any]) -> LLMRequest:
    """A client's request. Raises `unsupported` by name for what only Anthropic itself can do, `invalid` otherwise."""
    for name in ("mcp_servers", "container"):
        if body.get(name):
            raise unsupported(name)
    system = body.get("system")
    if isinstance(system, list):
        system = "\n\n".join(text(block.get("text")) for block in objects(system))
    choice = mapping(body.get("tool_choice"))
    thinking = mapping(body.get("thinking"))
    effort = mapping(body.get("output_config")).get("effort")
    if thinking.get("type") == "disabled" or "thinking" not in body:
        effort = effort if "thinking" not in body else "none"
    output = mapping(mapping(body.get("output_config")).get("format") or body.get("output_format"))
    return LLMRequest(
        messages=[_message(message) for message in objects(body.get("messages"))],
        tools=[_tool(tool) for tool in objects(body.get("tools"))],
        system_prompt=text(system) or None,
        temperature=body.get("temperature"),
        top_p=body.get("top_p"),
        max_tokens=body.get("max_tokens"),
        stop=sequence(body.get("stop_sequences")),
        tool_choice=text(choice.get("name")) if choice.get("type") == "tool" else choice.get("type"),
        parallel_tools=False if choice.get("disable_parallel_tool_use") else None,
        output=OutputSchema(json_schema=mapping(output.get("schema"))) if output.get("type") == "json_schema" else None,
        effort=effort if effort in ("none", "minimal", "low", "medium", "high", "xhigh", "max") else None,
        thinking_budget=thinking.get("budget_tokens"),
    )


def _tool(tool: dict[str, Any]) -> Tool:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise unsupported(str(kind))
    return Tool(
        name=text(tool.get("name")),
        description=text(tool.get("description")),
        input_schema=mapping(tool.get("input_schema")),
        strict=tool.get("strict"),
    )


def _message(message: dict[str, Any]) -> Message:
    role = message.get("role")
    if role not in ("user", "assistant", "system"):
        raise invalid(f"messages: role {str(role)[:40]!r} is none of user, assistant, system")
    content = message.get("content")
    if isinstance(content, str):
        return Message(role=role, content=content)
    return Message(role=role, content=[_block(block) for block in objects(content)])


def _block(block: dict[str, Any]) -> Block:
    match block.get("type"):
        case "text":
            return TextBlock(text=text(block.get("text")))
        case "image":
            return _image(block)
        case "document":
            source = mapping(block.get("source"))
            if source.get("type") != "text":
                raise unsupported(f"documents ({source.get('type')})")
            return TextBlock(text=text(source.get("data")))
        case "thinking":
            source_, signature = unpack(text(block.get("signature")), "messages")
            return ThinkingBlock(text=text(block.get("thinking")), signature=signature, source=source_)
        case "redacted_thinking":
            source_, signature = unpack(text(block.get("data")), "messages")
            return ThinkingBlock(signature=signature, source=source_, redacted=True)
        case "tool_use":
            return ToolUseBlock(id=text(block.get("id")), name=text(block.get("name")), input=block.get("input"))
        case "tool_result":
            return _result(block)
        case other:
            raise unsupported(f"blocks of type {str(other)[:60]}")


def _image(block: dict[str, Any]) -> ImageBlock:
    source = mapping(block.get("source"))
    match source.get("type"):
        case "base64":
            return ImageBlock(media_type=text(source.get("media_type")), data=text(source.get("data")))
        case "url":
            return ImageBlock(url=text(source.get("url")))
        case other:
            raise unsupported(f"images from {str(other)[:60]}")


def _result(block: dict[str, Any]) -> ToolResultBlock:
    content = block.get("content")
    parts: str | list[TextBlock | ImageBlock]
    if isinstance(content, list):
        parts = []
        for part in objects(content):
            if part.get("type") == "text":
                parts.append(TextBlock(text=text(part.get("text"))))
            elif part.get("type") == "image":
                parts.append(_image(part))
            else:
                raise unsupported(f"tool results of type {str(part.get('type'))[:60]}")
    else:
        parts = text(content)
    return ToolResultBlock(id=text(block.get("tool_use_id")), content=parts, is_error=block.get("is_error") is True)


# -- written ----------------------------------------------------------------------------------------------------------


def encode(request: LLMRequest, target: Target) -> dict[str, Any]:
    """The request for a model that speaks Messages, streamed. The prompt's stable parts are marked for its cache."""
    system, messages = split_system(request)
    limit = min(request.max_tokens or DEFAULT_MAX_TOKENS, target.max_output_tokens or 1 << 30)
    body: dict[str, Any] = {"model": request.model or target.model, "max_tokens": limit, "stream": True}
    if system:
        body["system"] = [{"type": "text", "text": system, "cache_control": {"type": "ephemeral"}}]
    body["messages"] = [
        {"role": role, "content": [part for block in blocks if (part := _encode_block(block)) is not None]}
        for role, blocks in turns(messages)
    ]
    body["messages"] = [message for message in body["messages"] if message["content"]]
    _mark_last(body["messages"])
    if request.tools:
        body["tools"] = [
            {"name": flat_name(tool), "description": tool.description, "input_schema": parameters(tool)}
            for tool in request.tools
        ]
        choice: dict[str, Any] = {"type": "auto"}
        if request.tool_choice in ("auto", "none", "any"):
            choice = {"type": request.tool_choice}
        elif request.tool_choice:
            choice = {"type": "tool", "name": request.tool_choice}
        if request.parallel_tools is False and choice["type"] != "none":
            choice["disable_parallel_tool_use"] = True
        body["tool_choice"] = choice
    if request.stop:
        body["stop_sequences"] = request.stop
    if request.output is not None:
        body["output_config"] = {"format": {"type": "json_schema", "schema": request.output.json_schema}}
    forced = mapping(body.get("tool_choice")).get("type") in ("any", "tool")
    _think(body, request, "none" if forced else target.reasoning)  # the API refuses to think before a forced call
    if "thinking" not in body:  # nor does it take these two when thinking
        if request.temperature is not None:
            body["temperature"] = min(request.temperature, 1.0)
        elif request.top_p is not None:  # one of the two, says the API
            body["top_p"] = request.top_p
    return {**body, **request.extra}


def _think(body: dict[str, Any], request: LLMRequest, reasoning: str) -> None:
    budget = request.thinking_budget or (_BUDGETS.get(request.effort, 0) if request.effort else 0)
    if reasoning == "budget" and budget and body["max_tokens"] > 1024:
        body["thinking"] = {"type": "enabled", "budget_tokens": max(1024, min(budget, body["max_tokens"] - 1))}
    elif reasoning == "effort" and request.effort not in (None, "none"):
        effort = "low" if request.effort == "minimal" else request.effort
        body["thinking"] = {"type": "adaptive"}
        body["output_config"] = {**body.get("output_config", {}), "effort": effort}


def _encode_block(block: Block) -> dict[str, Any] | None:
    match block:
        case TextBlock():
            return {"type": "text", "text": block.text} if block.text.strip() else None  # empty text is refused
        case ImageBlock():
            return _encode_image(block)
        case ThinkingBlock():
            if not own_thinking(block, "messages"):
                return None
            if block.redacted:
                return {"type": "redacted_thinking", "data": block.signature}
            return {"type": "thinking", "thinking": block.text, "signature": block.signature}
        case ToolUseBlock():
            return {"type": "tool_use", "id": _id(block.id), "name": block.name, "input": arguments(block)}
        case ToolResultBlock():
            content: Any = block.content
            if not isinstance(content, str):
                content = [part for one in content if (part := _encode_block(one)) is not None]
            result = {"type": "tool_result", "tool_use_id": _id(block.id), "content": content}
            return {**result, "is_error": True} if block.is_error else result


def _encode_image(block: ImageBlock) -> dict[str, Any]:
    if block.url:
        return {"type": "image", "source": {"type": "url", "url": block.url}}
    return {"type": "image", "source": {"type": "base64", "media_type": block.media_type, "data": block.data}}


def _mark_last(messages: list[dict[str, Any]]) -> None:
    """Let the cache hold the conversation up to its last block that may carry a mark."""
    for message in reversed(messages):
        for block in reversed(message["content"]):
            if block["type"] in ("text", "image", "tool_use", "tool_result"):
                block["cache_control"] = {"type": "ephemeral"}
                return


def _id(value: str) -> str:
    """An id of another provider, in the characters Anthropic takes."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", value) or "_"
