"""What an operator may set for this host's sandboxes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from runra.node.network.settings import NetworkSettings

#: Ids each sandbox owns outside: its root is the first, nobody's otherwise. One range per sandbox, so that two
#: sandboxes never share a uid, a keyring or a per-uid limit.
IDS_PER_SANDBOX: Final = 65_536


DiskMode = Literal["auto", "none"]


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """One registry, by the host in an image's name.

    `mirrors` are base URLs tried before it, in order. `insecure` allows plain HTTP and any certificate. `ca_file` is
    a PEM file of further authorities. `username` and `password` are the operator's own login: what it can fetch,
    every organization may use. `private` lets a create reach it although its address is no public one.
    """

    mirrors: tuple[str, ...] = ()
    insecure: bool = False
    ca_file: Path | None = None
    username: str = ""
    password: str = field(default="", repr=False)
    private: bool = False


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """`data_dir` holds everything this node writes; two nodes never share one."""

    data_dir: Path
    #: The wall of a sandbox whose create names none; None: bubblewrap, or the only one allowed.
    isolation: str | None = None
    #: The walls a create may ask for; None: every one that works here.
    allowed_isolation: frozenset[str] | None = None
    #: Limits that need not hold (cpu, memory, pids, disk); a create is refused where another one cannot be held. None:
    #: none of them as root, and all of them as an ordinary user, who can hold hardly any and is told so.
    allow_unenforced: frozenset[str] | None = None
    #: The sub-uid ranges handed out begin here; the defaults stay clear of /etc/subuid's usual ranges and of 2^31.
    first_id: int = 0x2000_0000
    id_ranges: int = 16_384
    #: Processes and threads in one sandbox, its agent included.
    max_pids: int = 4096
    #: Commands, terminals and file operations that may run at once in one sandbox (at most 1024), and streams that may
    #: be open to its agent.
    max_commands: int = 1024
    max_streams: int = 2048
    #: Descriptors one process may have (RLIMIT_NOFILE): how far it may raise its own limit, which is 65,536 or less.
    max_open_files: int = 1 << 20
    #: Sandboxes that may be starting at once; more wait their turn (spec 7, 2c: throughput falls under a burst).
    concurrent_starts: int = 8
    #: Seconds a sandbox may take to start before it is given up and cleaned away.
    start_timeout: float = 30.0
    #: `auto`: the best disk quota this machine has; `none`: plain folders.
    disk: DiskMode = "auto"
    #: Seconds between looks at how far the disk's image has grown.
    trim_every: float = 30.0
    #: The most sandboxes this node holds; beyond it RESOURCE_EXHAUSTED.
    max_sandboxes: int = 2000
    network: NetworkSettings = field(default_factory=NetworkSettings)
    #: Whether a create may fetch an image that is not here.
    pull_on_create: bool = True
    #: Seconds a pull may take, from the first byte to the last file.
    pull_timeout: float = 900.0
    #: Registries by host, where the defaults do not do: mirrors, logins, certificates.
    registries: Mapping[str, RegistrySettings] = field(default_factory=dict)
    #: MB one image may take unpacked, and files in one layer; a bomb ends here.
    max_image_mb: int = 32_768
    max_image_entries: int = 2_000_000
    #: MB that pulls and unpacking leave free on the data folder's disk. A create's pull also leaves what the disk of
    #: the sandboxes may yet take.
    min_free_mb: int = 1024
    #: MB that the images which creates fetched may take in all; beyond it those go that were not used for longest.
    #: None: half of what they could take at most.
    max_images_mb: int | None = None

    @property
    def sandboxes_dir(self) -> Path:
        return self.data_dir / "sandboxes"

    @property
    def records_dir(self) -> Path:
        """Each sandbox's record and its agent's socket; never on a disk that a sandbox can fill."""
        return self.data_dir / "records"

    @property
    def images_dir(self) -> Path:
        return self.data_dir / "images"

    @property
    def volumes_dir(self) -> Path:
        """Where volumes' records are; the volumes themselves lie beside the sandboxes."""
        return self.data_dir / "volumes"

    @property
    def snapshots_dir(self) -> Path:
        """The same for snapshots."""
        return self.data_dir / "snapshots"

    @property
    def instance(self) -> str:
        """A short name for this node, the same after a restart: it keeps our cgroups apart from other nodes'."""
        return hashlib.sha256(str(self.data_dir.resolve()).encode()).hexdigest()[:8]
