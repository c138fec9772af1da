"""The server's open files: it takes all it may have, and one sandbox's connections get no more than a share."""

from __future__ import annotations

import resource
from typing import Final

#: One sandbox may hold this part of the server's descriptors by its connections: the store, the other sandboxes'
#: agents and the API live on the rest.
_SHARE: Final = 8


def take_all() -> int:
    """Raise this process's soft limit to its hard one; what it is now."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def bounded(connections: int, each: int) -> int:
    """As many connections of one sandbox, `each` taking so many descriptors, as its share allows; 16 at least."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    return min(connections, max(16, soft // _SHARE // each))
