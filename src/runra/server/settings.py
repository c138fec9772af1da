"""Settings of the server: plain values with their defaults; the command line fills them in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from runra import contract
from runra.contract import Range
from runra.errors import RunraError

#: The ranges an operator may widen, by wire name.
RANGES: Final[Mapping[str, Range]] = {
    "cpu": contract.CPU,
    "memoryMb": contract.MEMORY_MB,
    "diskMb": contract.DISK_MB,
    "timeoutMs": contract.TIMEOUT_MS,
    "idleTimeoutMs": contract.IDLE_TIMEOUT_MS,
    "execTimeoutMs": contract.EXEC_TIMEOUT_MS,
}


def _client_config() -> Path:
    return Path(os.environ.get("RUNRA_CONFIG_PATH") or Path.home() / ".runra" / "config.json")


@dataclass(frozen=True)
class ServerSettings:
    """How to run one server.

    `api_url` is what clients on this machine are told (the bound address when unset). `database_url` is an
    SQLAlchemy URL with an async driver; SQLite in `data_dir` when unset. `ranges` widens the document's ranges,
    such as {"memoryMb": (64, 65536)}. `client_config` is the file the first key is noted in; None notes it nowhere.
    """

    host: str = "127.0.0.1"
    port: int = 7747
    data_dir: Path = field(default_factory=lambda: Path.home() / ".runra" / "server")
    domain: str = "localhost"
    api_url: str | None = None
    database_url: str | None = None
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    client_config: Path | None = field(default_factory=_client_config)
    #: Most bytes of each stream a JSON execute collects; what follows is dropped and `truncated` says so.
    collect_bytes: int = 8 << 20
    #: A comment line goes down an idle event stream this often.
    heartbeat_s: float = 15.0
    #: What running sandboxes use is published this often, while somebody listens to events; 0 publishes none of it.
    resource_events_s: float = 10.0
    #: A client that reads nothing, or sends nothing of a body it announced, is dropped after this.
    stall_s: float = 300.0
    #: Most connections to one sandbox's ports at once.
    preview_connections: int = 512
    #: Most that passes to and from one sandbox's ports, each way, in Mbit/s; None: no limit.
    preview_mbit: int | None = None
    #: A preview's request or answer in which nothing moves is cut off after this; a WebSocket after the second.
    preview_idle_s: float = 300.0
    preview_socket_idle_s: float = 3600.0
    #: Longest a create may take once its image is here.
    create_timeout_s: float = 120.0
    #: Longest a pull may take, also one that a create waits for.
    pull_timeout_s: float = 900.0
    #: Whether a create may pull an image that is not here.
    pull_on_create: bool = True
    #: MB that images fetched by creates may take in all (None: half of what is there for them).
    max_images_mb: int | None = None
    #: A JSON file about registries: mirrors, logins, certificates (docs/images.md).
    registries: Path | None = None
    #: How long a stopping server waits for calls in flight.
    shutdown_s: float = 10.0
    #: The most snapshots, and the most volumes, one organization may keep.
    max_kept: int = 1000
    #: Terminated sandboxes stay listed this long.
    keep_terminated_days: int = 30
    access_log: bool = False
    #: Settings of this host's node by name (`runra.node.NodeSettings`); what is left out has its default there.
    node: Mapping[str, Any] = field(default_factory=dict)

    @property
    def store_url(self) -> str:
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir / 'runra.db'}"

    @property
    def url(self) -> str:
        if self.api_url:
            return self.api_url
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104 - read, not bound
        return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self.port}"

    @contextmanager
    def widened(self) -> Iterator[None]:
        """Hold the contract's ranges widened; they are the process's own, so this belongs to one server."""
        before = {name: (range_.low, range_.high, range_.allowed) for name, range_ in RANGES.items()}
        try:
            for name, (low, high) in self.ranges.items():
                range_ = RANGES.get(name)
                if range_ is None or not 0 < low <= high:
                    raise RunraError(
                        "INVALID_CONFIG",
                        f"range {name!r}: ({low}, {high}) is none; widen {', '.join(RANGES)} with 0 < low <= high",
                    )
                range_.low, range_.high, range_.allowed = min(low, range_.low), max(high, range_.high), None
            yield
        finally:
            for name, (low, high, allowed) in before.items():
                RANGES[name].low, RANGES[name].high, RANGES[name].allowed = low, high, allowed
