"""The host's side of every sandbox's network: namespaces kept ready, the kernel's rules, our listeners, the guests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import ssl
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Final, TypeVar

from runra.contract import Network
from runra.errors import RunraError
from runra.node.network import namespaces, policy
from runra.node.network.dialer import Dialer
from runra.node.network.flows import Flow, FlowLog, forget_connections
from runra.node.network.guest import Guest, Publish, Secret
from runra.node.network.http import HttpProxy
from runra.node.network.nft import Nft
from runra.node.network.proxy import Listener, Proxy
from runra.node.network.resolver import NameServer, Resolver
from runra.node.network.rules import GUARD, GUARD_NAME, Ports, Table
from runra.node.network.settings import NetworkSettings, networks
from runra.node.network.upstream import Upstream, servers

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: A table that no packet ever meets: whether rules can be made here.
_TRIAL: Final = "runra_trial"
#: Bits of one server's range: 4,096 addresses.
_PREFIX: Final = 20
#: The first address is the gateway's; the last is left alone.
_FIRST: Final = 2
#: Seconds between two looks whether our rules still stand.
_WATCH: Final = 5.0
#: Seconds for which an ended sandbox's address stays its own: the kernel may keep what it tells of it that long.
_LAST_WORDS: Final = 0.5
#: The two high bytes of our connections' marks, the second taken from the server's own name.
_MARK: Final = 0x5200_0000


@dataclass(frozen=True, slots=True)
class Place:
    """A network namespace ready for a sandbox."""

    netns: int
    index: int
    interface: str
    address: str
    gateway: str


def obstacle() -> str | None:
    """Why this machine gives sandboxes no network, with the cure; None when it can."""
    if os.geteuid() != 0:
        return "not root: network namespaces and rules outside a sandbox need it; run `runra serve` as root"
    try:
        nft = Nft()
    except RunraError as error:
        return error.message
    try:
        # made and gone in one transaction; what shows tables would read every rule there is
        nft.run(f"add table inet {_TRIAL}; delete table inet {_TRIAL}")
        os.close(namespaces.fresh())
    except (RunraError, OSError) as error:
        return f"no network namespaces or rules can be made here ({error}); a container needs CAP_SYS_ADMIN for it"
    finally:
        nft.close()
    return None


def may_forward() -> bool:
    """Whether packets are passed on here, or may be."""
    return namespaces.forwards() or os.access("/proc/sys/net/ipv4/ip_forward", os.W_OK)


class HostNetwork:
    """Every sandbox's network on this host. `open` takes the addresses, `begin` puts the rules in force.

    What talks to the kernel runs on two threads, one for rules and one that makes namespaces: nothing of it holds up
    the event loop, and nothing needs a lock.
    """

    def __init__(self, settings: NetworkSettings, data_dir: Path, instance: str, publish: Publish) -> None:
        self._settings = settings
        self._file = data_dir / "network.json"
        self._instance = instance
        self._publish = publish
        self._opened = tuple(networks(settings.open_ranges))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        #: Making a namespace takes milliseconds: it must not stand before a change of rules that a create waits for.
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="namespaces")
        self._forwarding = self._guarding = self._filling = False
        self._guests: dict[str, Guest] = {}
        self._ready: deque[Place] = deque()
        self._taken: set[int] = set()
        self._next = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._upstream = Upstream(servers(settings.dns))
        #: What secrets' hosts are verified with; made at once only where the operator's own file may be wrong.
        self._trust = None if settings.ca_file is None else trust(settings.ca_file)

    # --- start and end ---

    async def open(self) -> None:
        """Take a range of addresses, the same as before a restart. Raises RunraError when there is none."""
        self._nft = await self._run(Nft)
        self.range = await self._run(self._take_range)
        self._gateway = str(self.range.network_address + 1)
        self._next = random.randrange(self.range.num_addresses)  # noqa: S311 - an address used lately comes last
        #: Whether sandboxes without a policy can have the internet.
        self.forwards = may_forward()

    async def _trusted(self) -> ssl.SSLContext:
        if self._trust is None:
            self._trust = await asyncio.to_thread(trust, None)
        return self._trust

    def _take_range(self) -> IPv4Network:
        try:
            kept = IPv4Network(json.loads(self._file.read_text())["range"])
        except (OSError, ValueError, KeyError):
            kept = None
        within = networks((self._settings.range,))[0]
        if within.prefixlen > _PREFIX:
            raise RunraError("INVALID_CONFIG", f"the sandboxes' range {within} is too small: a /{_PREFIX} is the least")
        in_use = namespaces.addresses_in_use()
        if kept is not None and kept.subnet_of(within):
            # Its addresses are ours, as far as anything of the last server's lives.
            return self._claim(kept)
        count = 1 << (_PREFIX - within.prefixlen)
        first = int(self._instance, 16) % count
        for step in range(count):
            base = int(within.network_address) + ((first + step) % count << (32 - _PREFIX))
            candidate = IPv4Network((base, _PREFIX))
            if not any(candidate.overlaps(network) for network in in_use):
                return self._claim(candidate)
        raise RunraError("INVALID_CONFIG", f"no free /{_PREFIX} in {within}: set another range for the sandboxes")

    def _claim(self, range_: IPv4Network) -> IPv4Network:
        gateway = str(range_.network_address + 1)
        with contextlib.suppress(FileExistsError):
            namespaces.claim(gateway, self._instance)
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps({"range": str(range_)}))
        fresh.rename(self._file)
        return range_

    async def begin(self) -> None:
        """Listen, and put the rules in force for everybody adopted before. Raises RunraError or OSError."""
        resolver = Resolver(self._upstream, self._gateway, self._who)
        dialer = Dialer(self._upstream, resolver)
        http = HttpProxy(dialer, self._trusted)
        most = self._settings.connections
        self._names = NameServer(resolver, self._who)
        self._proxy = Listener(Proxy(dialer, http).serve, self._who, most)
        self._secrets = Listener(http.serve_gateway, self._who, most)
        self._ports = Ports(
            dns=await self._names.start(self._gateway),
            proxy=await self._proxy.start(self._gateway),
            secrets=await self._secrets.start(self._gateway),
        )
        group = 1 + int(self._instance[:4], 16) % 60_000
        self._flows = await self._run(lambda: FlowLog(group, self.range, self._gateway, self._tell))
        self._flows.start()
        self._table = Table(
            name=f"runra_{self._instance}",
            prefix=f"rn{self._instance[:6]}",
            range=self.range,
            gateway=self._gateway,
            group=self._flows.group,
            opened=self._opened,
            connections=most,
            bandwidth_mbit=self._settings.bandwidth_mbit,
        )
        if any(guest.policy.mode == "open" for guest in self._guests.values()):
            await self._forward()
        await self._make_table()
        self._go(self._fill())
        self._go(self._watch())

    async def close(self, *, forget: bool) -> None:
        """Stop. The rules stay in force for sandboxes that live on; with `forget` nothing of us stays."""
        self._closing = True
        if hasattr(self, "_flows"):
            self._flows.close()  # while those that ended lately are still known: it tells the last of them
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not forget and hasattr(self, "_table"):
            # Before our ports are anybody's.
            with contextlib.suppress(RunraError):
                await self._make_table(listening=False)
        if hasattr(self, "_flows"):
            await asyncio.gather(self._proxy.close(), self._secrets.close(), self._names.close())
        for place in self._ready:
            os.close(place.netns)
        self._ready.clear()
        if forget and hasattr(self, "_table"):
            await self._run(lambda: self._nft.run(self._table.delete()))
            await self._run(lambda: namespaces.disclaim(self._gateway))
        if hasattr(self, "_nft"):
            await self._run(self._nft.close)
        self._thread.shutdown(wait=False)
        self._maker.shutdown(wait=False)

    # --- guests ---

    def policy_of(self, network: Network | None) -> policy.Policy:
        """The policy in force for what was asked. Raises INVALID_CONFIG for what this host cannot give."""
        found = policy.policy_of(network.egress if network else None)
        if found.mode == "open" and not self.forwards:
            if network is not None and network.egress is not None:
                raise RunraError(
                    "INVALID_CONFIG",
                    "this machine passes no packets on (net.ipv4.ip_forward), so only named hosts can be reached: "
                    "list them in network.egress.allow, or have the operator set it",
                    details={"field": "network.egress"},
                )
            return policy.NOTHING
        return found

    async def take(self) -> Place:
        """A ready namespace; the caller closes its descriptor once the sandbox is in it, and gives `place` back by
        `release`."""
        place = self._ready.popleft() if self._ready else await self._make()
        self._go(self._fill())
        return place

    async def admit(self, sandbox_id: str, organization_id: str, place: Place, network: Network | None) -> Guest:
        """Put a sandbox's policy in force, before its first process. Raises RunraError; then nothing passes, and the
        place is given back."""
        try:
            guest = self._guest(sandbox_id, organization_id, place.index, network)
        except BaseException:
            self._taken.discard(place.index)
            raise
        self._guests[guest.address] = guest
        try:
            if guest.policy.mode == "open":
                await self._forward()
            await self._apply(self._table.admit(guest.member()))
        except BaseException:
            # Cancelled, the kernel may be about to do it nevertheless; what comes after on its thread undoes it.
            self._go(self._withdraw(guest))
            raise
        return guest

    async def _withdraw(self, guest: Guest) -> None:
        with contextlib.suppress(RunraError):  # nothing of it was in force
            await self._run(lambda: self._nft.run(self._table.dismiss(guest.member())))
        self._forget(guest)

    def adopt(self, sandbox_id: str, organization_id: str, index: int, network: Network | None) -> Guest:
        """Know a sandbox an earlier server left, before `begin`."""
        guest = self._guest(sandbox_id, organization_id, index, network)
        self._taken.add(index)
        self._guests[guest.address] = guest
        return guest

    async def change(self, guest: Guest, network: Network | None) -> None:
        """Replace a live sandbox's policy and secrets, and cut what the new ones do not allow.

        Raises INVALID_CONFIG for a policy that is none, and INTERNAL_ERROR when the kernel refused: then the old one
        stands.
        """
        wanted, secrets = self.policy_of(network), secrets_of(network)
        before, old = guest.member(), (guest.policy, guest.secrets)
        if wanted.mode == "open":
            await self._forward()
        guest.policy, guest.secrets = wanted, secrets
        try:
            await self._apply(self._table.dismiss(before) + self._table.admit(guest.member()))
        except BaseException:
            guest.policy, guest.secrets = old
            raise
        guest.cut()
        if before.mode == "open" != wanted.mode:
            await self._run(lambda: forget_connections(guest.mark))

    async def release(self, guest: Guest) -> None:
        """A sandbox is gone: close its way, and end its connections. Its address is free when the kernel has told the
        last of them; nobody waits for that."""
        guest.leaving = True
        for connection in list(guest.connections):
            connection.task.cancel()
        if not hasattr(self, "_table"):  # adopted, and gone before `begin`
            self._forget(guest)
            return
        try:
            await self._apply(self._table.dismiss(guest.member()))
            await self._run(lambda: forget_connections(guest.mark))
        finally:
            asyncio.get_running_loop().call_later(_LAST_WORDS, self._forget, guest)

    def _forget(self, guest: Guest) -> None:
        self._guests.pop(guest.address, None)
        self._taken.discard(guest.index)

    def _guest(self, sandbox_id: str, organization_id: str, index: int, network: Network | None) -> Guest:
        return Guest(
            sandbox_id,
            organization_id,
            self._interface(index),
            self._address(index),
            index,
            _MARK | int(self._instance[:2], 16) << 16 | index,
            policy=self.policy_of(network),
            secrets=secrets_of(network),
            opened=self._opened,
            organization_opened=tuple(self._settings.opened(organization_id)),
            publish=self._publish,
        )

    def _who(self, address: str) -> Guest | None:
        return self._guests.get(address)

    def _tell(self, flow: Flow) -> None:
        guest = self._guests.get(flow.source)
        if guest is None:
            return
        names = guest.names_of(IPv4Address(flow.target))
        about = {"host": names[0] if names else "", "address": flow.target, "port": flow.port}
        about |= {"protocol": flow.protocol}
        if flow.allowed is None:
            counted = {"bytesSent": flow.sent, "bytesReceived": flow.received} if flow.sent is not None else {}
            guest.tell({**about, "allowed": True, "state": "closed", **counted})
        elif flow.allowed:
            guest.tell({**about, "allowed": True, "state": "opened"})
        else:
            guest.tell({**about, "allowed": False, "state": "refused", "reason": "closed to this sandbox"})

    # --- places ---

    def _interface(self, index: int) -> str:
        return f"rn{self._instance[:6]}{index:04x}"

    def _address(self, index: int) -> str:
        return str(self.range.network_address + index)

    def _free_index(self) -> int:
        for _ in range(self.range.num_addresses):
            self._next = (self._next + 1) % (self.range.num_addresses - 1)
            if self._next >= _FIRST and self._next not in self._taken:
                self._taken.add(self._next)
                return self._next
        raise RunraError("RESOURCE_EXHAUSTED", "no free address for another sandbox; terminate some")

    async def _make(self) -> Place:
        index = self._free_index()
        interface, address = self._interface(index), self._address(index)
        loop = asyncio.get_running_loop()
        making = loop.run_in_executor(self._maker, namespaces.make, interface, address, self._gateway)
        try:
            netns = await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(_close_unwanted)
            self._taken.discard(index)
            raise
        except OSError as error:
            self._taken.discard(index)
            raise RunraError("INTERNAL_ERROR", f"no network namespace could be made: {error}") from error
        return Place(netns, index, interface, address, self._gateway)

    async def _fill(self) -> None:
        if self._filling:  # who fills now goes on until it is full
            return
        self._filling = True
        try:
            while len(self._ready) < self._settings.ready and not self._closing:
                self._ready.append(await self._make())
        finally:
            self._filling = False

    # --- the kernel ---

    async def _run(self, work: Callable[[], Result]) -> Result:
        """On the network's thread, to its end whatever becomes of the caller."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))

    async def _forward(self) -> None:
        if not self._forwarding:
            await self._run(self._let_forward)
            self._forwarding = True

    def _let_forward(self) -> None:
        """Make this machine a router, for sandboxes only if it was none."""
        if not namespaces.forwards() or GUARD_NAME in self._nft.run("list tables ip"):
            self._nft.run(GUARD)
            self._guarding = True
        namespaces.let_forward()

    async def _apply(self, commands: str) -> None:
        try:
            await self._run(lambda: self._nft.run(commands))
        except RunraError as error:
            if self._closing or await self._stands():
                raise
            # Somebody else removed our table; with it back, the wanted members are in it.
            log.error("the rules of sandboxes' networks were removed by another program; making them again: %s", error)
            await self._make_table()

    async def _make_table(self, *, listening: bool = True) -> None:
        members = [guest.member() for guest in self._guests.values() if not guest.leaving]
        table = self._table.make(self._ports if listening else None, members)
        await self._run(lambda: self._nft.run(table + (GUARD if self._guarding else "")))

    async def _stands(self) -> bool:
        try:
            await self._run(lambda: self._nft.run(f"list chain inet {self._table.name} out_guest"))
        except RunraError:
            return False
        return True

    async def _watch(self) -> None:
        """Another program may flush all rules (`nft flush ruleset`): ours come back, and the log says so."""
        while True:
            await asyncio.sleep(_WATCH)
            if not await self._stands():
                log.error("the rules of sandboxes' networks were removed by another program; making them again")
                await self._make_table()

    def _go(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="network")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("network: %s", error)


def _close_unwanted(made: asyncio.Future[int]) -> None:
    """A namespace that was finished after whoever wanted it had gone."""
    if not made.cancelled() and made.exception() is None:
        os.close(made.result())


def trust(ca_file: Path | None) -> ssl.SSLContext:
    """The system's certificates, and those of this file. Reading them takes tens of milliseconds."""
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context


def secrets_of(network: Network | None) -> dict[str, Secret]:
    found = {}
    for secret in network.secrets if network else ():
        host, _, port = secret.host.partition(":")
        value = secret.value.get_secret_value()
        found[secret.alias] = Secret(secret.alias, host, int(port or 443), secret.header, value)
    return found
