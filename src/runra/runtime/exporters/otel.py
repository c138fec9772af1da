"""The exporter `otel`: traces, metrics and logs over OTLP, in the GenAI semantic conventions."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, set_span_in_context
from pydantic import AfterValidator, Field, model_validator

from runra.contract import Request
from runra.errors import RunraError
from runra.event_catalogue import Level, level_of
from runra.events import Event
from runra.runtime.exporters.delivery import Delivery, Secret
from runra.runtime.exporters.http import checked_url
from runra.runtime.exporters.metrics import METRICS, Meter
from runra.runtime.exporters.otlp import GrpcTransport, HttpTransport, Signal, Transport
from runra.runtime.exporters.spans import Ended, Ids, SpanMaker, moment

_log: Final = logging.getLogger("runra.exporters")
_SEVERITY: Final[Mapping[Level, SeverityNumber]] = {
    "debug": SeverityNumber.DEBUG,
    "info": SeverityNumber.INFO,
    "warn": SeverityNumber.WARN,
    "error": SeverityNumber.ERROR,
}
_PORTS: Final = {"http/protobuf": 4318, "grpc": 4317}


class BatchConfig(Request):
    """How spans are batched, by OpenTelemetry's own names; they stand for the options of `Delivery` of that meaning."""

    max_queue_size: int | None = Field(None, ge=1)
    max_export_batch_size: int | None = Field(None, ge=1, le=10_000)
    scheduled_delay_millis: int | None = Field(None, ge=0)
    export_timeout_millis: int | None = Field(None, ge=1)


class OtelConfig(Delivery):
    """`endpoint` without a signal's path (else OTEL_EXPORTER_OTLP_ENDPOINT, else this machine's 4318, or 4317 for
    grpc), `protocol`, `headers` (else OTEL_EXPORTER_OTLP_HEADERS), `service_name` (else OTEL_SERVICE_NAME, else runra),
    `service_version`, `resource_attributes`. `span_processor` "simple" sends each event at once. `signals` says what is
    sent; metrics at most every `metrics_interval_ms`."""

    endpoint: Annotated[str, AfterValidator(checked_url)] | None = None
    protocol: Literal["http/protobuf", "grpc"] = "http/protobuf"
    headers: dict[str, Secret] | None = None
    service_name: str | None = None
    service_version: str | None = None
    resource_attributes: dict[str, str] = Field(default_factory=dict)
    span_processor: Literal["batch", "simple"] = "batch"
    batch_config: BatchConfig = Field(default_factory=lambda: BatchConfig())
    signals: list[Signal] = Field(default_factory=lambda: list[Signal](("traces", "metrics", "logs")), min_length=1)
    metrics_interval_ms: int = Field(15_000, ge=0)

    @model_validator(mode="after")
    def _batching(self) -> OtelConfig:
        batch = self.batch_config
        self.queue_size = batch.max_queue_size or self.queue_size
        self.batch_size = batch.max_export_batch_size or self.batch_size
        self.timeout_ms = batch.export_timeout_millis or self.timeout_ms
        if batch.scheduled_delay_millis is not None:
            self.flush_interval_ms = batch.scheduled_delay_millis
        if self.span_processor == "simple":
            self.flush_interval_ms = 0
        return self


class OtelExporter:
    """Builds spans from paired events with OpenTelemetry's SDK and sends them itself, so that a failure has a reason
    and the pipeline knows whether to try again."""

    name = "otel"
    Config: type[Delivery] = OtelConfig

    def __init__(self, config: OtelConfig) -> None:
        self._config = config
        self._endpoint = config.endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or ""
        if not self._endpoint:
            self._endpoint = f"http://127.0.0.1:{_PORTS[config.protocol]}"
        if config.headers is not None:
            self._headers = {name: value.get_secret_value() for name, value in config.headers.items()}
        else:
            self._headers = _pairs(os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", ""))
        self._signals: list[Signal] = list(config.signals)
        self._transport: Transport | None = None
        #: The batch whose requests `_todo` holds. A repeated attempt brings the same list: spans are not made twice.
        self._batch: Sequence[Event] | None = None
        self._todo: list[tuple[Signal, Any]] = []
        self._measured = 0.0

        name = config.service_name or os.environ.get("OTEL_SERVICE_NAME") or "runra"
        self._resource = Resource.create(
            {
                **config.resource_attributes,
                "service.name": name,
                "service.version": config.service_version or version("runra"),
            }
        )
        self._scope = InstrumentationScope("runra", version("runra"))
        ids = Ids()
        self._ended = Ended()
        tracing = TracerProvider(ALWAYS_ON, self._resource, shutdown_on_exit=False, id_generator=ids)
        tracing.add_span_processor(self._ended)
        self._spans = SpanMaker(tracing, ids)
        self._meter = Meter()
        self._reader = InMemoryMetricReader()
        self._metering = MeterProvider([self._reader], self._resource, shutdown_on_exit=False)
        self._instruments = self._made_instruments()

    def _made_instruments(self) -> dict[str, Any]:
        meter = self._metering.get_meter("runra")
        made: dict[str, Any] = {}
        for metric in METRICS:
            if metric.kind == "counter":
                made[metric.name] = meter.create_counter(metric.name, metric.unit, metric.meaning).add
            else:
                made[metric.name] = meter.create_histogram(
                    metric.name, metric.unit, metric.meaning, explicit_bucket_boundaries_advisory=metric.buckets
                ).record
        return made

    async def start(self) -> None:
        if self._transport is None:
            kind = HttpTransport if self._config.protocol == "http/protobuf" else GrpcTransport
            self._transport = kind(self._endpoint, self._headers, self._config.timeout_ms)

    async def export(self, events: Sequence[Event]) -> None:
        if events is not self._batch:
            self._batch = events
            self._todo = self._requests(events)
        await self._send()

    async def close(self) -> None:
        """End the spans that are open, and send them and the last metrics."""
        try:
            self._spans.close()
            spans = self._ended.take()
            self._batch = None
            self._todo = [("traces", encode_spans(spans))] if spans and "traces" in self._signals else []
            self._todo += self._metrics()
            await self._send()
        finally:
            self._metering.shutdown()
            if self._transport is not None:
                await self._transport.close()
                self._transport = None

    async def _send(self) -> None:
        """Send what is to be sent. What is refused for good is told at the end: the other signals go all the same."""
        assert self._transport is not None
        refused: RunraError | None = None
        while self._todo:
            signal, message = self._todo[0]
            try:
                rejected = await self._transport.send(signal, message)
            except RunraError as error:
                if error.retryable:
                    raise
                if error.details.get("unknown") and signal != "traces":
                    self._signals.remove(signal)
                    _log.warning("exporter %s: %s takes no %s; they are left out", self.name, self._endpoint, signal)
                else:
                    refused = error
            else:
                if rejected:
                    told = f"{self._endpoint} refused {rejected} of the {signal}"
                    refused = RunraError("INVALID_REQUEST", told, details={"failed": rejected})
            self._todo.pop(0)
        if refused is not None:
            raise refused

    # --- what is sent ---

    def _requests(self, events: Sequence[Event]) -> list[tuple[Signal, Any]]:
        records = []
        for event in events:
            context = self._spans.add(event)
            if "logs" in self._signals:
                records.append(self._record(event, context))
            if "metrics" in self._signals:
                for metric, value, labels in self._meter.points(event):
                    self._instruments[metric.name](value, dict(labels))
        self._spans.rest()
        spans = self._ended.take()
        requests: list[tuple[Signal, Any]] = []
        if spans and "traces" in self._signals:
            requests.append(("traces", encode_spans(spans)))
        if records:
            requests.append(("logs", encode_logs(records)))
        if time.monotonic() - self._measured >= self._config.metrics_interval_ms / 1000:
            requests += self._metrics()
        return requests

    def _metrics(self) -> list[tuple[Signal, Any]]:
        self._measured = time.monotonic()
        data = self._reader.get_metrics_data() if "metrics" in self._signals else None
        return [("metrics", encode_metrics(data))] if data is not None else []

    def _record(self, event: Event, context: SpanContext) -> ReadableLogRecord:
        level = level_of(event.type, event.data)
        when = moment(event.timestamp)
        attributes = {"runra.event.id": event.id, "runra.sandbox.id": event.sandbox_id}
        if event.run_id:
            attributes["runra.run.id"] = event.run_id
        record = LogRecord(
            timestamp=when,
            observed_timestamp=when,
            context=set_span_in_context(NonRecordingSpan(context), Context()),
            severity_number=_SEVERITY[level],
            severity_text=level.upper(),
            body=event.data,
            attributes=attributes,
            event_name=f"runra.{event.type}",
        )
        return ReadableLogRecord(record, self._resource, self._scope)


def _pairs(text: str) -> dict[str, str]:
    """Headers as OpenTelemetry's environment variable has them: `name=value,name=value`, values percent-encoded."""
    found = {}
    for pair in text.split(","):
        name, equals, value = pair.partition("=")
        if equals and name.strip():
            found[name.strip()] = unquote(value.strip())
    return found
