"""Back ends of one's own: an HTTP server that checks and misbehaves, and a receiver of true OTLP."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from aiohttp import web
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass
class Got:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> bytes:
        return gzip.decompress(self.body) if self.headers.get("content-encoding") == "gzip" else self.body

    @property
    def json(self) -> Any:
        return json.loads(self.content)


#: Answers a request, or behaves worse.
Answer = Callable[[web.Request, Got], Awaitable[web.StreamResponse]]


@dataclass
class Backend:
    """An HTTP server. `answers` are used up one a request, then `always` holds."""

    url: str = ""
    got: list[Got] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    always: Answer | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        got = Got(request.path, {name.lower(): value for name, value in request.headers.items()}, await request.read())
        self.got.append(got)
        answer = self.answers.pop(0) if self.answers else self.always
        return await answer(request, got) if answer is not None else web.Response()


def says(status: int, text: str = "", **headers: str) -> Answer:
    async def answer(request: web.Request, got: Got) -> web.StreamResponse:
        return web.Response(status=status, text=text, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return answer


async def resets(request: web.Request, got: Got) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def hangs(request: web.Request, got: Got) -> web.StreamResponse:
    await asyncio.sleep(3600)
    return web.Response()


@asynccontextmanager
async def backend() -> AsyncIterator[Backend]:
    it = Backend()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{path:.*}", it.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, auto_decompress=False)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    it.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield it
    finally:
        await runner.cleanup()


# --- OTLP ----------------------------------------------------------------------------------------------------------

_REQUESTS = {
    "traces": trace_service_pb2.ExportTraceServiceRequest,
    "metrics": metrics_service_pb2.ExportMetricsServiceRequest,
    "logs": logs_service_pb2.ExportLogsServiceRequest,
}
_RESPONSES = {
    "traces": trace_service_pb2.ExportTraceServiceResponse,
    "metrics": metrics_service_pb2.ExportMetricsServiceResponse,
    "logs": logs_service_pb2.ExportLogsServiceResponse,
}


class Otlp:
    """What a receiver of OTLP got, decoded from the true protobufs."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        #: Raised or answered once each, before all is well: an HTTP status or a gRPC status code.
        self.refuse: list[Any] = []

    def take(self, signal: str, headers: Iterable[tuple[str, Any]], message: Any) -> None:
        self.requests.append((signal, {name.lower(): str(value) for name, value in headers}, message))

    def headers(self, signal: str) -> dict[str, str]:
        return next(headers for name, headers, _ in self.requests if name == signal)

    @property
    def resource(self) -> dict[str, Any]:
        return attributes(self.requests[0][2].resource_spans[0].resource)

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for signal, _, message in self.requests
            if signal == "traces"
            for resource in message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def span(self, name: str) -> Any:
        (found,) = [span for span in self.spans if span.name == name]
        return found

    @property
    def logs(self) -> list[Any]:
        return [
            record
            for signal, _, message in self.requests
            if signal == "logs"
            for resource in message.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    @property
    def metrics(self) -> dict[str, Any]:
        """By name, as last sent."""
        return {
            metric.name: metric
            for signal, _, message in self.requests
            if signal == "metrics"
            for resource in message.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


def attributes(holder: Any) -> dict[str, Any]:
    return {one.key: value(one.value) for one in holder.attributes}


def value(any_value: Any) -> Any:
    kind = any_value.WhichOneof("value")
    return MessageToDict(any_value) if kind in ("kvlist_value", "array_value") else getattr(any_value, kind or "", None)


@asynccontextmanager
async def otlp_http() -> AsyncIterator[Otlp]:
    it = Otlp()
    async with backend() as server:

        async def answer(request: web.Request, got: Got) -> web.StreamResponse:
            signal = got.path.rpartition("/")[2]
            if it.refuse:
                refusal = it.refuse.pop(0)
                if not (isinstance(refusal, dict) and refusal["signal"] != signal):
                    status = refusal["status"] if isinstance(refusal, dict) else refusal
                    return web.Response(status=status)
                it.refuse.insert(0, refusal)
            assert got.headers["content-type"] == "application/x-protobuf"
            message = _REQUESTS[signal]()
            message.ParseFromString(got.content)
            it.take(signal, got.headers.items(), message)
            return web.Response(body=_RESPONSES[signal]().SerializeToString(), content_type="application/x-protobuf")

        server.always = answer
        it.url = server.url
        yield it


@asynccontextmanager
async def otlp_grpc() -> AsyncIterator[Otlp]:
    it = Otlp()

    def servicer(signal: str, base: Any) -> Any:
        class Service(base):  # type: ignore[misc]
            async def Export(self, request: Any, context: Any) -> Any:
                if it.refuse:
                    await context.abort(it.refuse.pop(0), "not now")
                it.take(signal, context.invocation_metadata(), request)
                return _RESPONSES[signal]()

        return Service()

    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(
        servicer("traces", trace_service_pb2_grpc.TraceServiceServicer), server
    )
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(
        servicer("metrics", metrics_service_pb2_grpc.MetricsServiceServicer), server
    )
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(
        servicer("logs", logs_service_pb2_grpc.LogsServiceServicer), server
    )
    it.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield it
    finally:
        await server.stop(None)
