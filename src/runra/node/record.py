"""What the node remembers of a sandbox on disk, so that the next server on this host can adopt it."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, Field

from runra.contract import CLIENT, REVEAL, SandboxConfig, SandboxState, TerminationReason
from runra.node.images import RootFilesystem
from runra.node.volumes import Mounted


class Record(BaseModel):
    """One sandbox's record, kept apart from its folder, whose disk may be full.

    It need not survive the machine, only the server: no process outlives a reboot.
    """

    id: str
    organization_id: str
    config: SandboxConfig
    state: SandboxState
    isolation: str
    #: What its image was when it started; the image itself may be gone or changed by now.
    root: RootFilesystem = Field(default_factory=lambda: RootFilesystem(()))
    volumes: list[Mounted] = Field(default_factory=list)
    #: What its layers held when it was made (of a snapshot or a fork); the disk counts that for whoever wrote it.
    inherited_bytes: int = 0
    created_at: str
    started_at: str | None = None
    paused_at: str | None = None
    terminated_at: str | None = None
    termination_reason: TerminationReason | None = None
    first_id: int | None = None
    #: Which of the server's network addresses is its own; None: it has no network.
    network_index: int | None = None
    #: The agent on the host: its pid, and its start time in clock ticks since boot, which tells it from a later
    #: process with the same pid.
    pid: int = 0
    pid_started: int = 0
    #: Time spent running before the present stretch, and when that began (Unix milliseconds).
    ran_ms: int = 0
    running_since_ms: int = 0
    paused_since_ms: int = 0
    #: What runs in it is being saved: it stands still, and its agent has no socket of the host's.
    apart: bool = False

    def save(self, path: Path) -> None:
        """Replace the record at `path` in one step. It holds the values of network secrets: only we may read it."""
        fresh = path.with_suffix(".new")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(self.model_dump_json(context=REVEAL))
        fresh.rename(path)

    @classmethod
    def load(cls, path: Path) -> Record:
        """Raises OSError or ValueError when there is none, or none that can be read."""
        return cls.model_validate_json(path.read_text(), context=CLIENT)


def process_start(pid: int) -> int:
    """Start time of a process in clock ticks since boot (proc(5), stat field 22); 0 when it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])
