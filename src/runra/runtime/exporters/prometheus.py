"""The exporter `prometheus`: metrics of the events, to be scraped."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from threading import Thread
from typing import Any, Protocol
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from pydantic import Field

from runra.events import Event
from runra.runtime.exporters.delivery import Delivery
from runra.runtime.exporters.metrics import METRICS, Meter, Metric
from runra.runtime.exporters.worker import Worker


class PrometheusConfig(Delivery):
    """`host` and `port` of the page Prometheus reads, at `/metrics`; port 0 takes a free one, None serves nothing.
    `registry` is where the metrics live, such as prometheus_client's REGISTRY beside the program's own."""

    host: str = "127.0.0.1"
    port: int | None = Field(9464, ge=0, le=65_535)
    registry: Any = Field(None, exclude=True)
    flush_interval_ms: int = Field(200, ge=0, le=3_600_000)


class _Labelled(Protocol):
    def labels(self, *values: str) -> Any: ...


class PrometheusExporter:
    """Counts in this process. The page shows no sandbox ids: a series for each would grow without end."""

    name = "prometheus"
    Config = PrometheusConfig

    def __init__(self, config: PrometheusConfig) -> None:
        self._config = config
        self.registry: CollectorRegistry = config.registry or CollectorRegistry()
        self._collectors: dict[str, _Labelled] = {metric.name: self._collector(metric) for metric in METRICS}
        self._meter = Meter()
        self._worker = Worker("prometheus")
        self._server: tuple[WSGIServer, Thread] | None = None

    @property
    def port(self) -> int | None:
        """Where the page is; None before the start and when nothing is served."""
        return self._server[0].server_port if self._server else None

    def _collector(self, metric: Metric) -> _Labelled:
        name = metric.name.replace(".", "_") + {"s": "_seconds", "By": "_bytes"}.get(metric.unit, "")
        labels = [label.replace(".", "_") for label in metric.labels]
        if metric.kind == "counter":
            return Counter(name, metric.meaning, labels, registry=self.registry)
        return Histogram(name, metric.meaning, labels, buckets=metric.buckets, registry=self.registry)

    async def start(self) -> None:
        if self._config.port is not None and self._server is None:
            self._server = await self._worker.run(
                lambda: start_http_server(self._config.port or 0, addr=self._config.host, registry=self.registry)
            )

    async def export(self, events: Sequence[Event]) -> None:
        for event in events:
            for metric, value, labels in self._meter.points(event):
                child = self._collectors[metric.name].labels(*(labels[name] for name in metric.labels))
                (child.inc if metric.kind == "counter" else child.observe)(value)

    async def close(self) -> None:
        server, self._server = self._server, None
        try:
            if server is not None:
                await self._worker.run(_stop, *server)
        finally:
            self._worker.stop()
            for collector in self._collectors.values():
                with contextlib.suppress(KeyError):  # taken out by whoever owns the registry
                    self.registry.unregister(collector)  # type: ignore[arg-type]


def _stop(server: WSGIServer, thread: Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join(1.0)
