"""What the formats' modules share: reading JSON of unknown shape, opaque signatures, features by name."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any, Final

from runra.runtime.llms.failures import failure
from runra.runtime.llms.types import (
    Block,
    LLMRequest,
    Message,
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolResultBlock,
    ToolUseBlock,
)


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """The objects of a list."""
    return (item for item in sequence(value) if isinstance(item, dict))


def text(value: Any) -> str:
    """The value if it is a string, else an empty one."""
    return value if isinstance(value, str) else ""


def count(value: Any) -> int:
    """The value if it is a count, else 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(12)


def sse(value: dict[str, Any], name: str = "") -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def unsupported(*features: str, hint: str = "") -> Exception:
    """What is raised for a request no translation can carry."""
    named = ", ".join(sorted(set(features)))
    return failure(
        "unsupported",
        f"this model cannot be reached with: {named}; leave it out, or choose a model that speaks this API{hint}",
        features=sorted(set(features)),
    )


def invalid(what: str) -> Exception:
    return failure("invalid", what)


# -- signatures -------------------------------------------------------------------------------------------------------

#: In place of a signature where a format has none: Chat's reasoning is given back as it is.
UNSIGNED: Final = "unsigned"
#: Marks a signature of another format inside a client's own: `runra1.<format>.<signature>`.
_PACKED: Final = "runra1."


def pack(block_source: str, signature: str, client: str) -> str:
    """A signature as a client of another format is given it, to be sent back unchanged."""
    if not signature or block_source in ("", client):
        return signature
    return f"{_PACKED}{block_source}.{signature}"


def unpack(signature: str, client: str) -> tuple[str, str]:
    """Source and signature of what a client sent back."""
    if signature.startswith(_PACKED):
        source, _, rest = signature.removeprefix(_PACKED).partition(".")
        return source, rest
    return client, signature


# -- conversations ----------------------------------------------------------------------------------------------------


def split_system(request: LLMRequest) -> tuple[str, list[Message]]:
    """The system prompt with the leading system messages, and the other messages. A system message further on becomes
    the user's, marked: most models take a system prompt at the start only."""
    system = [request.system_prompt] if request.system_prompt else []
    messages: list[Message] = []
    for message in request.messages:
        if message.role != "system":
            messages.append(message)
        elif not messages:
            system += [block.text for block in message.blocks() if isinstance(block, TextBlock)]
        else:
            said = "\n".join(block.text for block in message.blocks() if isinstance(block, TextBlock))
            messages.append(Message(role="user", content=f"<system-reminder>\n{said}\n</system-reminder>"))
    return "\n\n".join(part for part in system if part), messages


def turns(messages: list[Message]) -> list[tuple[str, list[Block]]]:
    """Role and blocks, neighbours of one role joined; a user's tool results come before all else, as models want it."""
    joined: list[tuple[str, list[Block]]] = []
    for message in messages:
        blocks = list(message.blocks())
        if joined and joined[-1][0] == message.role:
            joined[-1][1].extend(blocks)
        elif blocks:
            joined.append((message.role, blocks))
    return [
        (role, sorted(blocks, key=lambda block: not isinstance(block, ToolResultBlock)) if role == "user" else blocks)
        for role, blocks in joined
    ]


def own_thinking(block: ThinkingBlock, format: str) -> bool:
    """Whether this thinking may go to a model of that format: only what it proved itself."""
    return block.source == format and bool(block.signature)


def result_text(block: ToolResultBlock) -> str:
    """A tool's result as text, its images left out; an error says so."""
    if isinstance(block.content, str):
        said = block.content
    else:
        said = "\n".join(part.text for part in block.content if isinstance(part, TextBlock))
    return f"Error: {said}" if block.is_error and not said.lower().startswith("error") else said


def arguments(block: ToolUseBlock) -> dict[str, Any]:
    """A call's input as an object; a freeform tool's text is its only field."""
    if isinstance(block.input, dict):
        return block.input
    return {"input": block.input}


def parameters(tool: Tool) -> dict[str, Any]:
    """A tool's schema as an object schema. A freeform tool has one text field, `input`."""
    if tool.freeform:
        return {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
    schema = {name: value for name, value in tool.input_schema.items() if name != "$schema"}
    return {"type": "object", "properties": {}, **schema} if schema.get("type", "object") == "object" else schema


def data_url(url: str) -> tuple[str, str] | None:
    """Media type and base64 of a `data:` URL."""
    if not url.startswith("data:"):
        return None
    head, _, data = url[5:].partition(",")
    if not head.endswith(";base64"):
        raise invalid("images in data: URLs must be base64")
    return head.removesuffix(";base64"), data
