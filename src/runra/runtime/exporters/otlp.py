"""OTLP's two ways over the network: protobuf in HTTP, and gRPC."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Final, Literal, Protocol
from urllib.parse import urlsplit

from runra.errors import ErrorCode, RunraError
from runra.runtime.exporters.http import Poster

Signal = Literal["traces", "metrics", "logs"]
#: gRPC's default bound for one message a server takes.
_MESSAGE_BYTES: Final = 4 << 20


class Transport(Protocol):
    async def send(self, signal: Signal, message: Any) -> int:
        """Send one request; how many items of it were refused. Raises a RunraError with `retryable` by OTLP's rules and
        `details.unknown` where this signal is not taken at all."""
        ...

    async def close(self) -> None: ...


class HttpTransport:
    """`POST <endpoint>/v1/<signal>`, gzipped."""

    def __init__(self, endpoint: str, headers: Mapping[str, str], timeout_ms: int) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._headers = {**headers, "Content-Type": "application/x-protobuf"}
        self._poster = Poster(timeout_ms)

    async def send(self, signal: Signal, message: Any) -> int:
        url = f"{self._endpoint}/v1/{signal}"
        try:
            answer = await self._poster.post(url, message.SerializeToString(), self._headers, compress=True)
        except RunraError as error:
            error.details["unknown"] = error.status in (404, 405, 415, 501)
            raise
        return _refused(signal, answer)

    async def close(self) -> None:
        await self._poster.close()


def _refused(signal: Signal, answer: bytes) -> int:
    from google.protobuf.message import DecodeError

    response = _service(signal)[1]()
    # Not every back end answers with what the protocol says; a 2xx is what counts.
    with contextlib.suppress(DecodeError):
        response.ParseFromString(answer)
    return _rejected(signal, response)


def _rejected(signal: Signal, response: Any) -> int:
    partial = response.partial_success
    field = {"traces": "rejected_spans", "metrics": "rejected_data_points", "logs": "rejected_log_records"}[signal]
    return max(0, int(getattr(partial, field)))


def _service(signal: Signal) -> tuple[Any, Any]:
    """The stub's module and the type of the answer."""
    if signal == "traces":
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

        return trace_service_pb2_grpc.TraceServiceStub, trace_service_pb2.ExportTraceServiceResponse
    if signal == "metrics":
        from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc

        return metrics_service_pb2_grpc.MetricsServiceStub, metrics_service_pb2.ExportMetricsServiceResponse
    from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc

    return logs_service_pb2_grpc.LogsServiceStub, logs_service_pb2.ExportLogsServiceResponse


class GrpcTransport:
    """OTLP over gRPC: TLS for https://, none for http://."""

    def __init__(self, endpoint: str, headers: Mapping[str, str], timeout_ms: int) -> None:
        import grpc

        parts = urlsplit(endpoint)
        place = parts.netloc if parts.port else f"{parts.netloc}:4317"
        options = (("grpc.max_send_message_length", _MESSAGE_BYTES),)
        self._place = place
        self._timeout_s = timeout_ms / 1000
        self._metadata = tuple((name.lower(), value) for name, value in headers.items())
        self._codes: Final[Mapping[Any, ErrorCode]] = {
            grpc.StatusCode.UNAUTHENTICATED: "UNAUTHORIZED",
            grpc.StatusCode.PERMISSION_DENIED: "FORBIDDEN",
            grpc.StatusCode.RESOURCE_EXHAUSTED: "RATE_LIMITED",
            grpc.StatusCode.UNAVAILABLE: "NETWORK_ERROR",
            grpc.StatusCode.INVALID_ARGUMENT: "INVALID_REQUEST",
        }
        # OTLP's list of what may be tried again.
        self._retryable = frozenset(
            getattr(grpc.StatusCode, name)
            for name in (
                "CANCELLED DEADLINE_EXCEEDED RESOURCE_EXHAUSTED ABORTED OUT_OF_RANGE UNAVAILABLE DATA_LOSS".split()
            )
        )
        self._unknown = grpc.StatusCode.UNIMPLEMENTED
        gzip = grpc.Compression.Gzip
        self._channel = (
            grpc.aio.secure_channel(place, grpc.ssl_channel_credentials(), options=options, compression=gzip)
            if parts.scheme == "https"
            else grpc.aio.insecure_channel(place, options=options, compression=gzip)
        )
        self._stubs: dict[Signal, Any] = {}

    async def send(self, signal: Signal, message: Any) -> int:
        import grpc

        stub = self._stubs.get(signal)
        if stub is None:
            stub = self._stubs[signal] = _service(signal)[0](self._channel)
        try:
            return _rejected(signal, await stub.Export(message, metadata=self._metadata, timeout=self._timeout_s))
        except grpc.aio.AioRpcError as error:
            status = error.code()
            details: dict[str, Any] = {"status": status.name, "unknown": status is self._unknown}
            wait = _retry_delay(error)
            if wait is not None:
                details["retryAfterMs"] = wait
            raise RunraError(
                self._codes.get(status, "INTERNAL_ERROR"),
                f"{self._place} answered {status.name}: {(error.details() or '')[:200]!r}",
                details=details,
                retryable=status in self._retryable,
            ) from error

    async def close(self) -> None:
        await self._channel.close(grace=None)


def _retry_delay(error: Any) -> float | None:
    """Milliseconds to wait, where the status carries google.rpc.RetryInfo."""
    from google.protobuf.message import DecodeError
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status

    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            with contextlib.suppress(DecodeError):
                for detail in Status.FromString(value).details:
                    info = RetryInfo()
                    if detail.Unpack(info):
                        seconds: float = info.retry_delay.ToTimedelta().total_seconds()
                        return min(seconds, 300.0) * 1000
    return None
