"""Isolation: the wall around a sandbox, a part one can swap behind one small interface."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runra.node.cgroups import Cgroup
from runra.node.images import RootFilesystem
from runra.node.isolation.checkpoint import Checkpoints


@dataclass(frozen=True, slots=True)
class BoxVolume:
    """A folder of the host's to be shown at `path`: no set-user-id, no devices, and unchangeably so if `read_only`.
    That `path` leads through no link has been checked."""

    source: Path
    path: str
    read_only: bool


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
    volumes: tuple[BoxVolume, ...] = ()


class Isolation(Protocol):
    """One kind of wall."""

    name: str
    #: Whether what was written inside may not have reached the sandbox's layers before a sync(2) inside.
    keeps_writes: bool
    #: It puts sandboxes into `Box.netns`. One that does not gives them no network, and a create that asks is refused.
    networked: bool
    #: Saves what runs behind it; None: it cannot.
    checkpoints: Checkpoints | None
    #: Its memory is one: when the host's kernel killed a part of it for want of memory, all of it must end
    #: (node/memory_end.py).
    one_memory: bool

    def host_processes(self, inside: int) -> int:
        """How many processes and threads of the host's a sandbox may need that has at most `inside` of its own."""
        ...

    def prepare(self, box: Box) -> None:
        """Make the folders and files `start` needs below `box.folder`; upper layers may be there already, filled."""
        ...

    async def start(self, box: Box) -> int:
        """Start the agent as process 1 of a new sandbox, or all that ran in the one that `box.root.memory` was saved
        from; returns its pid on the host.

        Raises INTERNAL_ERROR with the wall's own words when it could not; nothing runs then.
        """
        ...
