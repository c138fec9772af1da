"""The routes, a module for each thing the API knows."""

from __future__ import annotations

from typing import Final

from runra.server.routes import (
    commands,
    events,
    files,
    images,
    keys,
    metrics,
    ports,
    processes,
    sandboxes,
    snapshots,
    terminals,
    volumes,
)
from runra.server.routing import Routes

#: In the order they are tried: the busiest first.
ALL: Final[tuple[Routes, ...]] = (
    commands.routes,
    files.routes,
    processes.routes,
    terminals.routes,
    sandboxes.routes,
    events.routes,
    ports.routes,
    metrics.routes,
    keys.routes,
    snapshots.routes,
    volumes.routes,
    images.routes,
)
