"""OpenAI Chat Completions: requests, read and written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from runra.runtime.llms.collect import tool_input
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
    data_url,
    invalid,
    mapping,
    objects,
    own_thinking,
    parameters,
    result_text,
    sequence,
    split_system,
    text,
    turns,
    unsupported,
)

if TYPE_CHECKING:
    from runra.runtime.llms.targets import Target


def decode(body: dict[str, Any]) -> LLMRequest:
    """A client's request. Raises `unsupported` by name for what has no place elsewhere, `invalid` otherwise."""
    refused = [name for name in ("audio", "logprobs", "functions", "web_search_options") if body.get(name)]
    if body.get("n") not in (None, 1):
        refused.append("n > 1")
    if refused:
        raise unsupported(*refused)
    stop = body.get("stop")
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        choice = text(mapping(choice.get("function")).get("name"))
    return LLMRequest(
        messages=[_message(message) for message in objects(body.get("messages"))],
        tools=[_tool(tool) for tool in objects(body.get("tools"))],
        temperature=body.get("temperature"),
        top_p=body.get("top_p"),
        max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
        stop=[stop] if isinstance(stop, str) else sequence(stop),
        tool_choice="any" if choice == "required" else choice,
        parallel_tools=body.get("parallel_tool_calls"),
        output=_output(mapping(body.get("response_format"))),
        effort=body.get("reasoning_effort"),
    )


def _output(format: dict[str, Any]) -> OutputSchema | None:
    if format.get("type") == "json_schema":
        given = mapping(format.get("json_schema"))
        return OutputSchema(
            name=text(given.get("name")) or "answer",
            json_schema=mapping(given.get("schema")),
            strict=given.get("strict") is True,
        )
    if format.get("type") == "json_object":
        return OutputSchema(json_schema={"type": "object"}, strict=False)
    return None


def _tool(tool: dict[str, Any]) -> Tool:
    if tool.get("type", "function") != "function":
        raise unsupported(f"tools of type {tool.get('type')}")
    given = mapping(tool.get("function"))
    return Tool(
        name=text(given.get("name")),
        description=text(given.get("description")),
        input_schema=mapping(given.get("parameters")),
        strict=given.get("strict"),
    )


def _message(message: dict[str, Any]) -> Message:
    content = message.get("content")
    match message.get("role"):
        case "system" | "developer":
            return Message(role="system", content=_texts(content))
        case "user":
            return Message(role="user", content=_parts(content))
        case "tool":
            result = ToolResultBlock(id=text(message.get("tool_call_id")), content=_texts(content))
            return Message(role="user", content=[result])
        case "assistant":
            blocks: list[Block] = list(_parts(content))
            for call in objects(message.get("tool_calls")):
                given = mapping(call.get("function"))
                written = tool_input(text(given.get("arguments")))
                blocks.append(ToolUseBlock(id=text(call.get("id")), name=text(given.get("name")), input=written))
            return Message(role="assistant", content=blocks)
        case other:
            raise invalid(f"messages: role {str(other)[:40]!r} is none of system, developer, user, assistant, tool")


def _texts(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(text(part.get("text")) for part in objects(content))


def _parts(content: Any) -> list[Block]:
    if isinstance(content, str):
        return [TextBlock(text=content)] if content else []
    blocks: list[Block] = []
    for part in objects(content):
        match part.get("type"):
            case "text":
                blocks.append(TextBlock(text=text(part.get("text"))))
            case "refusal":
                blocks.append(TextBlock(text=text(part.get("refusal"))))
            case "image_url":
                blocks.append(image(text(mapping(part.get("image_url")).get("url"))))
            case other:
                raise unsupported(f"content of type {str(other)[:60]}")
    return blocks


def image(url: str) -> ImageBlock:
    """An image from its URL, a `data:` one taken apart."""
    inline = data_url(url)
    return ImageBlock(media_type=inline[0], data=inline[1]) if inline else ImageBlock(url=url)


def image_url(block: ImageBlock) -> str:
    return block.url or f"data:{block.media_type};base64,{block.data}"


# -- written ----------------------------------------------------------------------------------------------------------


def encode(request: LLMRequest, target: Target) -> dict[str, Any]:
    """The request for a model that speaks Chat, streamed, with its usage at the end."""
    system, messages = split_system(request)
    written: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for role, blocks in turns(messages):
        # OpenAI's own models keep their reasoning to themselves and refuse the field; others go on from it.
        written += _assistant(blocks, target.provider.id != "openai") if role == "assistant" else _user(blocks)
    body: dict[str, Any] = {
        "model": request.model or target.model,
        "messages": written,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    limit = min(request.max_tokens or 1 << 30, target.max_output_tokens or 1 << 30)
    if limit < 1 << 30:
        body[target.provider.max_tokens_field] = limit
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": flat_name(tool),
                    "description": tool.description,
                    "parameters": parameters(tool),
                    **({"strict": tool.strict} if tool.strict else {}),
                },
            }
            for tool in request.tools
        ]
        if request.tool_choice:
            named = {"auto": "auto", "none": "none", "any": "required"}.get(request.tool_choice)
            body["tool_choice"] = named or {"type": "function", "function": {"name": request.tool_choice}}
        if request.parallel_tools is not None:
            body["parallel_tool_calls"] = request.parallel_tools
    if request.output is not None:
        schema = {"name": request.output.name, "schema": request.output.json_schema, "strict": request.output.strict}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.top_p is not None:
        body["top_p"] = request.top_p
    if request.stop:
        body["stop"] = request.stop
    if target.reasoning == "effort" and request.effort:
        effort = "high" if request.effort in ("xhigh", "max") else request.effort
        if target.provider.id == "openrouter":
            body["reasoning"] = {"effort": effort}
        else:
            body["reasoning_effort"] = effort
    return {**body, **request.extra}


def _assistant(blocks: list[Block], with_reasoning: bool) -> list[dict[str, Any]]:
    thoughts = [block.text for block in blocks if isinstance(block, ThinkingBlock) and own_thinking(block, "chat")]
    said = "".join(block.text for block in blocks if isinstance(block, TextBlock))
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {"name": block.name, "arguments": json.dumps(arguments(block), ensure_ascii=False)},
        }
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    if not said and not calls:
        return []
    message: dict[str, Any] = {"role": "assistant", "content": said or None}
    if thoughts and with_reasoning:
        message["reasoning_content"] = "".join(thoughts)
    return [{**message, "tool_calls": calls} if calls else message]


def _user(blocks: list[Block]) -> list[dict[str, Any]]:
    """Tool results as messages of their own; their images follow as the user's: a tool's message has only text."""
    written: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for block in blocks:
        match block:
            case ToolResultBlock():
                written.append({"role": "tool", "tool_call_id": block.id, "content": result_text(block)})
                images = [] if isinstance(block.content, str) else block.content
                shown = [_image_part(part) for part in images if isinstance(part, ImageBlock)]
                if shown:
                    parts += [{"type": "text", "text": f"Images in the result of {block.id}:"}, *shown]
            case TextBlock():
                parts.append({"type": "text", "text": block.text})
            case ImageBlock():
                parts.append(_image_part(block))
            case _:  # thinking and calls are the assistant's
                pass
    if parts:
        plain = all(part["type"] == "text" for part in parts)
        content: Any = "\n\n".join(part["text"] for part in parts) if plain else parts
        written.append({"role": "user", "content": content})
    return written


def _image_part(block: ImageBlock) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": image_url(block)}}
