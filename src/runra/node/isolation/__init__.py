"""Isolation: the wall around a sandbox, a part one can swap behind one small interface."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runra.node.cgroups import Cgroup
from runra.node.images import RootFilesystem


@dataclass(frozen=True, slots=True)
class Box:
    """All a wall needs to start one sandbox. `folder` is its own, on the host; `listen` the agent's socket."""

    id: str
    folder: Path
    root: RootFilesystem
    cgroup: Cgroup
    listen: socket.socket
    memory_mb: int
    #: The first of 65,536 ids outside that are the sandbox's 0…65535; None where only our own id can be used.
    first_id: int | None
    #: A ready network namespace (a descriptor the caller closes) the sandbox is put in; None: an empty one of its own.
    netns: int | None = None


class Isolation(Protocol):
    """One kind of wall."""

    name: str

    def host_processes(self, inside: int) -> int:
        """How many processes and threads of the host's a sandbox may need that has at most `inside` of its own."""
        ...

    def prepare(self, box: Box) -> None:
        """Make the folders and files `start` needs below `box.folder`."""
        ...

    async def start(self, box: Box) -> int:
        """Start the agent as process 1 of a new sandbox; returns its pid on the host.

        Raises INTERNAL_ERROR with the wall's own words when it could not; nothing runs then.
        """
        ...
