"""A conversation with a model, kept within the model's window, and across runs in the sandbox it belongs to."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter, ValidationError

from runra.errors import RunraError
from runra.runtime.llms.types import Block, LLMResponse, Message, TextBlock, ToolResultBlock, ToolUseBlock
from runra.runtime.sandboxes import shell

if TYPE_CHECKING:
    from runra.runtime.llms import Target
    from runra.runtime.sandbox import Sandbox

#: The window of a model nobody knows, in tokens; one that is smaller says so itself, and is believed.
WINDOW: Final = 128_000
#: From this part of the window on the conversation is shortened, to that part.
_FULL: Final = 0.8
_SHORT: Final = 0.5
#: Longer results and inputs are what goes first, in characters.
_LONG: Final = 400
_LEFT_OUT: Final = "[left out to save room; call the tool again if you need this]"
_DROPPED: Final = "[an earlier part of this conversation was left out]"
#: Largest conversation that is kept, in bytes.
_KEPT: Final = 8 << 20
_ID: Final = re.compile(r"ses_[a-z0-9]{16}")
_MESSAGES: Final[TypeAdapter[list[Message]]] = TypeAdapter(list[Message])
_READ: Final = f'[ -f "$1" ] || exit 40; head -c {_KEPT + 1} -- "$1"'


def window_of(target: Target) -> int:
    """The model's window in tokens, as genai-prices knows it, else 128,000."""
    if target.local or not target.provider.prices:
        return WINDOW
    from genai_prices.data_snapshot import get_snapshot

    try:
        _, model = get_snapshot().find_provider_model(target.model, None, target.provider.prices, None)
    except LookupError:
        return WINDOW
    return model.context_window or WINDOW


class Conversation:
    """The messages so far. `overhead`: characters of what goes with every request, tools and system prompt."""

    def __init__(self, window: int, overhead: int, messages: Sequence[Message] = ()) -> None:
        self.messages = list(messages)
        self.shortened = 0
        self._window = window
        self._overhead = overhead
        self._tokens_a_character = 0.25

    def say(self, text: str) -> None:
        """The user's next words."""
        last = self.messages[-1] if self.messages else None
        if last is not None and last.role == "user":  # after results: providers want the roles to alternate
            self.messages[-1] = Message(role="user", content=[*last.blocks(), TextBlock(text=text)])
        else:
            self.messages.append(Message(role="user", content=text))

    def heard(self, response: LLMResponse) -> None:
        """The model's answer to all of it. What it counted shows how many tokens a character is here."""
        usage = response.usage
        counted = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
        if counted:
            self._tokens_a_character = min(1.0, max(0.1, counted / max(1, self._overhead + self._characters())))
        if response.blocks:
            self.messages.append(response.message())

    def results(self, results: Sequence[ToolResultBlock]) -> None:
        self.messages.append(Message(role="user", content=list(results)))

    def complete(self) -> None:
        """Answer calls that were cut off, so that the conversation can go on some day."""
        last = self.messages[-1] if self.messages else None
        open_calls = [one for one in last.blocks() if isinstance(one, ToolUseBlock)] if last is not None else []
        if open_calls and last is not None and last.role == "assistant":
            self.results([ToolResultBlock(id=one.id, content="[interrupted]", is_error=True) for one in open_calls])

    def fit(self) -> None:
        """Shorten it when it nears the window."""
        if self._tokens() > self._window * _FULL:
            self._shorten(self._window * _SHORT)

    def too_long(self) -> bool:
        """The model found it too long: shorten it by half. False when nothing is left to go."""
        return self._shorten(self._tokens() * _SHORT)

    def _tokens(self) -> float:
        return (self._overhead + self._characters()) * self._tokens_a_character

    def _characters(self) -> int:
        return sum(map(_characters, self.messages))

    def _shorten(self, tokens: float) -> bool:
        """What is long goes first, the oldest of it before the rest; then whole rounds. Whether anything went."""
        before = size = self._characters()
        room = tokens / self._tokens_a_character - self._overhead
        answers = [at for at, message in enumerate(self.messages) if message.role == "assistant"]
        for at in range(1, len(self.messages)):
            if size <= room:
                break
            shorter = _without_long(self.messages[at])
            size += _characters(shorter) - _characters(self.messages[at])
            self.messages[at] = shorter
        if size > room and len(answers) > 1:
            # From the first answer up to the one from which on the rest has room; the last answer stays.
            first = last = answers[0]
            for last, following in pairwise(answers):
                if size <= room:
                    break
                size -= sum(map(_characters, self.messages[last:following]))
                last = following
            self._drop(first, last)
        went = self._characters() < before
        self.shortened += went
        return went

    def _drop(self, first: int, last: int) -> None:
        """Drop these messages, whole rounds, and say so at the end of the first message, which stays."""
        del self.messages[first:last]
        asked = self.messages[0]
        if not any(isinstance(block, TextBlock) and block.text == _DROPPED for block in asked.blocks()):
            self.messages[0] = Message(role="user", content=[*asked.blocks(), TextBlock(text=_DROPPED)])

    # --- kept in the sandbox --------------------------------------------------------------------------------------

    async def save(self, sandbox: Sandbox, home: str, id: str) -> None:
        """Keep it in the sandbox's home; the oldest of one beyond 8 MiB is left out."""
        self.complete()
        data = _MESSAGES.dump_json(self.messages)
        while len(data) > _KEPT:
            if not self.too_long():
                raise RunraError("RESOURCE_EXHAUSTED", f"it is longer than {_KEPT >> 20} MiB")
            data = _MESSAGES.dump_json(self.messages)
        await sandbox.files.write(_path(home, id), data)

    @staticmethod
    async def load(sandbox: Sandbox, home: str, id: str) -> list[Message]:
        """A conversation that was kept there. Raises INVALID_REQUEST when there is none such. It comes out of the
        sandbox, so whatever works in there may have changed it."""
        if not _ID.fullmatch(id):
            raise _no_session(id, "no conversation has such an id")
        done = await sandbox.exec(shell.argv(_READ, _path(home, id)), timeout_ms=30_000)
        if done.exit_code != 0:
            raise _no_session(id, "there is no such conversation in this sandbox")
        try:
            messages = _MESSAGES.validate_python(json.loads(done.stdout))
        except (ValueError, ValidationError, RecursionError):
            raise _no_session(id, "what was kept of it cannot be read any more") from None
        if not messages or any(message.role == "system" for message in messages):
            raise _no_session(id, "what was kept of it is no conversation")
        return messages


def _path(home: str, id: str) -> str:
    return f"{home}/.runra/sessions/{id}.json"


def _no_session(id: str, why: str) -> RunraError:
    return RunraError(
        "INVALID_REQUEST",
        f"session_id {id[:60]!r}: {why}; leave it out to begin anew",
        details={"field": "sessionId", "kind": "setup"},
    )


def _characters(message: Message) -> int:
    return sum(map(_size, message.blocks()))


def _size(block: Any) -> int:
    match block:
        case ToolUseBlock():
            return len(json.dumps(block.input, ensure_ascii=False, default=str)) + 40
        case ToolResultBlock():
            return (len(block.content) if isinstance(block.content, str) else len(block.model_dump_json())) + 40
        case _:
            return len(block.model_dump_json())


def _without_long(message: Message) -> Message:
    return message.model_copy(update={"content": [_short(block) for block in message.blocks()]})


def _short(block: Block) -> Block:
    if isinstance(block, ToolResultBlock) and _size(block) > _LONG:
        return block.model_copy(update={"content": _LEFT_OUT})
    if isinstance(block, ToolUseBlock) and _size(block) > _LONG and isinstance(block.input, dict):
        kept = {k: v if len(str(v)) <= _LONG // 4 else _LEFT_OUT for k, v in block.input.items()}
        return block.model_copy(update={"input": kept})
    return block
