"""Which walls this server offers: those that work here, of those its operator allows."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from runra.errors import RunraError
from runra.node.isolation import Isolation
from runra.node.isolation.bubblewrap import Bubblewrap
from runra.node.isolation.gvisor import Gvisor, find_runsc
from runra.node.launcher import Launcher
from runra.node.settings import NodeSettings

log = logging.getLogger(__name__)

NAMES = ("bubblewrap", "gvisor")


async def offered(launcher: Launcher, settings: NodeSettings) -> dict[str, Isolation]:
    """The walls a create may choose, by name.

    Raises INVALID_CONFIG with the cure when one that the settings name does not work here: a server that was told to
    keep the stronger wall must not start without it.
    """
    allowed = settings.allowed_isolation or frozenset(NAMES)
    if unknown := (allowed | {settings.isolation}) - set(NAMES):
        raise RunraError("INVALID_CONFIG", f"no isolation {', '.join(sorted(unknown))}; there is {', '.join(NAMES)}")
    if settings.isolation not in allowed:
        raise RunraError(
            "INVALID_CONFIG",
            f"the isolation of this server is {settings.isolation}, which is not among those allowed: "
            f"{', '.join(sorted(allowed))}",
        )
    found: dict[str, Isolation] = {}
    if "bubblewrap" in allowed:
        found["bubblewrap"] = Bubblewrap(launcher)
    if "gvisor" in allowed:
        try:
            if os.geteuid() != 0:
                raise RunraError("INVALID_CONFIG", "gVisor needs a range of user ids per sandbox: run the server as root")
            found["gvisor"] = Gvisor(launcher, await find_runsc(launcher), settings.max_pids)
        except RunraError as error:
            if settings.isolation == "gvisor" or settings.allowed_isolation:
                raise
            log.info("isolation gvisor is not offered: %s", error.message)
    return found


def choose(offered: Mapping[str, Isolation], name: str) -> Isolation:
    """The wall of that name. INVALID_CONFIG, naming those there are, for one that is not offered."""
    if name not in offered:
        raise RunraError(
            "INVALID_CONFIG",
            f"no isolation {name!r} on this server; there is {', '.join(offered)}",
            details={"field": "isolation", "value": name},
        )
    return offered[name]
