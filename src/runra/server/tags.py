"""Idempotency of executes: a retried call finds the command of the first one, and never runs it again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final

from runra.contract import ExecRequest
from runra.errors import RunraError
from runra.server.faults import bad_request
from runra.server.nodeport import AgentLink, Sandbox

#: How many keys are kept in mind.
_REMEMBERED: Final = 10_000


class Tags:
    """What is remembered of Idempotency-Keys, as far back as this server does."""

    def __init__(self) -> None:
        self._bodies: OrderedDict[str, str] = OrderedDict()
        # Tags of commands that did start: one the agent has forgotten since must not start again.
        self._begun: OrderedDict[tuple[str, str], None] = OrderedDict()

    def tag(self, key_id: str, sandbox: Sandbox, idempotency_key: str | None, request: ExecRequest) -> str:
        """The agent's tag for a retried execute: it attaches to the process of the first call instead of running
        the command again. The same key with another body is an error, as far back as this server remembers."""
        if idempotency_key is None:
            return ""
        # Hashed: the agent takes short tags only.
        tag = hashlib.sha256(f"{key_id}:{idempotency_key}".encode()).hexdigest()[:40]
        place = f"{sandbox.id}:{tag}"
        body = hashlib.sha256(request.model_dump_json(exclude={"background"}).encode()).hexdigest()
        if self._bodies.setdefault(place, body) != body:
            raise bad_request(
                "Idempotency-Key", "was used with another body in this sandbox; use a new key", idempotency_key
            )
        self._bodies.move_to_end(place)
        if len(self._bodies) > _REMEMBERED:
            self._bodies.popitem(last=False)
        return tag

    def note_begun(self, sandbox: Sandbox, tag: str) -> None:
        if tag:
            self._begun[sandbox.id, tag] = None
            if len(self._begun) > _REMEMBERED:
                self._begun.popitem(last=False)

    async def refuse_forgotten(self, sandbox: Sandbox, link: AgentLink, tag: str) -> None:
        """A retry never runs a command twice: INVALID_STATE when it ran and the sandbox kept its end no longer (it
        keeps the latest 64)."""
        if (sandbox.id, tag) in self._begun and not any(status.tag == tag for status in await link.processes()):
            raise RunraError(
                "INVALID_STATE",
                "the command of this Idempotency-Key has run, and its result is no longer kept; "
                "use a new key to run it again",
                details={"reason": "result_forgotten"},
            )
