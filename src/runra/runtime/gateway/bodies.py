"""A client's request as it came: read strictly, and changed in place where it must be, every other byte left alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from runra.runtime.llms.failures import failure
from runra.runtime.llms.types import Format

_SPACE: Final = " \t\n\r"


@dataclass(frozen=True)
class Body:
    """A JSON object: its text, its value, and where each field's value stands in the text."""

    text: str
    value: dict[str, Any]
    spans: dict[str, tuple[int, int]]

    def replaced(self, changes: dict[str, Any]) -> bytes:
        """The text with these fields set; those it has not are added in front."""
        text = self.text
        for name in sorted((name for name in changes if name in self.spans), key=lambda one: -self.spans[one][0]):
            start, end = self.spans[name]
            text = text[:start] + json.dumps(changes[name]) + text[end:]
        added = {name: value for name, value in changes.items() if name not in self.spans}
        if added:
            opening = text.index("{") + 1
            fields = ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in added.items())
            text = text[:opening] + fields + ("," if self.spans else "") + text[opening:]
        return text.encode()


def parse(raw: bytes) -> Body:
    """Read a request's body. A name given twice is refused: we and the provider might each believe another one."""
    try:
        text = raw.decode()
        value, spans = _fields(text)
    except (ValueError, RecursionError, IndexError) as error:
        what = str(error)[:200] or "it ends early"
        raise failure("invalid", f"the request's body is no JSON object: {what}") from None
    return Body(text, value, spans)


def _fields(text: str) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    at = _skip(text, 0)
    if text[at] != "{":
        raise ValueError("it does not begin with {")
    value: dict[str, Any] = {}
    spans: dict[str, tuple[int, int]] = {}
    at = _skip(text, at + 1)
    while text[at] != "}":
        if text[at] != '"':
            raise ValueError(f"a field's name is expected at {at}")
        name, at = decoder.raw_decode(text, at)
        at = _skip(text, at)
        if text[at] != ":":
            raise ValueError(f"a colon is expected at {at}")
        start = _skip(text, at + 1)
        if name in value:
            raise ValueError(f"{name[:60]!r} is there twice")
        value[name], at = decoder.raw_decode(text, start)
        spans[name] = (start, at)
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
            if text[at] == "}":
                raise ValueError(f"a field is expected at {at}")
        elif text[at] != "}":
            raise ValueError(f"a comma is expected at {at}")
    if text[at + 1 :].strip(_SPACE):
        raise ValueError("something follows the object")
    return value, spans


def _skip(text: str, at: int) -> int:
    while text[at] in _SPACE:
        at += 1
    return at


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name is there twice in one object")
    return value


# -- what reaches out from the provider's side ------------------------------------------------------------------------

#: Types of tools that the client itself runs, by format; any other type the provider runs.
_CLIENT_TOOLS: Final[dict[Format, tuple[str, ...]]] = {
    "messages": ("custom", "bash_", "text_editor_", "computer_", "memory_"),
    "responses": ("function", "custom", "namespace", "local_shell", "apply_patch", "computer", "tool_search"),
    "chat": ("function", "custom"),
}
#: Fields by which a provider fetches, keeps or runs something itself.
_OUTSIDE: Final[dict[Format, tuple[str, ...]]] = {
    "messages": ("mcp_servers", "container"),
    "responses": ("previous_response_id", "conversation", "background", "prompt"),
    "chat": ("web_search_options",),
}
#: Where content names a URL or a file of the account.
_FETCHED: Final = ("url", "image_url", "file_url", "file_id", "fileUri", "server_url")


def server_tools(format: Format, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The offered tools that the provider runs."""
    own = _CLIENT_TOOLS[format]
    default = "custom" if format == "messages" else ""
    tools = body.get("tools")
    return [
        tool
        for tool in (tools if isinstance(tools, list) else [])
        if isinstance(tool, dict) and not str(tool.get("type") or default).startswith(own)
    ]


def outside(format: Format, body: dict[str, Any]) -> list[str]:
    """What else makes the provider reach out or use what the account keeps, by name."""
    named = [name for name in _OUTSIDE[format] if body.get(name)]
    content = body.get("input" if format == "responses" else "messages")
    return named + sorted(set(_fetched(content)))


def _fetched(content: Any) -> Iterator[str]:
    """Names of what the provider would fetch in a conversation. Tools' inputs are data, not content: left alone."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            for name, inner in value.items():
                if name in _FETCHED and isinstance(inner, str) and not inner.startswith("data:"):
                    yield f"{value.get('type', 'content')}.{name}"[:60]
                elif name not in ("input", "arguments"):
                    waiting.append(inner)
