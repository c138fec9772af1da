"""What events add to which metric: one list for Prometheus and OpenTelemetry alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from runra.event_catalogue import level_of
from runra.events import Event

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
#: Boundaries of the GenAI semantic conventions for tokens, and theirs for the duration of a model's call.
_TOKENS: Final = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0)
_CALLS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)


@dataclass(frozen=True)
class Metric:
    """A metric, by its name in OpenTelemetry; `labels` are all its labels."""

    name: str
    kind: Literal["counter", "histogram"]
    unit: str
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


EVENTS: Final = Metric("runra.events", "counter", "{event}", "Events by type and level.", ("type", "level"))
EXECS: Final = Metric("runra.exec.duration", "histogram", "s", "Commands by how they ended.", ("outcome",), _SECONDS)
TOOLS: Final = Metric(
    "runra.tool.duration",
    "histogram",
    "s",
    "An agent's tool calls.",
    ("gen_ai.tool.name", "outcome"),
    _SECONDS,
)
EGRESS: Final = Metric("runra.network.egress", "counter", "By", "Bytes out of and into sandboxes.", ("allowed",))
TERMINATIONS: Final = Metric(
    "runra.sandbox.terminations", "counter", "{sandbox}", "Sandboxes that ended, by reason.", ("reason",)
)
COST: Final = Metric(
    "runra.llm.cost", "counter", "{cost}", "Cost of model calls.", ("gen_ai.request.model", "currency")
)
_MODEL: Final = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")
TOKENS: Final = Metric(
    "gen_ai.client.token.usage",
    "histogram",
    "{token}",
    "Tokens of a model's call.",
    (*_MODEL, "gen_ai.token.type"),
    _TOKENS,
)
CALLS: Final = Metric(
    "gen_ai.client.operation.duration", "histogram", "s", "Duration of a model's call.", _MODEL, _CALLS
)
METRICS: Final = (EVENTS, EXECS, TOOLS, EGRESS, TERMINATIONS, COST, TOKENS, CALLS)

#: Distinct values of one label; what comes beyond is `other`. An agent chooses a tool's name, and every new value costs
#: the back end a series.
_MOST_VALUES: Final = 100

Point = tuple[Metric, float, Mapping[str, str]]


class Meter:
    """Turns events into points, with a bound on what labels may hold."""

    def __init__(self) -> None:
        self._known: dict[str, set[str]] = {}

    def points(self, event: Event) -> Iterator[Point]:
        for metric, value, labels in _points(event):
            yield metric, value, {name: self._bounded(f"{metric.name} {name}", text) for name, text in labels.items()}

    def _bounded(self, place: str, text: str) -> str:
        known = self._known.setdefault(place, set())
        text = text[:100]
        if text not in known:
            if len(known) >= _MOST_VALUES:
                return "other"
            known.add(text)
        return text


def _points(event: Event) -> Iterator[Point]:
    data = event.data
    yield EVENTS, 1.0, {"type": event.type, "level": level_of(event.type, data)}
    seconds = number(data.get("durationMs")) / 1000
    match event.type:
        case "exec.completed":
            outcome = "oom" if data.get("oom") is True else "ok" if data.get("exitCode") == 0 else "failed"
            yield EXECS, seconds, {"outcome": outcome}
        case "exec.timed_out":
            yield EXECS, seconds, {"outcome": "timed_out"}
        case "agent.tool_result":
            outcome = "failed" if data.get("isError") is True else "ok"
            yield TOOLS, seconds, {"gen_ai.tool.name": text(data.get("name")), "outcome": outcome}
        case "network.egress":
            count = number(data.get("bytesSent")) + number(data.get("bytesReceived"))
            yield EGRESS, count, {"allowed": "false" if data.get("allowed") is False else "true"}
        case "sandbox.terminated":
            yield TERMINATIONS, 1.0, {"reason": text(data.get("reason"))}
        case "cost.llm":
            yield from _model(data, seconds)


def _model(data: Mapping[str, Any], seconds: float) -> Iterator[Point]:
    model = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": text(data.get("provider")),
        "gen_ai.request.model": text(data.get("model")),
    }
    for count, kind in ((input_tokens(data), "input"), (number(data.get("outputTokens")), "output")):
        if count:
            yield TOKENS, count, {**model, "gen_ai.token.type": kind}
    if seconds:
        yield CALLS, seconds, model
    if number(data.get("cost")):
        labels = {
            "gen_ai.request.model": model["gen_ai.request.model"],
            "currency": text(data.get("currency") or "USD"),
        }
        yield COST, number(data.get("cost")), labels


def input_tokens(data: Mapping[str, Any]) -> float:
    """All that the model read: the conventions count the cache's tokens in."""
    return sum(number(data.get(field)) for field in ("inputTokens", "cacheReadTokens", "cacheWriteTokens"))


def number(value: Any) -> float:
    """A field as a number that a counter takes; 0 for what is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else 0.0


def text(value: Any) -> str:
    """A field as a label."""
    return value if isinstance(value, str) and value else "unknown"
