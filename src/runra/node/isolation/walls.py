"""Which walls this server offers: those that work here, of those its operator allows."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Final

from runra.errors import RunraError
from runra.node.isolation import Isolation
from runra.node.isolation.bubblewrap import Bubblewrap
from runra.node.isolation.gvisor import Gvisor, find_runsc
from runra.node.launcher import Launcher
from runra.node.settings import NodeSettings

log = logging.getLogger(__name__)

_KINDS: Final[Mapping[str, type[Bubblewrap] | type[Gvisor]]] = {"bubblewrap": Bubblewrap, "gvisor": Gvisor}
NAMES = tuple(_KINDS)


def one_memory(name: str) -> bool:
    """`Isolation.one_memory` of the wall of that name, whether it is offered or not."""
    return _KINDS[name].one_memory


async def offered(launcher: Launcher, settings: NodeSettings) -> dict[str, Isolation]:
    """The walls a create may choose, by name; the first is the one of a create that names none.

    Raises INVALID_CONFIG with the cure when one that the settings name does not work here: a server that was told to
    keep the stronger wall must not start without it.
    """
    allowed = settings.allowed_isolation or frozenset(NAMES)
    asked = allowed | ({settings.isolation} if settings.isolation else set())
    if unknown := asked - set(NAMES):
        raise RunraError("INVALID_CONFIG", f"no isolation {', '.join(sorted(unknown))}; there is {', '.join(NAMES)}")
    if asked != allowed:
        raise RunraError(
            "INVALID_CONFIG",
            f"isolation {settings.isolation} is not among those allowed: {', '.join(sorted(allowed))}",
            details={"field": "isolation"},
        )
    found: dict[str, Isolation] = {}
    for name in sorted(allowed, key=lambda name: (name != settings.isolation, NAMES.index(name))):
        try:
            found[name] = await _make(name, launcher, settings)
        except RunraError as error:
            if name == settings.isolation or settings.allowed_isolation or name == NAMES[0]:
                raise
            log.info("isolation %s is not offered: %s", name, error.message)
    return found


async def _make(name: str, launcher: Launcher, settings: NodeSettings) -> Isolation:
    if name == "bubblewrap":
        return Bubblewrap(launcher, settings)
    if os.geteuid() != 0:
        raise RunraError("INVALID_CONFIG", "gVisor needs user ids of its own for each sandbox: run the server as root")
    return Gvisor(launcher, await find_runsc(launcher), settings)


def choose(offered: Mapping[str, Isolation], name: str | None) -> Isolation:
    """The wall of that name, or the first. INVALID_CONFIG, naming those there are, for one that is not offered."""
    chosen = name or next(iter(offered))
    if chosen not in offered:
        raise RunraError(
            "INVALID_CONFIG",
            f"no isolation {chosen!r} on this server; there is {', '.join(offered)}",
            details={"field": "isolation", "value": chosen},
        )
    return offered[chosen]
