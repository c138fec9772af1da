"""One sandbox as the network sees it: its policy, its secrets, the names it was told, its open connections."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from runra.node.network.policy import Policy
from runra.node.network.rules import Member

#: Most names remembered for a sandbox, and how long the address of one stays good (seconds).
_NAMES: Final = 1024
REMEMBERED: Final = 600.0
#: Names of one sandbox that are looked up at once: a share of what all sandboxes have together.
_LOOKUPS: Final = 16
#: Events about one sandbox's traffic: so many a second, after a burst of so many.
_EVENTS_PER_SECOND: Final = 20.0
_EVENTS_BURST: Final = 100.0

#: Publishes one `network.egress` event: sandbox id, organization id, data.
Publish = Callable[[str, str, dict[str, Any]], None]


class Refused(Exception):
    """The policy says no; the text says why, for the event and for the client where its protocol can carry it."""


class Bucket:
    """A token bucket: `take` says whether one more may pass now."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._at = burst, time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


@dataclass(frozen=True, slots=True)
class Secret:
    """A header our gateway adds to requests for one host. `value` is shown nowhere, also not in a traceback."""

    alias: str
    host: str
    port: int
    header: str
    value: str = field(repr=False)


@dataclass(eq=False, slots=True)
class Connection:
    """One open way out through us. `name` is empty where only the address counts; `secret` is the gateway's."""

    task: asyncio.Task[Any]
    address: IPv4Address
    port: int
    name: str = ""
    secret: Secret | None = None


class Guest:
    """The policy in force is `policy`: whoever decides reads it at that moment, and nobody keeps a copy."""

    def __init__(
        self,
        sandbox_id: str,
        organization_id: str,
        interface: str,
        address: str,
        index: int,
        mark: int,
        *,
        policy: Policy,
        secrets: dict[str, Secret],
        opened: tuple[IPv4Network, ...],
        organization_opened: tuple[IPv4Network, ...],
        publish: Publish,
    ) -> None:
        self.id, self.organization_id = sandbox_id, organization_id
        self.interface, self.address, self.index, self.mark = interface, address, index, mark
        self.policy, self.secrets = policy, secrets
        #: Ranges the operator opened, for all and for its organization.
        self.opened = opened + organization_opened
        self._organization_opened = organization_opened
        self.connections: set[Connection] = set()
        #: Its sandbox is gone; what the kernel still tells of it is told.
        self.leaving = False
        #: Connections that were accepted, those whose target is not known yet included.
        self.accepted = 0
        #: Questions to the resolver under way, and its connections by TCP.
        self.asking = self.resolving = 0
        #: What costs this server's time, per second and at once: questions, connections, new names below a wildcard.
        self.questions = Bucket(200.0, 400.0)
        self.arrivals = Bucket(200.0, 400.0)
        self.lookups = Bucket(5.0, 60.0)
        self.looking_up = asyncio.Semaphore(_LOOKUPS)
        self._names: OrderedDict[tuple[IPv4Address, str], float] = OrderedDict()
        self._publish = publish
        self._events = Bucket(_EVENTS_PER_SECOND, _EVENTS_BURST)
        self._untold = 0

    def member(self) -> Member:
        return Member(
            self.interface,
            self.address,
            self.policy.mode,
            self.mark,
            bool(self.secrets),
            self._organization_opened,
        )

    # --- names it was told ---

    def remember(self, name: str, address: IPv4Address) -> None:
        self._names[address, name] = time.monotonic() + REMEMBERED
        self._names.move_to_end((address, name))
        while len(self._names) > _NAMES:
            self._names.popitem(last=False)

    def names_of(self, address: IPv4Address) -> list[str]:
        """The names our resolver gave it this address for, the latest first."""
        now = time.monotonic()
        return [name for (known, name), until in reversed(self._names.items()) if known == address and until > now]

    # --- connections ---

    @contextlib.contextmanager
    def connected(
        self, address: IPv4Address, port: int, name: str = "", secret: Secret | None = None, host: str = ""
    ) -> Iterator[list[int]]:
        """While it is open a connection can be cut by a new policy; its start and end are told. Yields
        [bytes sent, bytes received] to be counted in. Raises Refused when the policy changed since it was asked."""
        task = asyncio.current_task()
        assert task is not None
        connection = Connection(task, address, port, name, secret)
        if not self._allows(connection):
            raise Refused("the policy was changed meanwhile")
        self.connections.add(connection)
        about = {"host": host or name, "address": str(address), "port": port, "protocol": "tcp", "allowed": True}
        started, counts = time.monotonic(), [0, 0]
        self.tell({**about, "state": "opened"})
        try:
            yield counts
        finally:
            self.connections.discard(connection)
            duration = int((time.monotonic() - started) * 1000)
            ended = {"state": "closed", "bytesSent": counts[0], "bytesReceived": counts[1], "durationMs": duration}
            self.tell({**about, **ended})

    def cut(self) -> None:
        """End every connection that the policy in force no longer allows."""
        for connection in list(self.connections):
            if not self._allows(connection):
                connection.task.cancel()

    def _allows(self, connection: Connection) -> bool:
        secret = connection.secret
        if self.leaving:
            return False
        if secret is not None:  # the same alias may stand for another host or value by now
            return self.secrets.get(secret.alias) == secret
        if connection.name:
            return self.policy.allows_name(connection.name, connection.port)
        return self.policy.allows_address(connection.address, connection.port)

    # --- events ---

    def refused(self, host: str, address: IPv4Address | None, port: int, reason: str, protocol: str = "tcp") -> None:
        about = {"host": host[:253], "address": str(address) if address else "", "port": port, "protocol": protocol}
        self.tell({**about, "allowed": False, "state": "refused", "reason": reason})

    def tell(self, data: dict[str, Any]) -> None:
        """Publish an event, or count it: the next one says how many went untold."""
        if not self._events.take():
            self._untold += 1
            return
        if self._untold:
            data["untold"], self._untold = self._untold, 0
        self._publish(self.id, self.organization_id, data)
