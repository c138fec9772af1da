"""What is asked of a model and what it answers: the one form between all wire formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from runra.contract import Request, Wire
from runra.runtime.types import Usage as Usage

#: The wire formats: Anthropic Messages, OpenAI Responses, OpenAI Chat Completions, Gemini generateContent.
Format = Literal["messages", "responses", "chat", "gemini"]

#: Why a model stopped: the seed's four. `refusal` exists between formats only: to a caller it is an error.
StopReason = Literal["end_turn", "tool_use", "max_tokens", "stop", "refusal"]

#: How hard a model should think, where it can be told.
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class TextBlock(Request):
    type: Literal["text"] = "text"
    text: str


class ImageBlock(Request):
    """An image: base64 `data` with its `media_type`, or a `url` the provider fetches."""

    type: Literal["image"] = "image"
    media_type: str = ""
    data: str = Field(default="", repr=False)
    url: str = ""


class ThinkingBlock(Request):
    """A model's reasoning. `signature` is its provider's opaque proof, given back unchanged; `source` the format that
    made it: no other provider is sent it. `redacted`: there is only the signature."""

    type: Literal["thinking"] = "thinking"
    text: str = ""
    signature: str = Field(default="", repr=False)
    redacted: bool = False
    source: str = ""


class ToolUseBlock(Request):
    """A call of a tool. `input` is an object, a freeform tool's a string. `signature`: as in ThinkingBlock (Gemini)."""

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: Any = Field(default_factory=dict)
    signature: str = Field(default="", repr=False)


class ToolResultBlock(Request):
    """What the call `id` gave back."""

    type: Literal["tool_result"] = "tool_result"
    id: str
    content: str | list[TextBlock | ImageBlock] = ""
    is_error: bool = False


Block = Annotated[TextBlock | ImageBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class Message(Request):
    """One message. Leading `system` messages belong to the system prompt; later ones stand where they are."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]

    def blocks(self) -> Sequence[Any]:
        """The content as blocks; a plain string is one text block, an empty one none."""
        if isinstance(self.content, str):
            return [TextBlock(text=self.content)] if self.content else []
        return self.content


class Tool(Request):
    """A tool the model may call. `freeform`: its input is plain text (Responses' custom tools). `namespace`: the group
    Responses clients put it in; its name alone is unique only within that."""

    name: str
    description: str = ""
    input_schema: dict[str, Any] = Field(default_factory=lambda: {"type": "object"}, alias="input_schema")
    strict: bool | None = None
    freeform: bool = False
    namespace: str = ""


class OutputSchema(Request):
    """The answer's text is to be JSON of this schema."""

    name: str = "answer"
    json_schema: dict[str, Any]
    strict: bool = True


class LLMRequest(Request):
    """A conversation for the model (seed, LLMRequest). Unset means the provider's default.

    `tool_choice`: auto, none, any (must call one), or the name of the tool to call. `thinking_budget` in tokens.
    `model` overrides the configured one. `extra` goes into the provider's request as it stands.
    """

    messages: list[Message]
    tools: list[Tool] = Field(default_factory=list)
    system_prompt: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    stop: list[str] = Field(default_factory=list)
    tool_choice: str | None = None
    parallel_tools: bool | None = None
    output: OutputSchema | None = None
    effort: Effort | None = None
    thinking_budget: int | None = Field(default=None, ge=0)
    model: str | None = None
    extra: dict[str, Any] = Field(default_factory=dict)


class ToolCall(Wire):
    id: str
    name: str
    input: Any


class LLMResponse(Wire):
    """What the model answered (seed, LLMResponse). `content` is the text; `blocks` all of it in order, to be put into
    the next request; `cost` in US dollars, None where the price is not known; `data` the parsed text when an output
    schema was asked for."""

    content: str = ""
    tool_calls: list[ToolCall] = Field(default_factory=list)
    stop_reason: StopReason = "end_turn"
    usage: Usage = Field(default_factory=Usage)
    blocks: list[Block] = Field(default_factory=list)
    id: str = ""
    model: str = ""
    cost: float | None = None
    data: Any = None

    def message(self) -> Message:
        """The answer as the assistant's message of the next request."""
        return Message(role="assistant", content=list(self.blocks))


# -- what a stream is made of -----------------------------------------------------------------------------------------

BlockKind = Literal["text", "thinking", "tool"]


@dataclass(frozen=True, slots=True)
class Started:
    """The answer begins."""

    id: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class BlockStarted:
    """A block begins; `index` names it from here on. `id` and `name` are a tool call's."""

    index: int
    kind: BlockKind
    id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """More of a block: text, reasoning, or a tool's input as JSON text (plain text where the tool is freeform)."""

    index: int
    text: str
    kind: BlockKind = "text"


@dataclass(frozen=True, slots=True)
class BlockEnded:
    index: int
    signature: str = ""
    redacted: bool = False


@dataclass(frozen=True, slots=True)
class Counted:
    """Tokens used so far; each replaces the one before."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class Stopped:
    """The model is done. Only a Counted may follow."""

    reason: StopReason
    sequence: str | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The provider reported a failure in the middle of its answer. `kind` as in `failures.KINDS`."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of `LLMProvider.stream`: the whole answer."""

    response: LLMResponse = field(repr=False)


StreamEvent = Started | BlockStarted | Delta | BlockEnded | Counted | Stopped | Failed

#: Between a tool's namespace and its name where a format knows no namespaces.
NAMESPACE_SEPARATOR: Final = "__"


def flat_name(tool: Tool) -> str:
    """The tool's name in formats without namespaces."""
    return f"{tool.namespace}{NAMESPACE_SEPARATOR}{tool.name}" if tool.namespace else tool.name
