"""Limits this machine cannot hold: refused when a sandbox is made, unless the operator allows it (spec 2, choices)."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Final

from runra.errors import RunraError

log = logging.getLogger(__name__)

#: The limits there are, and how to have each held.
CURES: Final[Mapping[str, str]] = {
    "cpu": "mount the cpu controller of cgroups where this server may write",
    "memory": "mount the memory controller of cgroups where this server may write",
    "pids": "mount the pids controller of cgroups where this server may write",
    "openFiles": "sysctl -w fs.file-max=9223372036854775807, and limit memory (by cgroups that count kernel memory)",
    "disk": "apt-get install btrfs-progs, or put the data folder on btrfs",
}
#: Fields of a create that ask for them.
_FIELDS: Final = {"cpu": "resources.cpu", "memory": "resources.memoryMb", "disk": "resources.diskMb"}


def unheld(enforced: Mapping[str, bool]) -> list[str]:
    return [name for name in CURES if not enforced.get(name)]


def may_go_unheld(allowed: frozenset[str] | None) -> frozenset[str]:
    """What `NodeSettings.allow_unenforced` means. INVALID_CONFIG for a limit that is none."""
    if allowed is None:
        return frozenset() if os.geteuid() == 0 else frozenset(CURES)
    if unknown := allowed - CURES.keys():
        raise RunraError(
            "INVALID_CONFIG", f"no limit {', '.join(sorted(unknown))}; there is {', '.join(CURES)}, or all of them: all"
        )
    return allowed


def tell_unheld(enforced: Mapping[str, bool], allowed: frozenset[str] | None) -> None:
    """Say in the log what does not hold here, and what comes of it."""
    if missing := unheld(enforced):
        refused = set(missing) - may_go_unheld(allowed)
        outcome = "sandboxes are refused" if refused else "a sandbox may take all of it"
        log.warning("limits this machine cannot hold: %s; %s (`runra doctor`)", ", ".join(missing), outcome)


def refuse_unheld(enforced: Mapping[str, bool], allowed: frozenset[str] | None) -> None:
    """Raise INVALID_CONFIG when a limit does not hold here and may not go without."""
    missing = [name for name in unheld(enforced) if name not in may_go_unheld(allowed)]
    if missing:
        cures = "; ".join(dict.fromkeys(CURES[name] for name in missing))
        raise RunraError(
            "INVALID_CONFIG",
            f"this machine cannot hold the limit of {', '.join(missing)}: {cures}. "
            f"To run sandboxes without: runra serve --allow-unenforced {','.join(missing)}",
            details={"unenforced": missing, "field": _FIELDS.get(missing[0], "resources")},
        )
