"""The node: creates this host's sandboxes, adopts those an earlier server left, and cleans up after each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

from runra.contract import SNAPSHOT_IMAGE, ImageInfo, SandboxConfig, SnapshotInfo, TerminationReason
from runra.errors import RunraError, not_found
from runra.events import EventLog, now_iso
from runra.node import cgroups, keeping, open_files, starting
from runra.node.cgroups import Cgroup
from runra.node.cleanup import CleanUp, quietly
from runra.node.disk import Disk, PlainDisk, open_disk
from runra.node.enforcement import may_go_unheld, refuse_unheld, tell_unheld
from runra.node.id_ranges import IdRanges
from runra.node.images import Resolver
from runra.node.images.store import Images
from runra.node.isolation import Isolation, walls
from runra.node.isolation.checkpoint import allowance
from runra.node.launcher import Launcher
from runra.node.network.host import HostNetwork
from runra.node.networking import check_egress, open_network
from runra.node.record import Record
from runra.node.roots import Roots
from runra.node.sandbox import Sandbox
from runra.node.settings import NodeSettings
from runra.node.snapshots import write_out

log = logging.getLogger(__name__)


class Node:
    """Owner of every sandbox on this host. `start` before use; after `close` the sandboxes live on."""

    def __init__(self, settings: NodeSettings, events: EventLog) -> None:
        self.settings = settings
        self.events = events
        #: Every sandbox that is not terminated, by id.
        self.sandboxes: dict[str, Sandbox] = {}
        #: After `start`: sandboxes an earlier server left that could not be adopted, and why they ended.
        self.gone: dict[str, TerminationReason] = {}
        #: Awaited after each transition and change, before the call that made it returns.
        self.on_change: Callable[[Sandbox], Awaitable[None]] | None = None
        self._launcher = Launcher()
        self._disk: Disk = PlainDisk(self._launcher)
        self._hierarchies = cgroups.Hierarchies()
        self._files_are_memory = False
        self._isolations: dict[str, Isolation] = {}
        self._ids = IdRanges(settings.first_id, settings.id_ranges)
        self._starts = asyncio.Semaphore(settings.concurrent_starts)
        self._network: HostNetwork | None = None
        self._no_network = "it is not open yet"
        self.images = Images(settings, self._launcher, events, self._ids.lent)
        self._roots = Roots(self.images.root)
        #: At the start: copies that forks were being made from when the server before this one ended.
        self._unfinished: set[Path] = set()
        self._trimming: asyncio.Task[None] | None = None

    @property
    def enforced(self) -> dict[str, bool]:
        """Of each limit, whether this machine holds it."""
        # What cannot be enforced of a network policy is refused.
        held = self._hierarchies.enforced
        files = held["memory"] and self._files_are_memory
        return {**held, "openFiles": files, "disk": self._disk.enforced, "network": True}

    # --- start and stop ---

    async def start(self) -> None:
        """Prepare the data folder, adopt what lives, clean away what does not."""
        self.settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        may_go_unheld(self.settings.allow_unenforced)  # refuses what is no limit
        self._isolations = await self._offered()  # before anything is mounted: settings may be wrong
        own = self.settings
        self._hierarchies = cgroups.detect(own.instance)
        if "openFiles" not in may_go_unheld(own.allow_unenforced):
            open_files.raise_table()
        self._files_are_memory = open_files.beyond_memory()
        self._disk = await open_disk(own.sandboxes_dir, own.disk, self._launcher, own.min_free_mb)
        for folder in (own.records_dir, own.images_dir):
            folder.mkdir(mode=0o700, exist_ok=True)
        self._cleanup = CleanUp(own.sandboxes_dir, own.records_dir, self._disk)
        self._cleanup.start()
        self.volumes, self.snapshots, self._unfinished = keeping.take_up(
            own, self._disk, self._cleanup.throw_away, self.sandboxes.values, self._isolations
        )
        self._roots.resolvers[SNAPSHOT_IMAGE] = self.snapshots.resolve
        tell_unheld(self.enforced, own.allow_unenforced)
        await self._roots.start(own.images_dir)
        await self.images.start(self._hierarchies)
        self.images.layers.users.append(self._layers_in_use)
        self._network, self._no_network = await open_network(own, self.events)
        known = {path.stem for path in self.settings.records_dir.iterdir()}
        known |= {folder.name for folder in self.settings.sandboxes_dir.iterdir() if folder.name[0] != "."}
        await asyncio.gather(*(self._adopt(name) for name in known))
        if self._network is not None:
            await self._network.begin()
        self._trimming = asyncio.create_task(self._trim_disk(), name="trim")
        for name in cgroups.leftovers(self._hierarchies) - self.sandboxes.keys():
            stale = Cgroup(self._hierarchies, name)
            stale.thaw()
            stale.kill()
            await quietly(stale.remove())
        self.images.collect()

    async def _offered(self) -> dict[str, Isolation]:
        await self._launcher.start()
        try:
            return await walls.offered(self._launcher, self.settings)
        except BaseException:
            await self._launcher.close()
            raise

    async def close(self) -> None:
        """Let go of everything; finishes the cleaning under way, within a minute."""
        if self._trimming is not None:
            self._trimming.cancel()
            await asyncio.wait([self._trimming])
        await self.images.close()
        await asyncio.gather(*(sandbox.release() for sandbox in self.sandboxes.values()))
        await self.settled()
        if self._network is not None:
            await self._network.close(forget=not self.sandboxes)
        if not self.sandboxes:
            cgroups.remove_roots(self._hierarchies)
            await quietly(self._disk.close())
        await self._launcher.close()

    async def _trim_disk(self) -> None:
        """Keep the disk's image from growing beyond what sandboxes have in it."""
        while True:
            await asyncio.sleep(self.settings.trim_every)
            try:
                await self._disk.trim()
            except OSError as error:
                log.warning("the disk's image could not be trimmed: %s", error)

    async def settled(self, timeout: float = 60.0) -> None:
        """Wait until what terminated sandboxes left is cleaned away."""
        await self._cleanup.settled(timeout)

    async def _adopt(self, name: str) -> None:
        try:
            record = Record.load(self.settings.records_dir / f"{name}.json")
        except (OSError, ValueError) as error:
            log.warning("sandbox %s cannot be adopted: %s", name, error)
            self.gone[name] = "error"
            await self._cleanup.discard(name, Cgroup(self._hierarchies, name))
            return
        sandbox = self._sandbox(record)
        try:
            if record.state not in ("running", "paused"):
                raise RunraError("INVALID_STATE", f"it was {record.state} when its server ended")
            if record.root.start_from in self._unfinished:
                raise RunraError("INVALID_STATE", "the fork it belongs to was not finished when its server ended")
            if record.network_index is not None and self._network is None:
                raise RunraError("INTERNAL_ERROR", f"its network cannot be enforced: {self._no_network}")
            wall = self._isolations.get(record.isolation)  # None: offered no more
            await sandbox.adopt(wall.checkpoints if wall is not None else None)
            if record.network_index is not None and self._network is not None:
                adopted = self._network.adopt(
                    record.id, record.organization_id, record.network_index, record.config.network
                )
                sandbox.connect(self._network, adopted)
        except (RunraError, OSError) as error:
            ours = isinstance(error, RunraError) and error.status == 500
            self.gone[record.id] = "oom" if sandbox.memory_gone() else "error" if ours else "node_lost"
            log.warning("sandbox %s cannot be adopted: %s", record.id, error)
            await sandbox.abandon(self.gone[record.id])
            return
        self.sandboxes[record.id] = sandbox
        self._ids.claim(record.first_id)

    # --- create ---

    async def create(
        self, sandbox_id: str, config: SandboxConfig, organization_id: str, resolve: Resolver | None = None
    ) -> Sandbox:
        """Start a sandbox; returns when it is running.

        Raises INVALID_CONFIG or INVALID_REQUEST for what this node cannot give, its image included,
        RESOURCE_EXHAUSTED when it is full, INTERNAL_ERROR when the wall or the agent did not start. Whatever happens
        nothing half made stays. `resolve` gives the root in the image's place.
        """
        isolation = self._check(config)
        self._check_room(1)
        record = Record(
            id=sandbox_id,
            organization_id=organization_id,
            config=config,
            state="creating",
            isolation=isolation.name,
            created_at=now_iso(),
            volumes=self.volumes.claim(config, organization_id),
            first_id=self._ids.take(),
        )
        sandbox = self._sandbox(record)
        self.sandboxes[sandbox_id] = sandbox
        self.events.publish("sandbox.created", sandbox_id, {"image": config.image}, organization_id=organization_id)
        patience = self.settings.start_timeout
        try:
            async with (
                self._roots.resolved(sandbox, resolve) as record.root,
                asyncio.timeout(patience := patience + _restoring(record)),
                self._starts,
                sandbox.starting(),
            ):
                await starting.start(
                    sandbox, isolation, self._disk, self._network, self.volumes, self.settings.max_pids
                )
        except BaseException as error:
            sandbox.cgroup.kill()
            await sandbox.abandon("error" if record.root.overlays else "image")
            if isinstance(error, TimeoutError):
                raise RunraError(
                    "RESOURCE_EXHAUSTED",
                    f"the sandbox did not start within {patience:.0f} s; try again",
                ) from None
            raise
        return sandbox

    async def snapshot(self, sandbox_id: str, snapshot_id: str, name: str | None) -> SnapshotInfo:
        """Keep a sandbox's files as they are now, under an id and perhaps a name; it goes on as it was.

        Raises INVALID_STATE unless it is running or paused, RESOURCE_EXHAUSTED when the disk is full.
        """
        return await self.snapshots.take(self._live(sandbox_id), snapshot_id, name)

    async def fork(self, sandbox_id: str, ids: Sequence[str], *, processes: bool = False) -> list[Sandbox]:
        """Start copies of a sandbox, one for each id: its files at this moment and its configuration, an identity of
        their own; with `processes` also what runs in it, which goes on in each. All of them run when this returns; when
        one cannot, none is left and its error is raised.

        INVALID_STATE unless the source is running or paused (with processes, running), or where what it runs cannot be
        saved; INVALID_CONFIG where its wall cannot do that.
        """
        source = self._live(sandbox_id)
        # Before the source stands still, and its connections end: what can be known now to come to nothing.
        self._check_room(len(ids))
        self.volumes.claim(source.config, source.organization_id)
        return await keeping.fork(source, ids, self.snapshots, self.create, processes=processes)

    def _live(self, sandbox_id: str) -> Sandbox:
        try:
            return self.sandboxes[sandbox_id]
        except KeyError:
            raise not_found(sandbox_id) from None

    def _check_room(self, more: int) -> None:
        if len(self.sandboxes) + more > self.settings.max_sandboxes:
            raise RunraError(
                "RESOURCE_EXHAUSTED",
                f"this server holds {len(self.sandboxes)} sandboxes and may hold {self.settings.max_sandboxes}; "
                "terminate some or try later",
                details={"maxSandboxes": self.settings.max_sandboxes},
            )

    def _check(self, config: SandboxConfig) -> Isolation:
        refuse_unheld(self.enforced, self.settings.allow_unenforced)
        isolation = walls.choose(self._isolations, config.isolation)
        check_egress(config.network, isolation, self._network, self._no_network)
        return isolation

    async def commit(self, sandbox_id: str, name: str, *, shared: bool, step: bool) -> ImageInfo:
        """Make an image of a sandbox's files as they are now. It stands still meanwhile.

        Raises INVALID_STATE for one that is not made of an image, RESOURCE_EXHAUSTED when the disk is full.
        """
        sandbox = self._live(sandbox_id)
        await write_out(sandbox, self._isolations[sandbox.record.isolation])
        async with sandbox.still():
            return await self.images.commit(
                sandbox.record.root,
                sandbox.folder / "upper0",
                name,
                sandbox.config.image,
                sandbox.organization_id,
                shared=shared,
                step=step,
            )

    def _sandbox(self, record: Record) -> Sandbox:
        return Sandbox(
            record,
            self.settings.sandboxes_dir / record.id,
            self.settings.records_dir,
            Cgroup(self._hierarchies, record.id),
            events=self.events,
            enforced=self.enforced,
            can_freeze=self._hierarchies.can_freeze,
            one_memory=walls.one_memory(record.isolation),
            max_streams=self.settings.max_streams,
            on_change=self._changed,
            on_gone=self._gone,
        )

    def _layers_in_use(self) -> Iterator[set[Path]]:
        for sandbox in self.sandboxes.values():
            yield sandbox.record.root.layers
        yield from self.snapshots.layers

    async def _changed(self, sandbox: Sandbox) -> None:
        if self.on_change is not None:
            await self.on_change(sandbox)

    def _gone(self, sandbox: Sandbox) -> None:
        self.sandboxes.pop(sandbox.id, None)
        self.images.released()
        self._roots.give_up(sandbox.id)
        self._ids.release(sandbox.record.first_id)
        self._cleanup.begin(self._cleanup.discard(sandbox.id, sandbox.cgroup))
        if self._network is not None and sandbox.guest is not None:
            self._cleanup.begin(quietly(self._network.release(sandbox.guest)))


def _restoring(record: Record) -> float:
    """Seconds more that a start may take which brings memory back."""
    return 0.0 if record.root.memory is None else allowance(record.config.resources.memory_mb)
