"""What `sandbox.on(...)` hands its handlers: the document's payloads, made from the sandbox.* events."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import ValidationError

from runra.errors import RunraError
from runra.events import Event
from runra.sdk.failures import invalid, told_error
from runra.sdk.sse import ServerEvent

LifecycleName = Literal["started", "paused", "resumed", "terminated", "error"]


@dataclass(frozen=True)
class StartedEvent:
    """The sandbox runs for the first time."""

    sandbox_id: str
    timestamp: str


@dataclass(frozen=True)
class PausedEvent:
    """The sandbox was paused, by anyone or for being idle; `runtime_duration_ms` is how long it had run."""

    sandbox_id: str
    timestamp: str
    runtime_duration_ms: int
    reason: str


@dataclass(frozen=True)
class ResumedEvent:
    """The sandbox runs again, after `paused_duration_ms`."""

    sandbox_id: str
    timestamp: str
    paused_duration_ms: int


@dataclass(frozen=True)
class TerminatedEvent:
    """The sandbox is gone; the last event there is."""

    sandbox_id: str
    timestamp: str
    reason: str
    total_runtime_ms: int


@dataclass(frozen=True)
class ErrorEvent:
    """Something went wrong in the sandbox, or its events cannot be followed any more."""

    sandbox_id: str
    timestamp: str
    error: RunraError


LifecycleEvent = StartedEvent | PausedEvent | ResumedEvent | TerminatedEvent | ErrorEvent
Handler = Callable[..., Any]
NAMES: Final = ("started", "paused", "resumed", "terminated", "error")


def check_name(name: str) -> None:
    if name not in NAMES:
        raise invalid("event", f"must be one of {', '.join(NAMES)}, not {name!r}")


def taking_one(handler: Handler) -> Handler:
    """The handler as one that takes the payload: `on("started", lambda: …)` is allowed to ignore it."""
    if not callable(handler):
        raise invalid("handler", f"must be callable, not {type(handler).__name__}")
    try:
        inspect.signature(handler).bind(None)
    except TypeError:
        return lambda _payload: handler()
    except ValueError:  # a builtin that does not tell its signature
        return handler
    return handler


def read_event(raw: ServerEvent) -> Event | None:
    """The envelope, or None when it is none. A type newer than this client is kept as it came."""
    content = raw.json()
    try:
        return Event.model_validate(content)
    except ValidationError:
        given: dict[str, Any] = {name: content.get(name) for name in ("id", "type", "timestamp", "sandboxId")}
        if not all(isinstance(value, str) for value in given.values()):
            return None
        data = content.get("data")
        # `model_construct` checks nothing: the type is one this client has no name for.
        return Event.model_construct(
            id=given["id"],
            type=given["type"],
            timestamp=given["timestamp"],
            sandbox_id=given["sandboxId"],
            run_id=str(content.get("runId") or ""),
            trace_id=str(content.get("traceId") or ""),
            data=data if isinstance(data, dict) else {},
        )


def lifecycle(event: Event) -> tuple[LifecycleName, LifecycleEvent] | None:
    """What an event means for the handlers, if anything."""
    at, data = (event.sandbox_id, event.timestamp), event.data
    match event.type:
        case "sandbox.started":
            return "started", StartedEvent(*at)
        case "sandbox.paused":
            reason = data.get("reason")
            return "paused", PausedEvent(*at, _ms(data, "runtimeDurationMs"), reason if isinstance(reason, str) else "")
        case "sandbox.resumed":
            return "resumed", ResumedEvent(*at, _ms(data, "pausedDurationMs"))
        case "sandbox.terminated":
            return "terminated", TerminatedEvent(*at, str(data.get("reason") or ""), _ms(data, "totalRuntimeMs"))
        case "sandbox.error":
            return "error", ErrorEvent(*at, _error(data))
    return None


def _ms(data: Mapping[str, Any], name: str) -> int:
    value = data.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _error(data: Mapping[str, Any]) -> RunraError:
    inner = data.get("error")
    if isinstance(inner, Mapping):
        return told_error({"error": dict(inner)})
    text = inner if isinstance(inner, str) else data.get("message")
    return RunraError("INTERNAL_ERROR", str(text or "the sandbox reports an error without details"), details=data)
