"""Which run a piece of work belongs to: carried along in the context, and over HTTP in two headers."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from runra.ids import new_id

#: The run's id has a header of its own; the trace's travels as W3C Trace Context has it.
RUN_HEADER: Final = "X-Runra-Run-Id"
TRACE_HEADER: Final = "traceparent"

_RUN_ID: Final = re.compile(r"run_[a-z0-9]{1,60}")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True)
class Run:
    """`id` is `run_` and 16 characters; `trace_id` 32 hex digits. Every event of the run carries both."""

    id: str = field(default_factory=lambda: new_id("run"))
    trace_id: str = field(default_factory=lambda: secrets.token_hex(16))

    def headers(self) -> dict[str, str]:
        """What tells a server of the run."""
        return {RUN_HEADER: self.id, TRACE_HEADER: f"00-{self.trace_id}-{secrets.token_hex(8)}-01"}


#: The run the current task works for; tasks it starts inherit it.
current_run: Final[ContextVar[Run | None]] = ContextVar("runra_run", default=None)


def told_run(headers: Iterable[tuple[bytes, bytes]]) -> Run | None:
    """The run a request's headers tell of (names in lower case), None without one. What is malformed is no run."""
    run_id = trace_id = ""
    for name, value in headers:
        if name == b"x-runra-run-id" and _RUN_ID.fullmatch(text := value.decode("latin-1")):
            run_id = text
        elif name == b"traceparent" and (match := _TRACEPARENT.fullmatch(value.decode("latin-1"))):
            trace_id = match[1]
    return Run(run_id, trace_id) if run_id or trace_id else None
