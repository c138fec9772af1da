"""The node: creates this host's sandboxes, adopts those an earlier server left, and cleans up after each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from runra.contract import SNAPSHOT_IMAGE, ImageInfo, Network, SandboxConfig, SnapshotInfo, TerminationReason
from runra.errors import RunraError, not_found
from runra.events import EventLog, now_iso
from runra.node import cgroups
from runra.node.cgroups import Cgroup, Limits
from runra.node.disk import Disk, PlainDisk, open_disk
from runra.node.enforcement import may_go_unheld, refuse_unheld, unheld
from runra.node.identity import give_identity
from runra.node.images import Resolver, RootFilesystem, host
from runra.node.images.store import Images
from runra.node.isolation import Box, BoxVolume, Isolation, walls
from runra.node.launcher import Launcher
from runra.node.mountpoint import check_mount_point
from runra.node.network import host as network
from runra.node.network.policy import NOTHING, policy_of
from runra.node.record import Record
from runra.node.sandbox import Sandbox
from runra.node.settings import IDS_PER_SANDBOX, NodeSettings
from runra.node.shelf import Shelf
from runra.node.snapshots import SnapshotRecord, Snapshots, write_out
from runra.node.volumes import VolumeRecord, Volumes

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
        self._isolations: dict[str, Isolation] = {}
        self._root = os.geteuid() == 0
        self._taken: set[int] = set()
        self._starts = asyncio.Semaphore(settings.concurrent_starts)
        #: Who turns a create's `image` into a root: by its whole name, or by a prefix that ends with a colon.
        self.resolvers: dict[str, Resolver] = {"host": self._host_root}
        self._host_image: RootFilesystem | None = None
        self._network: network.HostNetwork | None = None
        self._no_network = "this server was told to give sandboxes none"
        self.images = Images(settings, self._launcher, events, self._ids)
        #: Waits for images, by the id of the sandbox that is to be made of it.
        self._resolving: dict[str, asyncio.Timeout] = {}
        #: At the start: copies that forks were being made from when the server before this one ended.
        self._unfinished: set[Path] = set()
        self._cleaning: set[asyncio.Task[None]] = set()
        self._trimming: asyncio.Task[None] | None = None

    @property
    def enforced(self) -> dict[str, bool]:
        """Of each limit, whether this machine holds it."""
        # What cannot be enforced of a network policy is refused.
        return {**self._hierarchies.enforced, "disk": self._disk.enforced, "network": True}

    # --- start and stop ---

    async def start(self) -> None:
        """Prepare the data folder, adopt what lives, clean away what does not."""
        self.settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        may_go_unheld(self.settings.allow_unenforced)
        self._isolations = await self._offered()  # before anything is mounted: settings may be wrong
        self._hierarchies = cgroups.detect(self.settings.instance)
        own = self.settings
        self._disk = await open_disk(own.sandboxes_dir, own.disk, self._launcher, own.min_free_mb)
        for folder in (self.settings.records_dir, self.settings.images_dir, self._trash):
            folder.mkdir(mode=0o700, exist_ok=True)
        self._clean_trash()
        self._keep()
        self._tell_unheld()
        self._host_image = await asyncio.to_thread(host.prepare, self.settings.images_dir)
        await self.images.start(self._hierarchies)
        self.images.layers.users.append(self._layers_in_use)
        await self._open_network()
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
            await self._quietly(stale.remove())
        self.images.collect()

    def _keep(self) -> None:
        """Take up what outlives sandboxes: volumes and snapshots."""
        settings, home = self.settings, self.settings.sandboxes_dir
        volumes = Shelf("volume", VolumeRecord, settings.volumes_dir, home / ".volumes", self._throw_away)
        snapshots = Shelf("snapshot", SnapshotRecord, settings.snapshots_dir, home / ".snapshots", self._throw_away)
        volumes.load()
        self._unfinished = snapshots.load()
        self.volumes = Volumes(
            volumes, self._disk, lambda: ((one.id, one.record.volumes) for one in self.sandboxes.values())
        )
        self.snapshots = Snapshots(snapshots, self._disk)
        self.resolvers[SNAPSHOT_IMAGE] = self.snapshots.resolve

    async def _offered(self) -> dict[str, Isolation]:
        await self._launcher.start()
        try:
            return await walls.offered(self._launcher, self.settings)
        except BaseException:
            await self._launcher.close()
            raise

    def _tell_unheld(self) -> None:
        missing, allowed = unheld(self.enforced), may_go_unheld(self.settings.allow_unenforced)
        if missing:
            refused = "sandboxes are refused" if set(missing) - allowed else "a sandbox may take all of it"
            log.warning("limits this machine cannot hold: %s; %s (`runra doctor`)", ", ".join(missing), refused)

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
            await self._quietly(self._disk.close())
        await self._launcher.close()

    async def _trim_disk(self) -> None:
        """Keep the disk's image from growing beyond what sandboxes have in it."""
        while True:
            await asyncio.sleep(self.settings.trim_every)
            try:
                await self._disk.trim()
            except OSError as error:
                log.warning("the disk's image could not be trimmed: %s", error)

    async def _open_network(self) -> None:
        """Give sandboxes a network where this machine lets us; otherwise they have none, and doctor says why."""
        wanted = self.settings.network
        if wanted.mode == "none":
            return
        reason = await asyncio.to_thread(network.obstacle)
        if reason is not None:
            self._no_network = reason
            log.warning("sandboxes get no network: %s", reason)
            return
        where = self.settings
        self._network = network.HostNetwork(wanted, where.data_dir, where.instance, self._publish_egress)
        await self._network.open()

    def _publish_egress(self, sandbox_id: str, organization_id: str, data: dict[str, Any]) -> None:
        self.events.publish("network.egress", sandbox_id, data, organization_id=organization_id)

    async def settled(self, timeout: float = 60.0) -> None:
        """Wait until what terminated sandboxes left is cleaned away."""
        if self._cleaning:
            await asyncio.wait(self._cleaning, timeout=timeout)

    async def _adopt(self, name: str) -> None:
        try:
            record = Record.load(self.settings.records_dir / f"{name}.json")
        except (OSError, ValueError) as error:
            log.warning("sandbox %s cannot be adopted: %s", name, error)
            self.gone[name] = "error"
            await self._discard(name, Cgroup(self._hierarchies, name))
            return
        sandbox = self._sandbox(record)
        try:
            if record.state not in ("running", "paused"):
                raise RunraError("INVALID_STATE", f"it was {record.state} when its server ended")
            if record.root.start_from in self._unfinished:
                raise RunraError("INVALID_STATE", "the fork it belongs to was not finished when its server ended")
            if record.network_index is not None and self._network is None:
                raise RunraError("INTERNAL_ERROR", f"its network cannot be enforced: {self._no_network}")
            await sandbox.adopt()
            if record.network_index is not None and self._network is not None:
                adopted = self._network.adopt(
                    record.id, record.organization_id, record.network_index, record.config.network
                )
                sandbox.connect(self._network, adopted)
        except (RunraError, OSError) as error:
            self.gone[record.id] = "error" if isinstance(error, RunraError) and error.status == 500 else "node_lost"
            log.warning("sandbox %s cannot be adopted: %s", record.id, error)
            await sandbox.abandon(self.gone[record.id])
            return
        self.sandboxes[record.id] = sandbox
        if record.first_id is not None:
            self._taken.add(record.first_id)

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
        if len(self.sandboxes) >= self.settings.max_sandboxes:
            raise RunraError(
                "RESOURCE_EXHAUSTED",
                f"this server holds {len(self.sandboxes)} sandboxes, its most; terminate some or try later",
                details={"maxSandboxes": self.settings.max_sandboxes},
            )
        record = Record(
            id=sandbox_id,
            organization_id=organization_id,
            config=config,
            state="creating",
            isolation=isolation.name,
            created_at=now_iso(),
            volumes=self.volumes.claim(config, organization_id),
            first_id=self._take_ids() if self._root else None,
        )
        sandbox = self._sandbox(record)
        self.sandboxes[sandbox_id] = sandbox
        self.events.publish("sandbox.created", sandbox_id, {"image": config.image}, organization_id=organization_id)
        try:
            async with (
                self._resolved(sandbox, resolve) as record.root,
                asyncio.timeout(self.settings.start_timeout),
                self._starts,
                sandbox.starting(),
            ):
                await self._start(sandbox, isolation)
        except BaseException as error:
            sandbox.cgroup.kill()
            await sandbox.abandon("error" if record.root.overlays else "image")
            if isinstance(error, TimeoutError):
                raise RunraError(
                    "RESOURCE_EXHAUSTED",
                    f"the sandbox did not start within {self.settings.start_timeout:.0f} s; try again",
                ) from None
            raise
        return sandbox

    async def snapshot(self, sandbox_id: str, snapshot_id: str, name: str | None) -> SnapshotInfo:
        """Keep a sandbox's files as they are now, under an id and perhaps a name; it goes on as it was.

        Raises INVALID_STATE unless it is running or paused, RESOURCE_EXHAUSTED when the disk is full.
        """
        source = self._live(sandbox_id)
        await write_out(source, self._isolations[source.record.isolation])
        return await self.snapshots.take(source, snapshot_id, name)

    async def fork(self, sandbox_id: str, ids: Sequence[str]) -> list[Sandbox]:
        """Start copies of a sandbox, one for each id: its files at this moment and its configuration, an identity of
        their own, no processes. All of them run when this returns; when one cannot, none is left and its error is
        raised. INVALID_STATE unless the source is running or paused."""
        source = self._live(sandbox_id)
        await write_out(source, self._isolations[source.record.isolation])
        async with self.snapshots.seed(source) as root:

            @asynccontextmanager
            async def resolve(name: str, organization_id: str) -> AsyncIterator[RootFilesystem]:
                yield root

            work = (self.create(one, source.config, source.organization_id, resolve) for one in ids)
            made = [asyncio.create_task(each, name="fork") for each in work]
            try:
                return await asyncio.gather(*made)
            except BaseException:
                for task in made:
                    task.cancel()
                outcomes = await asyncio.gather(*made, return_exceptions=True)
                await asyncio.gather(*(one.terminate("error") for one in outcomes if isinstance(one, Sandbox)))
                raise

    def _live(self, sandbox_id: str) -> Sandbox:
        try:
            return self.sandboxes[sandbox_id]
        except KeyError:
            raise not_found(sandbox_id) from None

    def _check(self, config: SandboxConfig) -> Isolation:
        refuse_unheld(self.enforced, self.settings.allow_unenforced)
        isolation = walls.choose(self._isolations, config.isolation)
        self._check_egress(config.network, isolation)
        return isolation

    @asynccontextmanager
    async def _resolved(self, sandbox: Sandbox, resolve: Resolver | None) -> AsyncIterator[RootFilesystem]:
        """The root its image stands for, whose layers stay while this is entered. An image may take minutes to come:
        whoever terminates the sandbox meanwhile ends the wait as well."""
        name, organization_id = sandbox.config.image, sandbox.organization_id
        resolve = (
            resolve or self.resolvers.get(name) or self.resolvers.get(name.partition(":")[0] + ":") or self.images.root
        )
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(None) as self._resolving[sandbox.id]:
                    root = await held.enter_async_context(resolve(name, organization_id))
            except TimeoutError:
                raise RunraError(
                    "INVALID_STATE", f"sandbox {sandbox.id} was terminated while its image was being fetched"
                ) from None
            finally:
                del self._resolving[sandbox.id]
            yield root

    @asynccontextmanager
    async def _host_root(self, name: str, organization_id: str) -> AsyncIterator[RootFilesystem]:
        assert self._host_image is not None
        yield self._host_image

    def _check_egress(self, asked: Network | None, isolation: Isolation) -> None:
        if self._network is not None and isolation.networked:
            self._network.policy_of(asked)
        elif asked is not None and (asked.secrets or (asked.egress and policy_of(asked.egress) != NOTHING)):
            why = self._no_network if self._network is None else f"not behind {isolation.name}"
            raise RunraError(
                "INVALID_CONFIG",
                f"this server gives the sandbox no network ({why}): leave network.egress out, or ask for "
                '{"default": "deny"} with nothing allowed',
                details={"field": "network.egress"},
            )

    @asynccontextmanager
    async def _placed(self, sandbox: Sandbox, isolation: Isolation) -> AsyncIterator[network.Place | None]:
        """The network a sandbox starts in, its policy in force already; None where there is none."""
        if self._network is None or not isolation.networked:
            yield None
            return
        record = sandbox.record
        place = await self._network.take()
        try:
            guest = await self._network.admit(record.id, record.organization_id, place, record.config.network)
            record.network_index = place.index
            sandbox.connect(self._network, guest)
            yield place
        finally:
            os.close(place.netns)

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

    async def _start(self, sandbox: Sandbox, isolation: Isolation) -> None:
        record, folder = sandbox.record, sandbox.folder
        limits = record.config.resources
        if record.root.start_from is None:
            self._disk.make(folder, limits.disk_mb)
        else:
            await self._disk.clone(record.root.start_from, folder, limits.disk_mb)
            record.inherited_bytes = max(0, record.root.start_bytes - await self._disk.used(folder))
        record.save(sandbox.record_path)
        sandbox.cgroup.create(Limits(limits.cpu, limits.memory_mb, isolation.host_processes(self.settings.max_pids)))
        async with self._placed(sandbox, isolation) as place:
            with _listen(sandbox.socket_path) as listen:
                box = Box(
                    id=record.id,
                    folder=folder,
                    root=record.root,
                    cgroup=sandbox.cgroup,
                    listen=listen,
                    memory_mb=limits.memory_mb,
                    first_id=record.first_id,
                    netns=place.netns if place else None,
                    volumes=tuple(
                        BoxVolume(self.volumes.folder(one.id), one.path, one.read_only) for one in record.volumes
                    ),
                )
                isolation.prepare(box)
                give_identity(folder / "upper0", record.id, place.gateway if place else None)
                for volume in box.volumes:
                    check_mount_point(record.root, folder, volume.path)
                pid = await isolation.start(box)
        await sandbox.started(pid)

    def _sandbox(self, record: Record) -> Sandbox:
        return Sandbox(
            record,
            self.settings.sandboxes_dir / record.id,
            self.settings.records_dir,
            Cgroup(self._hierarchies, record.id),
            events=self.events,
            enforced=self.enforced,
            can_freeze=self._hierarchies.can_freeze,
            max_streams=self.settings.max_streams,
            on_change=self._changed,
            on_gone=self._gone,
        )

    def _take_ids(self) -> int:
        # Anywhere in the range: two servers on one machine then hardly ever hand out the same ids.
        for _ in range(1000):
            slot = random.randrange(self.settings.id_ranges)  # noqa: S311 - no secret
            first = self.settings.first_id + slot * IDS_PER_SANDBOX
            if first not in self._taken:
                self._taken.add(first)
                return first
        raise RunraError("RESOURCE_EXHAUSTED", "no free range of user ids; terminate some sandboxes")

    @contextlib.contextmanager
    def _ids(self) -> Iterator[int | None]:
        """A range of ids for work behind a wall of its own; None where there is only our own."""
        if not self._root:
            yield None
            return
        first = self._take_ids()
        try:
            yield first
        finally:
            self._taken.discard(first)

    def _layers_in_use(self) -> Iterator[Path]:
        for sandbox in self.sandboxes.values():
            yield from sandbox.record.root.layers
        yield from self.snapshots.layers

    async def _changed(self, sandbox: Sandbox) -> None:
        if self.on_change is not None:
            await self.on_change(sandbox)

    # --- clean-up ---

    @property
    def _trash(self) -> Path:
        """On the same file system as the sandboxes: moving a dead one's folder aside is one rename."""
        return self.settings.sandboxes_dir / ".trash"

    def _gone(self, sandbox: Sandbox) -> None:
        self.sandboxes.pop(sandbox.id, None)
        self.images.released()
        if (waiting := self._resolving.get(sandbox.id)) is not None:
            waiting.reschedule(0)
        if sandbox.record.first_id is not None:
            self._taken.discard(sandbox.record.first_id)
        self._clean(self._discard(sandbox.id, sandbox.cgroup))
        if self._network is not None and sandbox.guest is not None:
            self._clean(self._quietly(self._network.release(sandbox.guest)))

    async def _discard(self, name: str, cgroup: Cgroup) -> None:
        cgroup.thaw()
        await self._quietly(cgroup.remove())
        aside = self._trash / f"{name}-{secrets.token_hex(4)}"
        with contextlib.suppress(FileNotFoundError):
            (self.settings.sandboxes_dir / name).rename(aside)
            await self._delete(aside)
        # Last: as long as something is left, the next start finds it by its record.
        for path in self.settings.records_dir.glob(f"{name}.*"):
            path.unlink(missing_ok=True)

    def _throw_away(self, folder: Path) -> None:
        """Move a folder to the trash, and delete it off the path; a crash in between is made good at the next start."""
        aside = self._trash / f"{folder.name}-{secrets.token_hex(4)}"
        folder.rename(aside)
        self._clean(self._delete(aside))

    def _clean_trash(self) -> None:
        for folder in self._trash.iterdir():
            self._clean(self._delete(folder))

    async def _delete(self, folder: Path) -> None:
        await self._quietly(self._disk.remove(folder))

    def _clean(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="clean-up")
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)

    @staticmethod
    async def _quietly(work: Awaitable[None]) -> None:
        """What cannot be cleaned now is tried again at the next start; the log says so."""
        try:
            await work
        except (RunraError, OSError, TimeoutError, asyncio.CancelledError) as error:
            log.warning("left for the next start: %s", error)


def _listen(path: Path) -> socket.socket:
    """The agent's listening socket. Its folder is opened first: a socket address holds 108 bytes, a path may not."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        listening.bind(f"/proc/self/fd/{folder}/{path.name}")
        path.chmod(0o600)
        listening.listen(8)
    except BaseException:
        listening.close()
        raise
    finally:
        os.close(folder)
    return listening
