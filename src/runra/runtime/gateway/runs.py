"""The runs a gateway serves: their tokens, where their models are, what they may spend, what they have spent."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from runra.runtime.llms import prices
from runra.runtime.llms.failures import failure
from runra.runtime.llms.targets import Target
from runra.runtime.llms.types import Usage

#: Publishes an event of the run, as `AgentRun.emit` does.
Emit = Callable[[Literal["cost.llm"], dict[str, Any]], object]

#: How many tool calls' signatures of a run are kept for a client whose format has no place for them.
_SIGNATURES: Final = 4096
_TOKEN_PREFIX: Final = "rgw_"  # noqa: S105 - the beginning all tokens share


@dataclass(frozen=True)
class RunLimits:
    """What a run may use. `max_cost` in US dollars; `max_turns` counts calls that offer tools, so a title or a summary
    is no turn. `server_tools`: what to do when a client offers the model tools that its provider runs (web search, MCP
    servers and so on: they reach outside whatever the sandbox's network policy says) or sends URLs for the provider to
    fetch: refuse the call, drop the tools and refuse the rest, or allow."""

    max_cost: float | None = None
    max_turns: int | None = None
    calls_per_minute: int = 300
    concurrent: int = 16
    lifetime_s: float = 24 * 3600.0
    server_tools: Literal["refuse", "drop", "allow"] = "drop"


@dataclass
class Totals:
    """What a run has used so far. `unpriced` counts calls whose cost is not known and so is in no sum."""

    cost: float = 0.0
    calls: int = 0
    turns: int = 0
    unpriced: int = 0
    usage: Usage = field(default_factory=Usage)
    models: dict[str, Usage] = field(default_factory=dict)


class Run:
    """One run's door: made by `Gateway.admit`, closed by `Gateway.revoke`."""

    def __init__(
        self, id: str, target: Target, limits: RunLimits, emit: Emit, models: Mapping[str, Target] | None = None
    ) -> None:
        self.id = id
        self.limits = limits
        self.emit = emit
        self.totals = Totals()
        self.calls: set[Call] = set()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.closed = False
        self._target = target
        self._models = dict(models or {})
        self._expires = time.monotonic() + limits.lifetime_s
        self._allowance = float(limits.calls_per_minute)
        self._refilled = time.monotonic()
        self._signatures: OrderedDict[str, str] = OrderedDict()

    @property
    def valid(self) -> bool:
        return not self.closed and time.monotonic() < self._expires

    @property
    def targets(self) -> list[Target]:
        return [self._target, *self._models.values()]

    @property
    def names(self) -> list[str]:
        """The models a client may name; any other name means the run's own model."""
        return list(dict.fromkeys([self._target.model, *self._models]))

    def target(self, model: str) -> Target:
        """Where calls for a model go. Every name the run was not given leads to its one model, so that an agent's
        side calls to smaller models of its own never leave for somewhere else."""
        return self._models.get(model, self._target)

    def enter(self, call: Call) -> None:
        """Count a call in, or refuse it: kinds `budget`, `turns`, `rate_limit`."""
        limits = self.limits
        if self.over():
            raise failure(
                "budget",
                f"the run has spent its budget: {self.totals.cost:.4f} of {limits.max_cost:.4f} US dollars; "
                "start another run, or one with a higher max_cost",
                maxCost=limits.max_cost,
                spent=self.totals.cost,
            )
        if call.turn and limits.max_turns is not None and self.totals.turns >= limits.max_turns:
            raise failure(
                "turns",
                f"the run has made its {limits.max_turns} turns; start another run, or one with more max_turns",
                maxTurns=limits.max_turns,
            )
        if len(self.calls) >= limits.concurrent:
            raise failure("rate_limit", f"{limits.concurrent} calls of this run are under way", retry_after_s=1.0)
        self.throttle()
        self.totals.turns += call.turn
        self.calls.add(call)

    def throttle(self) -> None:
        """Use one of the calls the run may make this minute. Raises `rate_limit` when there is none left."""
        limit = self.limits.calls_per_minute
        now = time.monotonic()
        self._allowance = min(limit, self._allowance + (now - self._refilled) * limit / 60)
        self._refilled = now
        if self._allowance < 1:
            wait = (1 - self._allowance) * 60 / limit
            raise failure("rate_limit", f"more than {limit} calls a minute", retry_after_s=wait)
        self._allowance -= 1

    def leave(self, call: Call) -> None:
        """Book a call that has ended, and tell of it."""
        if call not in self.calls:
            return
        self.calls.discard(call)
        usage, estimated = call.settled()
        priced = prices.cost(call.target, usage, call.target.model)
        totals = self.totals
        totals.calls += 1
        totals.cost += priced.amount or 0.0
        totals.unpriced += priced.amount is None
        totals.usage = _sum(totals.usage, usage)
        totals.models[call.target.model] = _sum(totals.models.get(call.target.model, Usage()), usage)
        self.emit(
            "cost.llm",
            {
                "callId": call.id,
                "provider": call.target.provider.id,
                "model": call.target.model,
                "requestedModel": call.requested,
                "format": call.format,
                **{name: value for name, value in usage.to_wire().items() if name != "cost"},
                "cost": priced.amount,
                "costSource": priced.source,
                "currency": "USD",
                "estimated": estimated,
                "status": call.status,
                "error": call.error or None,
                "turn": call.turn,
                "retries": call.retries,
                "firstByteMs": call.first_byte_ms,
                "durationMs": round((time.monotonic() - call.began) * 1000, 1),
                "totalCost": totals.cost,
            },
        )

    def over(self) -> bool:
        """Whether the budget is spent, what calls under way are known to have cost included."""
        if self.limits.max_cost is None:
            return False
        pending = 0.0
        for call in self.calls:
            pending += prices.cost(call.target, call.so_far(), call.target.model).amount or 0.0
        return self.totals.cost + pending >= self.limits.max_cost

    def remember(self, id: str, signature: str) -> None:
        """Keep a tool call's signature until the client sends the call back."""
        self._signatures[id] = signature
        if len(self._signatures) > _SIGNATURES:
            self._signatures.popitem(last=False)

    def signature(self, id: str) -> str:
        return self._signatures.get(id, "")


@dataclass(eq=False)
class Call:
    """One call of a model, from its admission to its booking."""

    id: str
    format: str
    requested: str
    target: Target
    turn: bool
    request_bytes: int
    began: float = field(default_factory=time.monotonic)
    usage: Usage = field(default_factory=Usage)
    stopped: bool = False  # the model said it was done: its count, if any, is the last
    sent: bool = False  # the request may have reached the model
    characters: int = 0  # of the answer so far
    status: Literal["ok", "failed", "cancelled", "stopped"] = "cancelled"
    error: str = ""
    retries: int = 0
    first_byte_ms: float | None = None

    def settled(self) -> tuple[Usage, bool]:
        """The tokens used, and whether they are partly estimated: of an answer that broke off before its count (four
        characters make a token, roughly). Else whoever hangs up early would never pay."""
        if not self.sent or (self.stopped and self.usage.output_tokens):
            return self.usage, False
        so_far = self.so_far()
        if not so_far.total - so_far.output_tokens:
            so_far.input_tokens = self.request_bytes // 4
        return so_far, True

    def so_far(self) -> Usage:
        """The tokens known to be used by now, those of the answer by its length."""
        return self.usage.model_copy(update={"output_tokens": max(self.usage.output_tokens, self.characters // 4)})


class Tokens:
    """Tokens of runs. Only their hashes are kept; a look-up compares hashes, so its time tells nothing of a token."""

    def __init__(self) -> None:
        self._runs: dict[bytes, Run] = {}

    def issue(self, run: Run) -> str:
        token = _TOKEN_PREFIX + secrets.token_urlsafe(32)
        self._runs[_digest(token)] = run
        return token

    def find(self, token: str) -> Run | None:
        """The run whose token this is, while it is valid."""
        digest = _digest(token)
        for known, run in self._runs.items():
            if hmac.compare_digest(known, digest):
                return run if run.valid else None
        return None

    def forget(self, run: Run) -> None:
        self._runs = {digest: known for digest, known in self._runs.items() if known is not run}

    def runs(self) -> list[Run]:
        return list(self._runs.values())


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()


def _sum(one: Usage, other: Usage) -> Usage:
    names = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
    return Usage(**{name: getattr(one, name) + getattr(other, name) for name in names})
