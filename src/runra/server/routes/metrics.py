"""What a sandbox uses, and Prometheus's view of the server."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response

from runra.server.answers import plain
from runra.server.measure import TEXT, look_at
from runra.server.routing import Caller, Routes

routes: Final = Routes("metrics")


@routes.route("GET", "/sandboxes/{id}/metrics", scope="sandbox:read", answer=dict[str, Any])
async def sandbox_metrics(call: Caller) -> Response:
    """CPU, memory, disk and processes of a sandbox at this moment."""
    return plain(await call.sandbox.metrics())


@routes.route(
    "GET", "/metrics", scope="admin:*", content={"text/plain": "# TYPE runra_sandboxes gauge\nrunra_sandboxes 1\n"}
)
async def server_metrics(call: Caller) -> Response:
    """The server's counters and what all sandboxes use, in Prometheus's text format. They span all organizations, so
    this takes `admin:*`."""
    sandboxes = list(call.services.node.sandboxes.values())
    text = call.services.measures.prometheus(sandboxes, await look_at(sandboxes))
    return Response(text, headers={"Content-Type": TEXT})
