"""Counters of this server, and their Prometheus text."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Iterable
from typing import Final

from runra.server.nodeport import Sandbox

#: Content type of Prometheus's text format.
TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"


class Measures:
    """What happened since the start: plain numbers, added to on the one event loop."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.seconds: Counter[tuple[str, str]] = Counter()
        self.executions: Counter[str] = Counter()
        self.dropped_clients = 0

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        self.requests[method, route, status] += 1
        # Counter is typed for int; a float adds up just the same.
        self.seconds[method, route] += seconds  # type: ignore[assignment]

    def prometheus(self, sandboxes: Iterable[Sandbox]) -> str:
        states = Counter(sandbox.info().state for sandbox in sandboxes)
        lines = ["# HELP runra_sandboxes Live sandboxes by state.", "# TYPE runra_sandboxes gauge"]
        lines += [f'runra_sandboxes{{state="{state}"}} {states[state]}' for state in ("creating", "running", "paused")]
        lines += ["# HELP runra_requests_total HTTP requests answered.", "# TYPE runra_requests_total counter"]
        for (method, route, status), count in sorted(self.requests.items()):
            lines.append(f'runra_requests_total{{method="{method}",route="{route}",status="{status}"}} {count}')
        lines += [
            "# HELP runra_request_seconds_total Time spent answering, streams included.",
            "# TYPE runra_request_seconds_total counter",
        ]
        for (method, route), seconds in sorted(self.seconds.items()):
            lines.append(f'runra_request_seconds_total{{method="{method}",route="{route}"}} {seconds:.6f}')
        lines += ["# HELP runra_executions_total Commands by how they ended.", "# TYPE runra_executions_total counter"]
        lines += [f'runra_executions_total{{end="{end}"}} {n}' for end, n in sorted(self.executions.items())]
        lines += [
            "# HELP runra_dropped_clients_total Clients dropped because they stopped reading.",
            "# TYPE runra_dropped_clients_total counter",
            f"runra_dropped_clients_total {self.dropped_clients}",
            "# HELP runra_server_max_memory_bytes Largest resident memory of the server so far.",
            "# TYPE runra_server_max_memory_bytes gauge",
            f"runra_server_max_memory_bytes {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}",
        ]
        return "\n".join(lines) + "\n"
