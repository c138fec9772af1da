"""The model of one run: every call counted, told and bounded as the gateway does it, with the gateway's own books."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import ValidationError

from runra.errors import RunraError
from runra.ids import new_id
from runra.runtime.gateway.runs import Call, Run, RunLimits
from runra.runtime.llms import prices
from runra.runtime.llms.failures import failure, kind_of
from runra.runtime.llms.targets import Provider, Target
from runra.runtime.llms.types import (
    Counted,
    Delta,
    Finished,
    LLMRequest,
    LLMResponse,
    Stopped,
    TextBlock,
    ToolUseBlock,
)
from runra.runtime.model_access import Door

if TYPE_CHECKING:
    from runra.runtime.run import AgentRun

#: After so many characters of an answer its cost is looked at.
_LOOK_EVERY: Final = 2000
#: We make our calls one after the other, so there is nothing to throttle.
_CALLS_A_MINUTE: Final = 1_000_000


class Metered:
    """`ask` the model of a run. `heard` is called with every sign of life of it. Any provider will do that has `chat`;
    one that tells its `target` is streamed, so that a budget can end an answer in the middle."""

    def __init__(
        self, run: AgentRun, model: str | None, max_cost: float | None, max_turns: int, heard: Callable[[], object]
    ) -> None:
        if run.llm is None:
            raise RunraError(
                "INVALID_CONFIG",
                "the agent 'custom' has no model: give llm={'provider': …, 'config': {'model': …}}, or your own `run`",
                details={"field": "llm", "kind": "setup"},
            )
        self._llm: Any = run.llm
        known = getattr(run.llm, "target", None)
        self._told = isinstance(known, Target)
        target = known if isinstance(known, Target) else _elsewhere(run.llm.id, model)
        self.target = replace(target, model=model) if model else target
        self._model = model
        self._heard = heard
        limits = RunLimits(max_cost=max_cost, max_turns=max_turns, calls_per_minute=_CALLS_A_MINUTE)
        self._books = Run(run.run.id, self.target, limits, run.emit)
        self.door = Door("", "", self.target, self._books.totals)

    async def ready(self) -> None:
        """Load what prices need. Raises INVALID_CONFIG for a budget on a model whose price is not known."""
        if not self._told:
            return
        if not self.target.local:
            await asyncio.to_thread(prices.load)
        if self._books.limits.max_cost is not None and not prices.known(self.target):
            raise RunraError(
                "INVALID_CONFIG",
                f"max_cost: the price of {self.target.model} is not known, so no budget can hold; set llm prices",
                details={"field": "maxCost", "models": [self.target.model], "kind": "setup"},
            )

    async def ask(self, request: LLMRequest) -> LLMResponse:
        """The model's answer. Raises RunraError with `details.kind`: the model's own, `budget` or `turns`."""
        asked = request.model_copy(update={"model": self._model}) if self._model else request
        call = Call(
            new_id("call"),
            self.target.format,
            asked.model or self.target.model,
            self.target,
            turn=bool(asked.tools),
            request_bytes=len(asked.model_dump_json()),
        )
        self._books.enter(call)
        call.sent = True
        try:
            response = await (self._streamed(call, asked) if self._told else self._whole(call, asked))
            call.status = "ok"
        except Exception as error:
            call.error = (kind_of(error) or error.code) if isinstance(error, RunraError) else type(error).__name__
            call.status = "stopped" if call.error == "budget" else "failed"
            call.sent = bool(call.characters or call.usage.total)  # what was refused has used nothing
            raise
        finally:
            self._books.leave(call)
        return response

    async def _streamed(self, call: Call, request: LLMRequest) -> LLMResponse:
        looked = 0
        async with aclosing(cast(Any, self._llm.stream(request))) as events:
            async for event in events:
                self._heard()
                if call.first_byte_ms is None:
                    call.first_byte_ms = round((time.monotonic() - call.began) * 1000, 1)
                match event:
                    case Finished(response):
                        return response
                    case Delta(_, text):
                        call.characters += len(text)
                    case Counted(usage):
                        call.usage = usage
                    case Stopped():
                        call.stopped = True
                if call.characters - looked >= _LOOK_EVERY:
                    looked = call.characters
                    if self._books.over():
                        limit = self._books.limits.max_cost
                        raise failure("budget", f"the run's budget of {limit:.4f} US dollars is spent")
        raise failure("protocol", "the model's answer ended without its last event")

    async def _whole(self, call: Call, request: LLMRequest) -> LLMResponse:
        given = await self._llm.chat(request)
        self._heard()
        try:
            response = given if isinstance(given, LLMResponse) else LLMResponse.model_validate(given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise failure(
                "protocol",
                f"model provider {self._llm.id!r}: its answer's {'.'.join(map(str, first['loc']))}: {first['msg']}",
            ) from None
        if not response.blocks:
            said = [TextBlock(text=response.content)] if response.content else []
            calls = [ToolUseBlock(id=one.id, name=one.name, input=one.input) for one in response.tool_calls]
            response = response.model_copy(update={"blocks": [*said, *calls]})
        call.usage, call.stopped = response.usage, True
        call.characters = len(response.content)
        if response.cost is not None:
            call.usage = response.usage.model_copy(update={"cost": response.cost})
        elif self._books.limits.max_cost is not None and response.usage.cost is None:
            raise failure("budget", f"model provider {self._llm.id!r} tells no cost, so no max_cost can hold")
        return response


def _elsewhere(id: str, model: str | None) -> Target:
    """What stands in the books for a provider that does not say where its model is."""
    return Target(provider=Provider(id, "", {"chat": ""}), model=model or id, base_url="", paths={"chat": ""})
