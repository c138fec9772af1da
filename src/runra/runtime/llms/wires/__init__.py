"""The wire formats: for each, requests and answers to and from the neutral form of `llms.types`.

Everything here is pure: no sockets, no clocks. A format has a module for requests and one for streamed answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from runra.runtime.llms.types import Format, LLMRequest, LLMResponse, StreamEvent, Usage
from runra.runtime.llms.wires import (
    chat_answers,
    chat_requests,
    gemini,
    messages_answers,
    messages_requests,
    responses_answers,
    responses_requests,
    responses_written,
)
from runra.sdk.sse import ServerEvent

if TYPE_CHECKING:
    from runra.runtime.llms.targets import Target


class Decoder(Protocol):
    """A streamed answer, read. `done` once the format's own last event came: what follows need not be waited for."""

    @property
    def done(self) -> bool: ...

    def feed(self, event: ServerEvent) -> list[StreamEvent]: ...


class Encoder(Protocol):
    """A streamed answer, written."""

    def feed(self, event: StreamEvent) -> bytes: ...

    def finish(self) -> bytes:
        """The last events, once the model is done."""
        ...

    def fail(self, kind: str, message: str) -> bytes:
        """What tells the client that the answer broke."""
        ...


@dataclass(frozen=True)
class Reader:
    """What a model's side of a format can do: write requests, read answers."""

    encode_request: Callable[[LLMRequest, Target], dict[str, Any]]
    decoder: Callable[[], Decoder]
    usage: Callable[[Any], Usage]  # of a whole, unstreamed answer's body


@dataclass(frozen=True)
class Writer:
    """What a client's side of a format can do: read requests, write answers."""

    decode_request: Callable[[dict[str, Any]], LLMRequest]
    encoder: Callable[[LLMRequest, dict[str, Any], str], Encoder]  # the client's own request; the model's format
    encode_answer: Callable[[LLMResponse, LLMRequest], dict[str, Any]]


READERS: Final[dict[Format, Reader]] = {
    "messages": Reader(messages_requests.encode, messages_answers.Decoder, messages_answers.usage_of_body),
    "chat": Reader(chat_requests.encode, chat_answers.Decoder, chat_answers.usage_of_body),
    "responses": Reader(responses_requests.encode, responses_answers.Decoder, responses_answers.usage_of_body),
    "gemini": Reader(gemini.encode, gemini.Decoder, gemini.usage_of_body),
}
WRITERS: Final[dict[Format, Writer]] = {
    "messages": Writer(messages_requests.decode, messages_answers.Encoder, messages_answers.encode_answer),
    "chat": Writer(chat_requests.decode, chat_answers.Encoder, chat_answers.encode_answer),
    "responses": Writer(responses_requests.decode, responses_written.Encoder, responses_written.encode_answer),
}
