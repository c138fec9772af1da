"""The exporters `otel` and `langfuse` against a receiver that decodes the true protobufs, over HTTP and gRPC."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from runra.events import Event
from runra.runtime.exporters import Pipeline, pipeline
from tests.exporters.backends import Otlp, attributes, otlp_grpc, otlp_http
from tests.exporters.making import event

RUN = "run_0123456789abcdef"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PROTOCOLS = pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])


@asynccontextmanager
async def exporting(protocol: str = "http/protobuf", **config: Any) -> AsyncIterator[tuple[Pipeline, Otlp]]:
    async with otlp_http() if protocol == "http/protobuf" else otlp_grpc() as receiver:
        own = {"endpoint": receiver.url, "protocol": protocol, "flushIntervalMs": 10, **config}
        it = pipeline({"provider": "otel", "config": own})
        await it.start()
        try:
            yield it, receiver
        finally:
            await it.close(5)


def run_of_an_agent() -> list[Event]:
    """A run of two turns: a tool that runs a command and reads a file, and a last word."""

    def at(ms: int, type: Any, data: dict[str, Any]) -> Event:
        return event(type, data, at_ms=ms, run_id=RUN, trace_id=TRACE)

    return [
        at(0, "sandbox.created", {"image": "host"}),
        at(
            500,
            "cost.llm",
            {
                "provider": "anthropic",
                "model": "m-1",
                "inputTokens": 1000,
                "outputTokens": 20,
                "cost": 0.25,
                "currency": "USD",
                "durationMs": 490,
            },
        ),
        at(510, "agent.tool_call", {"id": "call_1", "name": "bash", "input": {"command": "ls"}}),
        at(520, "exec.started", {"command": "ls -l", "pid": 7}),
        at(530, "file.read", {"path": "/workspace/a", "sizeBytes": 3}),
        at(720, "exec.completed", {"command": "ls -l", "pid": 7, "exitCode": 2, "durationMs": 200, "oom": False}),
        at(730, "agent.tool_result", {"id": "call_1", "name": "bash", "output": "a\n", "isError": False}),
        at(880, "cost.llm", {"provider": "anthropic", "model": "m-2", "durationMs": 80, "turn": False}),
        at(900, "agent.message", {"text": "done"}),
        at(950, "cost.total", {"amount": 0.25, "currency": "USD"}),
    ]


@PROTOCOLS
async def test_a_run_becomes_one_trace_with_everything_in_its_place(protocol: str) -> None:
    async with exporting(protocol, serviceName="my-agents", resourceAttributes={"team": "a"}) as (it, receiver):
        for one in run_of_an_agent():
            it.offer(one)
        assert await it.flush()
        spans = {span.name: span for span in receiver.spans}
        assert set(spans) == {
            "invoke_agent", "turn 1", "turn 2", "chat m-1", "chat m-2", "execute_tool bash", "exec ls", "file.read"
        }  # fmt: skip
        assert {span.trace_id.hex() for span in receiver.spans} == {TRACE}
        root = spans["invoke_agent"]
        above = {
            name: {s.span_id: n for n, s in spans.items()}.get(span.parent_span_id) for name, span in spans.items()
        }
        assert above == {
            "invoke_agent": None,
            "turn 1": "invoke_agent",
            "turn 2": "invoke_agent",
            "chat m-1": "turn 1",
            "chat m-2": "turn 1",
            "execute_tool bash": "turn 1",
            "exec ls": "execute_tool bash",
            "file.read": "execute_tool bash",
        }
        lengths = {name: (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6 for name, span in spans.items()}
        assert lengths == {
            "invoke_agent": 950, "turn 1": 890, "turn 2": 50, "chat m-1": 490, "chat m-2": 80, "execute_tool bash": 220, "exec ls": 200,
            "file.read": 0,
        }  # fmt: skip
        assert attributes(root)["gen_ai.operation.name"] == "invoke_agent"
        assert attributes(root)["gen_ai.conversation.id"] == RUN
        assert "runra.unfinished" not in attributes(root)
        assert [one.name for one in root.events] == ["sandbox.created"]
        chat = attributes(spans["chat m-1"])
        assert (chat["gen_ai.usage.input_tokens"], chat["gen_ai.usage.output_tokens"]) == (1000, 20)
        assert (chat["gen_ai.provider.name"], chat["gen_ai.request.model"]) == ("anthropic", "m-1")
        assert spans["chat m-1"].kind == 3  # CLIENT
        tool = attributes(spans["execute_tool bash"])
        assert (tool["gen_ai.tool.name"], tool["gen_ai.tool.call.id"]) == ("bash", "call_1")
        assert (tool["gen_ai.tool.call.arguments"], tool["gen_ai.tool.call.result"]) == ('{"command": "ls"}', "a\n")
        command = attributes(spans["exec ls"])
        assert (command["process.command_line"], command["process.exit.code"]) == ("ls -l", 2)
        assert spans["exec ls"].status.code == 0  # an exit code is a result
        resource = receiver.resource
        assert (resource["service.name"], resource["team"]) == ("my-agents", "a")
        assert resource["service.version"]

        logs = receiver.logs
        assert [log.event_name for log in logs] == [f"runra.{one.type}" for one in run_of_an_agent()]
        assert {log.trace_id.hex() for log in logs} == {TRACE}
        started = next(log for log in logs if log.event_name == "runra.exec.started")
        assert started.span_id == spans["exec ls"].span_id
        assert (started.severity_text, attributes(started)["runra.run.id"]) == ("INFO", RUN)
        assert {kv.key for kv in started.body.kvlist_value.values} == {"command", "pid"}
    metrics = receiver.metrics
    assert sum(point.as_double for point in metrics["runra.events"].sum.data_points) == 10
    tokens = {
        attributes(point)["gen_ai.token.type"]: point.sum
        for point in metrics["gen_ai.client.token.usage"].histogram.data_points
    }
    assert tokens == {"input": 1000, "output": 20}
    assert list(metrics["runra.exec.duration"].histogram.data_points[0].explicit_bounds)[:2] == [0.005, 0.01]


@PROTOCOLS
async def test_headers_are_sent_and_bodies_compressed(protocol: str) -> None:
    async with exporting(protocol, headers={"X-Api-Key": "very-secret-key"}) as (it, receiver):
        it.offer(event())
        assert await it.flush()
        assert receiver.headers("traces")["x-api-key"] == "very-secret-key"
        if protocol == "http/protobuf":
            assert receiver.headers("traces")["content-encoding"] == "gzip"
        assert it.redactor.text("very-secret-key") == "[redacted]"


@pytest.mark.parametrize(
    ("protocol", "refusal"),
    [("http/protobuf", 503), ("http/protobuf", 429), ("grpc", grpc.StatusCode.UNAVAILABLE),
     ("grpc", grpc.StatusCode.RESOURCE_EXHAUSTED)],
)  # fmt: skip
async def test_what_passes_is_tried_again_and_no_span_comes_twice(protocol: str, refusal: Any) -> None:
    async with exporting(protocol) as (it, receiver):
        receiver.refuse = [refusal, refusal]
        it.offer(event())
        assert await it.flush()
        (stats,) = it.stats.values()
        assert (stats.exported, stats.retries) == (1, 2)
        assert [span.name for span in receiver.spans] == ["exec true"]
        assert len(receiver.logs) == 1


@pytest.mark.parametrize(("protocol", "refusal"), [("http/protobuf", 401), ("grpc", grpc.StatusCode.UNAUTHENTICATED)])
async def test_what_will_not_pass_is_told_and_the_rest_goes_on(protocol: str, refusal: Any) -> None:
    async with exporting(protocol) as (it, receiver):
        receiver.refuse = [refusal]
        it.offer(event())
        assert await it.flush()
        assert it.stats["otel"].dropped == 1
        it.offer(event())
        assert await it.flush()
        assert it.stats["otel"].exported == 1


async def test_a_back_end_that_takes_no_logs_gets_the_traces_all_the_same() -> None:
    async with exporting() as (it, receiver):
        receiver.refuse = [{"signal": "logs", "status": 404}]
        for _ in range(3):
            it.offer(event())
            assert await it.flush()
        assert (it.stats["otel"].exported, it.stats["otel"].dropped) == (3, 0)
        assert len(receiver.spans) == 3
        assert receiver.logs == []


async def test_what_has_no_end_is_ended_with_the_exporter_and_says_so() -> None:
    async with exporting() as (it, receiver):
        for one in (
            event("agent.tool_call", {"id": "c", "name": "bash"}, run_id=RUN),
            event("exec.started", {"command": "sleep 9", "pid": 3}, at_ms=5, run_id=RUN),
            event("agent.error", {"code": "X", "message": "it broke"}, at_ms=9, run_id=RUN),
        ):
            it.offer(one)
        assert await it.flush()
        assert receiver.spans == []
    for name in ("exec sleep", "execute_tool bash", "invoke_agent"):
        assert attributes(receiver.span(name))["runra.unfinished"] is True, name
    assert receiver.span("invoke_agent").status.code == 2
    assert receiver.span("invoke_agent").status.message == "it broke"


@pytest.mark.parametrize("fatal", [True, False])
async def test_only_an_error_that_ends_a_run_fails_its_trace(fatal: bool) -> None:
    async with exporting() as (it, receiver):
        for one in (
            event("agent.message", {"text": "hi"}, run_id=RUN),
            event("agent.error", {"message": "no key", "kind": "auth", "fatal": fatal}, at_ms=3, run_id=RUN),
            event("cost.total", {"amount": 0.5, "currency": "USD"}, at_ms=9, run_id=RUN),
        ):
            it.offer(one)
        assert await it.flush()
    root = receiver.span("invoke_agent")
    assert root.status.code == (2 if fatal else 0)
    assert attributes(root).get("error.type") == ("auth" if fatal else None)
    assert [told.name for told in root.events] == ["agent.error"]


async def test_outside_of_a_run_a_sandbox_is_a_trace_of_its_own() -> None:
    one, two = "sb_1111111111111111", "sb_2222222222222222"
    async with exporting() as (it, receiver):
        for sandbox in (one, two):
            it.offer(event("sandbox.started", {}, sandbox_id=sandbox))
            # The same pid in two sandboxes.
            it.offer(event("exec.started", {"command": f"cmd-{sandbox[3]}", "pid": 9}, sandbox_id=sandbox))
        it.offer(event("exec.timed_out", {"command": "cmd-1", "pid": 9, "durationMs": 5}, at_ms=5, sandbox_id=one))
        it.offer(event("exec.error", {"pid": 9, "code": "X", "message": "lost"}, at_ms=6, sandbox_id=two))
        it.offer(event("sandbox.terminated", {"reason": "user"}, at_ms=7, sandbox_id=one))
        it.offer(event("file.deleted", {"path": "/late"}, at_ms=8, sandbox_id=one))
        assert await it.flush()
        (root,) = [span for span in receiver.spans if span.name == "sandbox"]
        assert attributes(root)["runra.sandbox.id"] == one
        assert [one.name for one in root.events] == ["sandbox.started", "sandbox.terminated"]
        timed_out, lost = receiver.span("exec cmd-1"), receiver.span("exec cmd-2")
        assert (timed_out.trace_id, timed_out.parent_span_id) == (root.trace_id, root.span_id)
        assert (timed_out.status.code, timed_out.status.message) == (2, "timed out")
        assert (lost.status.code, lost.status.message) == (2, "lost")
        assert lost.trace_id != root.trace_id
        late = receiver.span("file.deleted")
        assert (late.trace_id, late.parent_span_id) == (root.trace_id, root.span_id)


async def test_turns_by_number_and_tools_side_by_side() -> None:
    async with exporting() as (it, receiver):
        for ms, type, data in (
            (0, "agent.tool_call", {"id": "a", "name": "one", "turn": 1}),
            (1, "agent.tool_call", {"id": "b", "name": "two", "turn": 1}),
            (2, "exec.completed", {"command": "x", "pid": 1, "toolCallId": "b"}),
            (3, "exec.completed", {"command": "y", "pid": 2}),
            (4, "agent.tool_result", {"id": "a", "name": "one", "isError": True}),
            (5, "agent.tool_result", {"id": "b", "name": "two"}),
            (6, "agent.message", {"text": "still turn one", "turn": 1}),
            (7, "agent.message", {"text": "now two", "turn": 2}),
            (8, "cost.total", {}),
        ):
            it.offer(event(type, data, at_ms=ms, run_id=RUN))  # type: ignore[arg-type]
        assert await it.flush()
        turn = receiver.span("turn 1")
        assert receiver.span("execute_tool one").parent_span_id == turn.span_id
        assert receiver.span("execute_tool one").status.code == 2
        assert receiver.span("exec x").parent_span_id == receiver.span("execute_tool two").span_id
        assert receiver.span("exec y").parent_span_id == turn.span_id  # either tool may have run it
        assert [one.name for one in turn.events] == ["agent.message"]
        assert receiver.span("turn 2").start_time_unix_nano > turn.start_time_unix_nano


async def test_a_program_without_an_agent_and_commands_without_a_pid() -> None:
    async with exporting() as (it, receiver):
        for ms, type, command in ((0, "exec.started", "a 1"), (1, "exec.started", "b 2"), (2, "exec.completed", "a 1"),
                                  (3, "exec.completed", "b 2")):  # fmt: skip
            it.offer(event(type, {"command": command, "pid": None, "exitCode": 0}, at_ms=ms, run_id=RUN))  # type: ignore[arg-type]
        assert await it.flush()
        assert {span.name: span.start_time_unix_nano % 10**9 for span in receiver.spans} == {
            "exec a": 0,
            "exec b": 10**6,
        }
        # Another run, long after: the first one is taken for ended, where its latest event was.
        it.offer(event(at_ms=400_000, run_id="run_other"))
        assert await it.flush()
        root = receiver.span("run")
        assert (root.end_time_unix_nano - root.start_time_unix_nano) / 1e6 == 3
        assert "gen_ai.operation.name" not in attributes(root)


async def test_hostile_events_break_nothing() -> None:
    async with exporting() as (it, _):
        for data in (
            {"pid": ["a"], "command": ""},
            {"pid": {"x": 1}, "command": 7, "durationMs": "x"},
            {"pid": None, "exitCode": {"deep": [None, float("nan")]}},
            {"command": "\udc80\0", "durationMs": 1e300},
        ):
            for type in (
                "exec.started",
                "exec.completed",
                "agent.tool_call",
                "agent.tool_result",
                "file.error",
                "cost.llm",
            ):
                it.offer(event(type, data, run_id=RUN, trace_id="not-a-trace-id"))  # type: ignore[arg-type]
        it.offer(event().model_copy(update={"timestamp": "yesterday"}))
        assert await it.flush()
        assert it.stats["otel"].dropped == 0, it.stats


async def test_open_spans_are_bounded() -> None:
    from runra.runtime.exporters import spans

    async with exporting(signals=["traces"], batchSize=10_000) as (it, receiver):
        for number in range(spans._MOST_OPEN + 50):
            it.offer(event("exec.started", {"command": "x", "pid": number}))
        assert await it.flush()
        assert len(receiver.spans) == 50
        for number in range(spans._MOST_TRACES + 20):
            it.offer(event("agent.message", {}, run_id=f"run_{number}"))
        assert await it.flush()
        assert len([span for span in receiver.spans if span.name == "invoke_agent"]) >= 20


async def test_the_standard_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    async with otlp_http() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20of-the-environment,x=y")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "named-outside")
        it = pipeline({"provider": "otel", "config": {"spanProcessor": "simple"}})
        await it.start()
        it.offer(event())
        assert await it.close(5)
        assert receiver.headers("traces")["authorization"] == "Bearer of-the-environment"
        assert receiver.resource["service.name"] == "named-outside"


async def test_batch_config_is_the_documents() -> None:
    from runra.runtime.exporters import build

    batch = {"maxQueueSize": 7, "maxExportBatchSize": 3, "scheduledDelayMillis": 9, "exportTimeoutMillis": 11}
    (route,) = build({"provider": "otel", "config": {"batchConfig": batch}})
    delivery = route.delivery
    assert (delivery.queue_size, delivery.batch_size, delivery.flush_interval_ms, delivery.timeout_ms) == (7, 3, 9, 11)


async def test_langfuse_gets_traces_alone_with_basic_auth() -> None:
    async with otlp_http() as receiver:
        it = pipeline(
            {
                "provider": "langfuse",
                "publicKey": "pk-lf-1",
                "secretKey": "sk-lf-1",
                "host": receiver.url,
                "environment": "prod",
            }
        )
        await it.start()
        for one in run_of_an_agent():
            it.offer(one)
        assert await it.close(5), it.stats
        assert {signal for signal, _, _ in receiver.requests} == {"traces"}
        expected = "Basic " + base64.b64encode(b"pk-lf-1:sk-lf-1").decode()
        assert receiver.headers("traces")["authorization"] == expected
        assert receiver.resource["langfuse.environment"] == "prod"
        assert list(it.stats) == ["langfuse"]
