"""What a tool is, what it gives back, and how much of that a model is shown."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

#: Longest output a model is shown, in characters: some 8,000 tokens.
MAX_OUTPUT: Final = 30_000


@dataclass(frozen=True)
class ToolOutput:
    """What a call gave back, as the model is told it. `exit_code` is a command's."""

    text: str
    is_error: bool = False
    exit_code: int | None = None


class ToolFailed(Exception):
    """A call that could not be done, in words for the model: what was wrong, and what to do instead."""


@dataclass(frozen=True)
class Tool:
    """A tool a model may call. `input_schema` is a JSON schema of an object. `call` gets the input as the model wrote
    it and raises ToolFailed for what the model can mend."""

    name: str
    description: str
    input_schema: dict[str, Any]
    call: Callable[[Any], Awaitable[ToolOutput]]


def cut(text: str, limit: int = MAX_OUTPUT) -> str:
    """The text, or its beginning and its end where it is longer than `limit` characters: errors stand at the end."""
    if len(text) <= limit:
        return text
    head, tail = text[: limit // 2], text[len(text) - limit // 2 :]
    left = len(text) - len(head) - len(tail)
    return f"{head}\n[… {left} characters left out …]\n{tail}"
