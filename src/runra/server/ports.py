"""Exposed ports: which there are, who may come in, and the connections that end when one is closed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Protocol

from runra.contract import Port, PortExposed, SandboxConfig, SignedUrl
from runra.errors import RunraError
from runra.events import EventLog, now_iso
from runra.server.ingress.hosts import Names, Place
from runra.server.ingress.tokens import PARAMETER, Signer, digest, matches, new_nonce, new_token
from runra.server.nodeport import Sandbox
from runra.server.store import Store
from runra.server.store.ports import PortRow, add_port, load_ports, remove_port, remove_ports, set_nonce

#: Most ports one sandbox may expose.
MOST: Final = 100


class Connection(Protocol):
    def abort(self, why: RunraError) -> None: ...


@dataclass
class Exposed:
    """One exposed port, and the connections open to it."""

    row: PortRow
    connections: set[Connection] = field(default_factory=set)
    #: Counts what cut its connections: who was let in before must not connect after.
    cuts: int = 0

    @property
    def place(self) -> Place:
        return Place(self.row.sandbox_id, self.row.port)

    def cut(self, why: str) -> None:
        self.cuts += 1
        for connection in list(self.connections):
            connection.abort(RunraError("INVALID_STATE", why, details={"reason": "closed"}))


def allowed(config: SandboxConfig, port: int) -> bool:
    """Whether the sandbox's `ingress.allowPorts` lets a port be reached; where it was not given all are."""
    ingress = config.network.ingress if config.network else None
    return ingress is None or ingress.allow_ports is None or port in ingress.allow_ports


class Ports:
    """The exposed ports of this server, in memory and in the store. One process serves a store."""

    def __init__(self, store: Store, events: EventLog, names: Names, signer: Signer) -> None:
        self._store = store
        self._events = events
        self._names = names
        self._signer = signer
        self._ports: dict[str, dict[int, Exposed]] = {}
        # A port is exposed, closed or forgotten one at a time: memory and store then agree.
        self._turn = asyncio.Lock()

    async def load(self) -> None:
        for row in await load_ports(self._store):
            self._ports.setdefault(row.sandbox_id, {})[row.port] = Exposed(row)

    def find(self, place: Place) -> Exposed | None:
        return self._ports.get(place.sandbox_id, {}).get(place.port)

    def listed(self, sandbox_id: str) -> list[Port]:
        """By number."""
        found = sorted(self._ports.get(sandbox_id, {}).items())
        return [Port(**self._fields(exposed)) for _, exposed in found]

    def _fields(self, exposed: Exposed) -> dict[str, object]:
        row = exposed.row
        url = self._names.url(exposed.place)
        return {"port": row.port, "url": url, "exposed_at": row.exposed_at, "private": row.private}

    async def expose(self, sandbox: Sandbox, port: int, private: bool) -> PortExposed:
        """Open a port to the outside. One that is open already stays as it is.

        Raises INVALID_REQUEST for a port outside `ingress.allowPorts`, INVALID_STATE when the sandbox is terminated or
        the port is exposed the other way (public, private), RESOURCE_EXHAUSTED beyond 100.
        """
        if not allowed(sandbox.config, port):
            raise RunraError(
                "INVALID_REQUEST",
                f"port: {port} is not in this sandbox's network.ingress.allowPorts; create it with that port allowed",
                details={"field": "port", "value": port},
            )
        async with self._turn:
            if sandbox.info().state == "terminated":
                raise RunraError(
                    "INVALID_STATE", f"sandbox {sandbox.id} is terminated", details={"sandboxId": sandbox.id}
                )
            there = self._ports.get(sandbox.id, {})
            if (exposed := there.get(port)) is not None:
                if exposed.row.private != private:
                    raise RunraError(
                        "INVALID_STATE",
                        f"port {port} is exposed as {'private' if exposed.row.private else 'public'}; close it first",
                        details={"port": port, "private": exposed.row.private},
                    )
                return PortExposed(**self._fields(exposed))
            if len(there) >= MOST:
                raise RunraError(
                    "RESOURCE_EXHAUSTED", f"this sandbox exposes {MOST} ports, its most; close one", retryable=False
                )
            token = new_token() if private else None
            row = PortRow(sandbox.id, port, private, digest(token) if token else None, new_nonce(), now_iso())
            await add_port(self._store, row)
            exposed = self._ports.setdefault(sandbox.id, {})[port] = Exposed(row)
        answer = PortExposed(**self._fields(exposed), token=token)
        data = {"port": port, "url": answer.url, "private": private}
        self._events.publish("port.exposed", sandbox.id, data, organization_id=sandbox.organization_id)
        return answer

    async def close(self, sandbox: Sandbox, port: int) -> None:
        """Close a port, and cut what is open to it. Closing one that is not exposed is fine."""
        async with self._turn:
            exposed = self._ports.get(sandbox.id, {}).get(port)
            if exposed is None:
                return
            await remove_port(self._store, sandbox.id, port)
            del self._ports[sandbox.id][port]
        exposed.cut("the port was closed")
        self._events.publish("port.closed", sandbox.id, {"port": port}, organization_id=sandbox.organization_id)

    def narrowed(self, sandbox: Sandbox) -> None:
        """The sandbox's `ingress.allowPorts` was replaced: cut what is open to ports it leaves out. They stay exposed,
        closed to everybody until they are allowed again."""
        for port, exposed in self._ports.get(sandbox.id, {}).items():
            if not allowed(sandbox.config, port):
                exposed.cut("the port is no longer allowed")

    async def forget(self, sandbox_id: str) -> None:
        """The sandbox is gone, and its ports with it: its id, and so their names, are never given out again."""
        async with self._turn:
            gone = self._ports.pop(sandbox_id, {})
            if gone:
                await remove_ports(self._store, sandbox_id)
        for exposed in gone.values():
            exposed.cut("the sandbox was terminated")

    # --- private ones ---

    def sign(self, exposed: Exposed, expires_in_ms: int) -> SignedUrl:
        """A link that opens a private port for a while. Its end is the cookie's end as well."""
        expires = int(time.time() * 1000) + expires_in_ms
        signed = self._signer.sign(exposed.place, exposed.row.nonce, expires)
        at = datetime.fromtimestamp(expires / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return SignedUrl(url=f"{self._names.url(exposed.place)}/?{PARAMETER.decode()}={signed}", expires_at=at)

    async def revoke(self, exposed: Exposed) -> None:
        """End all signed links of a port, and what came in by them, cookies and open connections included. Its token
        stays good."""
        async with self._turn:
            if self.find(exposed.place) is exposed:
                nonce = new_nonce()
                await set_nonce(self._store, exposed.row.sandbox_id, exposed.row.port, nonce)
                exposed.row = replace(exposed.row, nonce=nonce)
        exposed.cut("the links to this port were revoked")

    def left_ms(self, exposed: Exposed, signed: Iterable[bytes]) -> int:
        """How long the best of some signed texts opens a port, in ms; 0 when none does."""
        return max((self._signer.left_ms(one, exposed.place, exposed.row.nonce) for one in signed), default=0)

    @staticmethod
    def has_token(exposed: Exposed, tokens: Iterable[bytes]) -> bool:
        return any(matches(token, exposed.row.token_hash) for token in tokens)
