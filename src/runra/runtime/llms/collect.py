"""From the pieces of a stream to one whole answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from runra.runtime.llms.failures import failure
from runra.runtime.llms.types import (
    Block,
    BlockEnded,
    BlockStarted,
    Counted,
    Delta,
    Failed,
    LLMResponse,
    Started,
    Stopped,
    StopReason,
    StreamEvent,
    TextBlock,
    ThinkingBlock,
    ToolCall,
    ToolUseBlock,
    Usage,
)

#: Longest answer taken, in characters: beyond it the model or its server is broken.
MAX_ANSWER: Final = 32 << 20


@dataclass
class _Open:
    kind: str
    id: str
    name: str
    pieces: list[str]
    signature: str = ""
    redacted: bool = False


class Collector:
    """Feed it every event of one stream; then `response()` is the answer, as far as it came.

    `source` is the format the stream came in, noted in the thinking it holds. `freeform` names the tools whose input
    is plain text. Raises a RunraError of kind `protocol` for an answer beyond MAX_ANSWER, and of the reported kind for
    a Failed.
    """

    def __init__(self, source: str = "", freeform: frozenset[str] = frozenset()) -> None:
        self._source = source
        self._freeform = freeform
        self._blocks: dict[int, _Open] = {}
        self._size = 0
        self._started = Started()
        self._stopped: StopReason | None = None
        self.usage = Usage()

    def feed(self, event: StreamEvent) -> None:
        match event:
            case Started():
                self._started = event
            case BlockStarted(index, kind, id, name):
                self._blocks[index] = _Open(kind, id, name, [])
            case Delta(index, text):
                self._size += len(text)
                if self._size > MAX_ANSWER:
                    raise failure("protocol", f"the model's answer is longer than {MAX_ANSWER >> 20} Mi characters")
                if index in self._blocks:
                    self._blocks[index].pieces.append(text)
            case BlockEnded(index, signature, redacted):
                if index in self._blocks:
                    self._blocks[index].signature, self._blocks[index].redacted = signature, redacted
            case Counted(usage):
                self.usage = usage
            case Stopped(reason):
                self._stopped = reason
            case Failed(kind, message):
                raise failure(kind, message)

    def response(self) -> LLMResponse:
        blocks: list[Block] = []
        for open_ in self._blocks.values():
            text = "".join(open_.pieces)
            if open_.kind == "text":
                if text:
                    blocks.append(TextBlock(text=text))
            elif open_.kind == "thinking":
                if text or open_.signature:
                    blocks.append(
                        ThinkingBlock(
                            text=text, signature=open_.signature, redacted=open_.redacted, source=self._source
                        )
                    )
            else:
                given = text if open_.name in self._freeform else tool_input(text)
                blocks.append(ToolUseBlock(id=open_.id, name=open_.name, input=given, signature=open_.signature))
        calls = [block for block in blocks if isinstance(block, ToolUseBlock)]
        return LLMResponse(
            content="".join(block.text for block in blocks if isinstance(block, TextBlock)),
            tool_calls=[ToolCall(id=call.id, name=call.name, input=call.input) for call in calls],
            stop_reason=self._stopped or "end_turn",
            usage=self.usage,
            blocks=blocks,
            id=self._started.id,
            model=self._started.model,
        )


def tool_input(text: str) -> Any:
    """A tool's input from the JSON text a model wrote: `{}` for none. Text that is no JSON (small models write such)
    is kept under `_raw`, so that whoever runs the tool can tell the model what was wrong with it."""
    if not text.strip():
        return {}
    try:
        return json.loads(text)
    except ValueError:
        return {"_raw": text}
