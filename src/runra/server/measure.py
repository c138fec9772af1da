"""Counters of this server, and their Prometheus text."""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from runra.errors import RunraError
from runra.server.nodeport import Sandbox

#: Content type of Prometheus's text format.
TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"


#: What live sandboxes use, all together (a label per sandbox would grow without end): the name, the key in a sandbox's
#: own metrics, and what to multiply by. Sums fall when a sandbox ends, so all of them are gauges.
_USED: Final = (
    ("runra_sandboxes_cpu_seconds", "cpuMs", 0.001),
    ("runra_sandboxes_memory_bytes", "memoryBytes", 1),
    ("runra_sandboxes_disk_bytes", "diskBytes", 1),
    ("runra_sandboxes_processes", "processes", 1),
)
#: Seconds for looking at all sandboxes; one that takes longer is left out of this answer.
_LOOK_S: Final = 8.0


async def look_at(sandboxes: Iterable[Sandbox]) -> list[dict[str, Any]]:
    """Each sandbox's own metrics, as far as they could be had in time."""
    looks = [asyncio.ensure_future(sandbox.metrics()) for sandbox in sandboxes]
    if not looks:
        return []
    try:
        await asyncio.wait(looks, timeout=_LOOK_S)
        return [look.result() for look in looks if _fine(look)]
    finally:
        for look in looks:
            look.cancel()


def _fine(look: asyncio.Future[dict[str, Any]]) -> bool:
    if not look.done() or look.cancelled():
        return False
    error = look.exception()
    if error is not None and not isinstance(error, RunraError | OSError):
        raise error
    return error is None  # otherwise it went while we looked


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

    def prometheus(self, sandboxes: Iterable[Sandbox], used: Iterable[Mapping[str, Any]]) -> str:
        states = Counter(sandbox.info().state for sandbox in sandboxes)
        lines = ["# HELP runra_sandboxes Live sandboxes by state.", "# TYPE runra_sandboxes gauge"]
        lines += [f'runra_sandboxes{{state="{state}"}} {states[state]}' for state in ("creating", "running", "paused")]
        told = list(used)
        for name, key, factor in _USED:
            total = sum(one.get(key, 0) for one in told) * factor
            lines += [f"# TYPE {name} gauge", f"{name} {total:.15g}"]
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
