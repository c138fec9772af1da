"""Spans from events: what began and ended is paired, and hung below its tool, its turn and its run."""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    set_span_in_context,
)
from opentelemetry.trace import Span as ApiSpan

from runra.events import Event
from runra.runtime.exporters.metrics import input_tokens, number, text

#: Open traces, and open spans of one: beyond it the oldest are ended. A sandbox may start commands without end.
_MOST_TRACES: Final = 1_000
_MOST_OPEN: Final = 1_000
_TRACE_ID: Final = re.compile(r"(?!0{32})[0-9a-f]{32}")
#: A trace without an event for so long is over, unless something in it is still open.
_QUIET_NS: Final = 300 * 10**9
_UNFINISHED: Final = "runra.unfinished"


class Ids(RandomIdGenerator):
    """Random ids, but a root takes the trace id of its run."""

    def __init__(self) -> None:
        self.trace_id: int | None = None

    def generate_trace_id(self) -> int:
        return super().generate_trace_id() if self.trace_id is None else self.trace_id


class Ended(SpanProcessor):
    """Collects the spans that have ended until they are taken."""

    def __init__(self) -> None:
        self._spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self._spans.append(span)

    def take(self) -> list[ReadableSpan]:
        spans, self._spans = self._spans, []
        return spans


class _Trace:
    """What is open of one run; of one sandbox, for what happens outside of any run."""

    def __init__(self, root: ApiSpan) -> None:
        self.root = root
        self.ended = False
        self.latest = 0
        self.agent = False
        self.turn: ApiSpan | None = None
        self.turn_mark: Any = None
        self.turns = 0
        self.answered = False
        #: Tools by the call's id, commands by sandbox and pid.
        self.tools: OrderedDict[str, ApiSpan] = OrderedDict()
        self.execs: OrderedDict[tuple[str, str], ApiSpan] = OrderedDict()

    @property
    def above(self) -> ApiSpan:
        """Below what something belongs that does not say: the one tool that runs, else the turn, else the root."""
        if len(self.tools) == 1:
            return next(iter(self.tools.values()))
        return self.turn or self.root


class SpanMaker:
    """Feeds a tracer with events, in order. A span whose end never comes is ended when its run, its sandbox or the
    exporter ends, and says `runra.unfinished`."""

    def __init__(self, provider: TracerProvider, ids: Ids) -> None:
        self._tracer = provider.get_tracer("runra")
        self._ids = ids
        self._traces: OrderedDict[str, _Trace] = OrderedDict()
        self._now = 0

    def add(self, event: Event) -> SpanContext:
        """Take an event in; the context of the span it belongs to."""
        self._now = moment(event.timestamp)
        if not event.run_id and not event.sandbox_id:  # of the server, such as an image's
            return INVALID_SPAN_CONTEXT
        trace = self._trace(event)
        trace.latest = self._now
        topic = event.type.partition(".")[0]
        if event.run_id and not trace.agent and (topic == "agent" or event.type == "cost.llm"):
            trace.agent = True  # else it is only a program that uses sandboxes
            trace.root.update_name("invoke_agent")
            trace.root.set_attributes({"gen_ai.operation.name": "invoke_agent", "gen_ai.conversation.id": event.run_id})
        if topic == "exec":
            return self._exec(trace, event)
        if topic == "agent":
            return self._agent(trace, event)
        if topic == "file":
            return self._file(trace, event)
        if event.type == "cost.llm":
            return self._call(trace, event)
        if topic == "sandbox" and not trace.ended:
            trace.root.add_event(event.type, _plain(event.data), self._now)
            if event.type == "sandbox.error":
                trace.root.set_status(Status(StatusCode.ERROR, text(event.data.get("message"))))
        context = trace.root.get_span_context()
        # A run is over when its costs are summed up, a sandbox when it is terminated.
        if event.type == "cost.total" or (event.type == "sandbox.terminated" and not event.run_id):
            self._end(trace)
        return context

    def rest(self) -> None:
        """End the traces that have been quiet for long: a run's end is not always told."""
        for trace in self._traces.values():
            if self._now - trace.latest <= _QUIET_NS:
                break  # they lie in the order of their latest events
            if not trace.ended and not trace.execs and not trace.tools:
                self._end(trace, trace.latest)

    def close(self) -> None:
        """End what is open."""
        for trace in self._traces.values():
            self._end(trace)
        self._traces.clear()

    # --- runs and sandboxes ---

    def _trace(self, event: Event) -> _Trace:
        key = event.run_id or event.sandbox_id
        trace = self._traces.get(key)
        if trace is not None:
            self._traces.move_to_end(key)
            return trace
        self._ids.trace_id = _trace_id(event.trace_id, key)
        attributes = {"runra.sandbox.id": event.sandbox_id}
        if event.run_id:
            attributes["runra.run.id"] = event.run_id
        name = "run" if event.run_id else "sandbox"
        try:
            root = self._tracer.start_span(name, Context(), attributes=attributes, start_time=self._now)
        finally:
            self._ids.trace_id = None
        trace = self._traces[key] = _Trace(root)
        if len(self._traces) > _MOST_TRACES:
            self._end(self._traces.popitem(last=False)[1])
        return trace

    def _end(self, trace: _Trace, at: int | None = None) -> None:
        """End the root and all that is open below it. It stays known: what comes late still joins the trace."""
        unfinished = (*trace.execs.values(), *trace.tools.values())
        for span in unfinished:
            span.set_attribute(_UNFINISHED, True)
            span.end(self._now)
        trace.execs.clear()
        trace.tools.clear()
        self._end_turn(trace, at)
        if trace.ended:
            return
        trace.ended = True
        if unfinished:
            trace.root.set_attribute(_UNFINISHED, True)
        trace.root.end(self._now if at is None else at)
        trace.root = NonRecordingSpan(trace.root.get_span_context())  # all that late ones need

    def _began(self, data: Mapping[str, Any]) -> int:
        """When something began that has ended now."""
        return max(0, self._now - int(number(data.get("durationMs")) * 1e6))

    def _start(
        self,
        above: ApiSpan,
        name: str,
        attributes: Mapping[str, Any],
        start: int | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> ApiSpan:
        return self._tracer.start_span(
            name,
            set_span_in_context(above, Context()),
            kind=kind,
            attributes=_plain(attributes),
            start_time=self._now if start is None else start,
        )

    # --- commands and files ---

    def _exec(self, trace: _Trace, event: Event) -> SpanContext:
        data = event.data
        command = text(data.get("command"))
        key = (event.sandbox_id, str(data.get("pid") or command))
        if event.type == "exec.streamed":
            return (trace.execs.get(key) or trace.above).get_span_context()
        span = trace.execs.pop(key, None) if event.type != "exec.started" else None
        if span is None:  # it begins, or its beginning was not seen
            above = trace.tools.get(text(data.get("toolCallId"))) or trace.above
            start = self._began(data)
            attributes = {
                "process.command_line": command,
                "process.pid": data.get("pid"),
                "runra.sandbox.id": event.sandbox_id,
            }
            span = self._start(above, f"exec {(command.split() or ['?'])[0][:60]}", attributes, start)
        if event.type == "exec.started":
            _keep(trace.execs, key, span, self._now)
        else:
            span.set_attributes(
                _plain(
                    {
                        "process.exit.code": data.get("exitCode"),
                        "runra.exec.signal": data.get("signal"),
                        "runra.exec.oom": data.get("oom"),
                        "error.type": data.get("code"),
                    }
                )
            )
            # An exit code is a result. What failed is what had no chance to give one.
            if event.type != "exec.completed":
                told = "timed out" if event.type == "exec.timed_out" else text(data.get("message"))
                span.set_status(Status(StatusCode.ERROR, told))
            elif data.get("oom") is True:
                span.set_status(Status(StatusCode.ERROR, "out of memory"))
            span.end(self._now)
        return span.get_span_context()

    def _file(self, trace: _Trace, event: Event) -> SpanContext:
        data = event.data
        start = self._began(data)
        attributes = {"file.path": data.get("path"), "file.size": data.get("sizeBytes"), "error.type": data.get("code")}
        span = self._start(trace.above, event.type, attributes, start)
        if event.type == "file.error":
            span.set_status(Status(StatusCode.ERROR, text(data.get("code"))))
        span.end(self._now)
        return span.get_span_context()

    # --- the agent: turns, tools, calls of the model ---

    def _agent(self, trace: _Trace, event: Event) -> SpanContext:
        data = event.data
        if event.type == "agent.error":
            if not trace.ended:
                if data.get("fatal") is not False:  # else the run goes on, and may well succeed
                    trace.root.set_status(Status(StatusCode.ERROR, text(data.get("message"))))
                    trace.root.set_attributes(_plain({"error.type": data.get("kind")}))
                trace.root.add_event(event.type, _plain(data), self._now)
            return trace.root.get_span_context()
        if event.type == "agent.tool_result":
            return self._tool_result(trace, event)
        turn = self._turn(trace, data.get("turn"))
        if event.type != "agent.tool_call":
            turn.add_event(event.type, _plain(data), self._now)
            return turn.get_span_context()
        name = text(data.get("name"))
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.type": "function",
            "gen_ai.tool.call.id": data.get("id"),
            "gen_ai.tool.call.arguments": data.get("input"),
        }
        span = self._start(turn, f"execute_tool {name[:60]}", attributes)
        _keep(trace.tools, str(data.get("id") or name), span, self._now)
        return span.get_span_context()

    def _tool_result(self, trace: _Trace, event: Event) -> SpanContext:
        data = event.data
        span = trace.tools.pop(str(data.get("id") or text(data.get("name"))), None)
        if span is None:
            name = text(data.get("name"))
            start = self._began(data)
            attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name}
            span = self._start(trace.turn or trace.root, f"execute_tool {name[:60]}", attributes, start)
        span.set_attributes(_plain({"gen_ai.tool.call.result": data.get("output")}))
        if data.get("isError") is True:
            span.set_status(Status(StatusCode.ERROR, "the tool failed"))
        span.end(self._now)
        trace.answered = not trace.tools
        return span.get_span_context()

    def _turn(self, trace: _Trace, mark: Any, start: int | None = None) -> ApiSpan:
        """The turn something belongs to. A new one begins when the event's `turn` says so; where there is none, when
        the agent goes on after all tools of the turn before have answered."""
        known = mark is not None and trace.turn_mark is not None
        new = trace.turn is None or (mark != trace.turn_mark if known else trace.answered)
        if new:
            self._end_turn(trace)
            trace.turns += 1
            trace.turn = self._start(trace.root, f"turn {trace.turns}", {"runra.turn": trace.turns}, start)
            trace.turn_mark = None
        trace.turn_mark = trace.turn_mark if mark is None else mark
        trace.answered = False
        assert trace.turn is not None
        return trace.turn

    def _end_turn(self, trace: _Trace, at: int | None = None) -> None:
        if trace.turn is not None:
            trace.turn.end(self._now if at is None else at)
            trace.turn = None

    def _call(self, trace: _Trace, event: Event) -> SpanContext:
        data = event.data
        model = text(data.get("model"))
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": data.get("provider"),
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
            "gen_ai.usage.input_tokens": int(input_tokens(data)),
            "gen_ai.usage.output_tokens": int(number(data.get("outputTokens"))),
            "gen_ai.usage.cache_read.input_tokens": data.get("cacheReadTokens"),
            "gen_ai.usage.cache_creation.input_tokens": data.get("cacheWriteTokens"),
            "gen_ai.usage.reasoning.output_tokens": data.get("reasoningTokens"),
            "runra.cost.amount": data.get("cost"),
            "runra.cost.currency": data.get("currency"),
            "error.type": data.get("error"),
        }
        start = self._began(data)
        # A call begins a turn, unless it is one beside the agent's own work (the title of a conversation, say).
        aside = data.get("turn") is False
        above = trace.turn or trace.root if aside else self._turn(trace, None, start)
        span = self._start(above, f"chat {model[:60]}", attributes, start, SpanKind.CLIENT)
        if data.get("error"):
            span.set_status(Status(StatusCode.ERROR, text(data.get("error"))))
        span.end(self._now)
        return span.get_span_context()


def _keep(open: OrderedDict[Any, ApiSpan], key: Any, span: ApiSpan, now: int) -> None:
    older = open.pop(key, None)
    if older is None and len(open) >= _MOST_OPEN:
        older = open.popitem(last=False)[1]
    if older is not None:
        older.set_attribute(_UNFINISHED, True)
        older.end(now)
    open[key] = span


def _trace_id(given: str, key: str) -> int:
    """The run's own trace id where it has one, else one that is always the same for the same run or sandbox."""
    if _TRACE_ID.fullmatch(given):
        return int(given, 16)
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:16]) or 1


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes: what is no number, text or truth becomes JSON; what is nothing is left out."""
    return {
        name: value if isinstance(value, str | bool | int | float) else json.dumps(value, default=str)
        for name, value in data.items()
        if value is not None
    }


def moment(timestamp: str) -> int:
    """An event's time in nanoseconds since 1970; now, for one that is none."""
    try:
        when = datetime.fromisoformat(timestamp)
    except ValueError:
        when = datetime.now(UTC)
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000) * 1_000_000
