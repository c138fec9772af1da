"""A model as the seed's LLMProvider: `chat` and `stream`, the same for every provider in the table."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

from pydantic import ValidationError

from runra.errors import RunraError
from runra.runtime.llms import prices
from runra.runtime.llms.collect import Collector
from runra.runtime.llms.failures import failure
from runra.runtime.llms.targets import ModelConfig, Target, resolve
from runra.runtime.llms.types import (
    Finished,
    ImageBlock,
    LLMRequest,
    LLMResponse,
    StreamEvent,
    ToolResultBlock,
)
from runra.runtime.llms.upstream import Upstream, events, request_url
from runra.runtime.llms.wires import READERS


class ModelProvider:
    """A model of the provider `id` (a row of `targets.PROVIDERS`). Used on one event loop; `dispose` when done."""

    def __init__(self, id: str) -> None:
        self.id = id
        self._target: Target | None = None
        self._upstream = Upstream()

    async def initialize(self, config: Mapping[str, Any] | ModelConfig | None = None) -> None:
        """Settle model, key and URL (`ModelConfig`). Raises INVALID_CONFIG; nothing is sent yet."""
        self._target = resolve(self.id, config)

    @property
    def target(self) -> Target:
        """Where the model is, for the gateway. Raises INVALID_STATE before `initialize`."""
        if self._target is None:
            raise RunraError("INVALID_STATE", f"model provider {self.id!r}: initialize it first")
        return self._target

    async def chat(self, request: LLMRequest | Mapping[str, Any]) -> LLMResponse:
        """The model's whole answer. Raises RunraError with `details.kind` (`failures.Kind`): auth, quota, rate_limit
        (with `retryAfterMs`), context_too_long, refused, unavailable and so on, `retryable` saying whether to repeat.
        """
        async for event in self.stream(request):
            if isinstance(event, Finished):
                return event.response
        raise AssertionError("a stream ends with Finished or raises")

    async def stream(self, request: LLMRequest | Mapping[str, Any]) -> AsyncIterator[StreamEvent | Finished]:
        """The answer as it comes; Finished, with all of it, is last. Errors as in `chat`. Leaving the iterator early
        (`aclose`) cancels the call at the provider."""
        target = self.target
        asked = _checked(request, target)
        reader = READERS[target.format]
        body = json.dumps(reader.encode_request(asked, target), ensure_ascii=False).encode()
        collector = Collector(target.format)
        answer = await self._upstream.open(target, request_url(target, target.format), body)
        try:
            async for batch in events(answer, reader.decoder()):
                for event in batch:
                    collector.feed(event)
                    yield event
        finally:
            answer.close()
        yield Finished(_finished(collector.response(), asked, target))

    async def dispose(self) -> None:
        await self._upstream.close()


def _checked(request: LLMRequest | Mapping[str, Any], target: Target) -> LLMRequest:
    if not isinstance(request, LLMRequest):
        try:
            request = LLMRequest.model_validate(request)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise failure("invalid", f"{where}: {first['msg']}", field=where) from None
    if not target.images and has_images(request):
        raise failure("unsupported", f"model {target.model!r} is configured without images", features=["images"])
    return request


def has_images(request: LLMRequest) -> bool:
    """Whether any message shows an image, tools' results included."""
    for message in request.messages:
        for block in message.blocks():
            if isinstance(block, ImageBlock):
                return True
            parts = block.content if isinstance(block, ToolResultBlock) else ""
            if any(isinstance(part, ImageBlock) for part in parts):
                return True
    return False


def _finished(response: LLMResponse, request: LLMRequest, target: Target) -> LLMResponse:
    """The answer with its price, and parsed where a schema was asked for."""
    if response.stop_reason == "refusal":
        raise failure("refused", f"the model refused to answer: {response.content[:300] or 'without words'}")
    response.cost = prices.cost(target, response.usage, request.model or target.model).amount
    response.model = response.model or request.model or target.model
    if request.output is not None and response.stop_reason == "end_turn":
        try:
            response.data = json.loads(response.content)
        except ValueError:
            raise failure("protocol", "the model's answer is no JSON, though a schema was asked for") from None
    return response


openai = partial(ModelProvider, "openai")
anthropic = partial(ModelProvider, "anthropic")
gemini = partial(ModelProvider, "gemini")
openrouter = partial(ModelProvider, "openrouter")
ollama = partial(ModelProvider, "ollama")
vllm = partial(ModelProvider, "vllm")
custom = partial(ModelProvider, "custom")
