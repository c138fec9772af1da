"""The events `resource.cpu`, `resource.memory` and `resource.disk` of running sandboxes, while somebody listens."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from runra.events import EventLog, EventType
from runra.server.measure import look_at
from runra.server.nodeport import Node, Sandbox

#: How many sandboxes are looked at at a time: a look may walk a folder.
_AT_ONCE: Final = 8
#: Each event: its field, the key in a sandbox's metrics, the field of its ceiling, that in the limits, and its factor.
_TOLD: Final[tuple[tuple[EventType, str, str, str, int], ...]] = (
    ("resource.cpu", "cpuMs", "limitCores", "cpu", 1),
    ("resource.memory", "memoryBytes", "limitBytes", "memoryMb", 1 << 20),
    ("resource.disk", "diskBytes", "limitBytes", "diskMb", 1 << 20),
)


async def tell_resources(node: Node, events: EventLog, every_s: float) -> None:
    """Publish what running sandboxes use, every `every_s` seconds until cancelled; only what has changed.

    Such events are not kept for replay: a thousand sandboxes would push everything else out of the log.
    """
    told: dict[str, dict[str, Any]] = {}
    places = asyncio.Semaphore(_AT_ONCE)

    async def look(sandbox: Sandbox) -> None:
        async with places:
            found = await look_at([sandbox])
        if found and sandbox.info().state == "running":
            _publish(events, sandbox, found[0], told.setdefault(sandbox.id, {}))

    while True:
        await asyncio.sleep(every_s)
        if events.heard:
            running = [one for one in node.sandboxes.values() if one.info().state == "running"]
            await asyncio.gather(*(look(one) for one in running))
            told = {one.id: told[one.id] for one in running if one.id in told}
        else:
            told.clear()  # whoever comes next hears of all


def _publish(events: EventLog, sandbox: Sandbox, found: dict[str, Any], told: dict[str, Any]) -> None:
    limits = found.get("limits") or {}
    for type, field, ceiling, limit, factor in _TOLD:
        value = found.get(field)
        if value is None or told.get(type) == value:  # not measured on this machine, or as it was
            continue
        told[type] = value
        data = {field: value}
        if limits.get(limit) is not None:
            data[ceiling] = limits[limit] * factor
        events.publish(type, sandbox.id, data, organization_id=sandbox.organization_id, kept=False)
