"""OpenAI Responses: requests, read and written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Literal

from runra.runtime.llms.collect import tool_input
from runra.runtime.llms.types import (
    NAMESPACE_SEPARATOR,
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
from runra.runtime.llms.wires.chat_requests import image, image_url
from runra.runtime.llms.wires.parts import (
    arguments,
    invalid,
    mapping,
    objects,
    own_thinking,
    parameters,
    result_text,
    split_system,
    text,
    turns,
    unpack,
    unsupported,
)

if TYPE_CHECKING:
    from runra.runtime.llms.targets import Target

#: What the provider would keep, fetch or run on its own side.
_REFUSED: Final = ("previous_response_id", "conversation", "background", "prompt", "max_tool_calls")
_ROLES: Final[dict[str, Literal["user", "assistant", "system"]]] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}
#: Between a reasoning item's id and its content in the neutral signature.
_SIGNED: Final = "|"


def decode(body: dict[str, Any]) -> LLMRequest:
    """A client's request. Raises `unsupported` by name for what only OpenAI itself can do, `invalid` otherwise."""
    refused = [name for name in _REFUSED if body.get(name)]
    if refused:
        raise unsupported(*refused)
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else list(objects(given))
    tools = [tool for described in objects(body.get("tools")) for tool in _tools(described)]
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        if choice.get("type") not in ("function", "custom"):
            raise unsupported(f"tool_choice {str(choice.get('type'))[:60]}")
        choice = text(choice.get("name"))
    reasoning = mapping(body.get("reasoning"))
    format = mapping(mapping(body.get("text")).get("format"))
    output = None
    if format.get("type") == "json_schema":
        output = OutputSchema(
            name=text(format.get("name")) or "answer",
            json_schema=mapping(format.get("schema")),
            strict=format.get("strict") is True,
        )
    elif format.get("type") == "json_object":
        output = OutputSchema(json_schema={"type": "object"}, strict=False)
    return LLMRequest(
        messages=_joined([_item(item) for item in items]),
        tools=tools,
        system_prompt=text(body.get("instructions")) or None,
        temperature=body.get("temperature"),
        top_p=body.get("top_p"),
        max_tokens=body.get("max_output_tokens"),
        tool_choice="any" if choice == "required" else choice,
        parallel_tools=body.get("parallel_tool_calls"),
        output=output,
        effort=reasoning.get("effort"),
    )


def _tools(tool: dict[str, Any], namespace: str = "") -> list[Tool]:
    name, description = text(tool.get("name")), text(tool.get("description"))
    match tool.get("type"):
        case "function":
            schema = mapping(tool.get("parameters"))
            return [
                Tool(
                    name=name,
                    description=description,
                    input_schema=schema,
                    strict=tool.get("strict"),
                    namespace=namespace,
                )
            ]
        case "custom":
            format = mapping(tool.get("format"))
            if format.get("definition"):  # a grammar the provider would enforce: here the model is only told of it
                description += f"\n\nIts input must match this {format.get('syntax')} grammar:\n{format['definition']}"
            return [Tool(name=name, description=description, freeform=True, namespace=namespace)]
        case "namespace":
            return [one for inner in objects(tool.get("tools")) for one in _tools(inner, name)]
        case other:
            raise unsupported(str(other)[:60])


def _item(item: dict[str, Any]) -> Message:
    match item.get("type", "message"):
        case "message":
            return _message(item)
        case "reasoning":
            summary = "\n\n".join(text(part.get("text")) for part in objects(item.get("summary")))
            source, signature = unpack(text(item.get("encrypted_content")), "responses")
            if source == "responses" and signature:
                signature = f"{text(item.get('id'))}{_SIGNED}{signature}"
            thinking = ThinkingBlock(text=summary, signature=signature, source=source)
            return Message(role="assistant", content=[thinking])
        case "function_call" | "custom_tool_call" as kind:
            name = text(item.get("name"))
            if item.get("namespace"):
                name = f"{text(item.get('namespace'))}{NAMESPACE_SEPARATOR}{name}"
            given = text(item.get("input")) if kind == "custom_tool_call" else tool_input(text(item.get("arguments")))
            return Message(
                role="assistant", content=[ToolUseBlock(id=text(item.get("call_id")), name=name, input=given)]
            )
        case "function_call_output" | "custom_tool_call_output":
            result = ToolResultBlock(id=text(item.get("call_id")), content=_result(item.get("output")))
            return Message(role="user", content=[result])
        case other:
            raise unsupported(f"items of type {str(other)[:60]}")


def _result(output: Any) -> str | list[TextBlock | ImageBlock]:
    if not isinstance(output, list):
        return output if isinstance(output, str) else json.dumps(output)
    return [block for part in objects(output) if isinstance(block := _part(part), TextBlock | ImageBlock)]


def _message(item: dict[str, Any]) -> Message:
    role = _ROLES.get(text(item.get("role")))
    if role is None:
        raise invalid(f"input: role {str(item.get('role'))[:40]!r} is none of {', '.join(_ROLES)}")
    content = item.get("content")
    if isinstance(content, str):
        return Message(role=role, content=content)
    return Message(role=role, content=[_part(part) for part in objects(content)])


def _part(part: dict[str, Any]) -> Block:
    match part.get("type"):
        case "input_text" | "output_text" | "text":
            return TextBlock(text=text(part.get("text")))
        case "refusal":
            return TextBlock(text=text(part.get("refusal")))
        case "input_image" if part.get("image_url"):
            return image(text(part.get("image_url")))
        case "input_image":
            raise unsupported("images from file ids")
        case other:
            raise unsupported(f"content of type {str(other)[:60]}")


def _joined(messages: list[Message]) -> list[Message]:
    """Items one after another by one side are one message."""
    joined: list[Message] = []
    for message in messages:
        if joined and message.role != "system" and joined[-1].role == message.role:
            joined[-1] = Message(role=message.role, content=[*joined[-1].blocks(), *message.blocks()])
        else:
            joined.append(message)
    return joined


# -- written ----------------------------------------------------------------------------------------------------------


def encode(request: LLMRequest, target: Target) -> dict[str, Any]:
    """The request for a model that speaks Responses, streamed. Nothing is kept there: reasoning travels with us."""
    system, messages = split_system(request)
    body: dict[str, Any] = {"model": request.model or target.model, "stream": True, "store": False}
    if system:
        body["instructions"] = system
    body["input"] = [item for role, blocks in turns(messages) for item in _items(role, blocks)]
    limit = min(request.max_tokens or 1 << 30, target.max_output_tokens or 1 << 30)
    if limit < 1 << 30:
        body["max_output_tokens"] = max(16, limit)  # the least the API takes
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "name": flat_name(tool),
                "description": tool.description,
                "parameters": parameters(tool),
                "strict": bool(tool.strict),  # unset means strict, says the API
            }
            for tool in request.tools
        ]
        if request.tool_choice:
            named = {"auto": "auto", "none": "none", "any": "required"}.get(request.tool_choice)
            body["tool_choice"] = named or {"type": "function", "name": request.tool_choice}
        if request.parallel_tools is not None:
            body["parallel_tool_calls"] = request.parallel_tools
    if request.output is not None:
        body["text"] = {
            "format": {
                "type": "json_schema",
                "name": request.output.name,
                "schema": request.output.json_schema,
                "strict": request.output.strict,
            }
        }
    if target.reasoning == "effort":
        body["include"] = ["reasoning.encrypted_content"]
        body["reasoning"] = {"summary": "auto"}
        if request.effort:
            body["reasoning"]["effort"] = "xhigh" if request.effort == "max" else request.effort
    else:
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.top_p is not None:
            body["top_p"] = request.top_p
    return {**body, **request.extra}


def _items(role: str, blocks: list[Block]) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    for block in blocks:
        match block:
            case TextBlock() if role == "assistant":  # as plain text: its parts would need the ids they once had
                items.append({"type": "message", "role": role, "content": block.text})
            case TextBlock():
                _say(items, role, {"type": "input_text", "text": block.text})
            case ImageBlock():
                _say(items, role, {"type": "input_image", "image_url": image_url(block)})
            case ThinkingBlock():
                if own_thinking(block, "responses"):
                    items.append(_reasoning(block))
            case ToolUseBlock():
                items.append(
                    {
                        "type": "function_call",
                        "call_id": block.id,
                        "name": block.name,
                        "arguments": json.dumps(arguments(block), ensure_ascii=False),
                    }
                )
            case ToolResultBlock():
                output: Any = result_text(block)
                if not isinstance(block.content, str) and any(isinstance(one, ImageBlock) for one in block.content):
                    output = [
                        {"type": "input_text", "text": part.text}
                        if isinstance(part, TextBlock)
                        else {"type": "input_image", "image_url": image_url(part)}
                        for part in block.content
                    ]
                items.append({"type": "function_call_output", "call_id": block.id, "output": output})
    return items


def _say(items: list[dict[str, Any]], role: str, part: dict[str, Any]) -> None:
    if items and items[-1]["type"] == "message":
        items[-1]["content"].append(part)
    else:
        items.append({"type": "message", "role": role, "content": [part]})


def _reasoning(block: ThinkingBlock) -> dict[str, Any]:
    id, _, encrypted = block.signature.partition(_SIGNED)
    summary = [{"type": "summary_text", "text": block.text}] if block.text else []
    return {"type": "reasoning", "id": id, "summary": summary, "encrypted_content": encrypted}
