"""One pull: from a reference to layers that are here, told on the event stream as it goes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from io import FileIO
from typing import Any, Final
from weakref import WeakValueDictionary

from runra.contract import Credentials, Reference
from runra.errors import RunraError
from runra.events import EventLog, EventType, now_iso
from runra.ids import new_id
from runra.node.disk import promised_mb
from runra.node.images.download import Download
from runra.node.images.layers import EVERYBODY, Layer, Layers, layer_id
from runra.node.images.manifest import INDEXES, Config, Descriptor, Index, Manifest, check, choose, parse
from runra.node.images.parts import Parts
from runra.node.images.record import Image, image_of
from runra.node.images.registry import Registry
from runra.node.settings import NodeSettings

#: Layers of one image that are fetched at once.
_AT_ONCE: Final = 3
#: Seconds between two `image.progress` events of one pull.
_TELL_EVERY: Final = 0.5


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to pull, for whom, and whether it may come from an address that is not public."""

    reference: Reference
    scope: str
    credentials: Credentials | None
    private: bool

    @property
    def key(self) -> tuple[str, str, str, bool]:
        """The same for two that are one pull. Another login is another pull: it may be the wrong one."""
        login = ""
        if self.credentials is not None:
            secret = f"{self.credentials.username}\0{self.credentials.password.get_secret_value()}"
            login = hashlib.sha256(secret.encode()).hexdigest()
        return str(self.reference), self.scope, login, self.private


class Pull:
    """One pull under way: how far it is, and who wants to hear of it. `task` ends with its image."""

    task: asyncio.Task[Image]

    def __init__(self, wanted: Wanted, events: EventLog, asker: str) -> None:
        self.id = new_id("pull")
        self.wanted = wanted
        self.reference = wanted.reference
        #: Who asked first; all organizations that asked for it.
        self.asker = asker
        self.organizations = {asker}
        self.total_bytes = 0
        self.layers = 0
        self.layers_done = 0
        #: What the layers take that are here, unpacked.
        self.bytes = 0
        self._done: dict[str, int] = {}
        self._events = events

    @property
    def done_bytes(self) -> int:
        return sum(self._done.values())

    def have(self, digest: str, count: int) -> None:
        self._done[digest] = count

    def tell(self, kind: EventType, **data: Any) -> None:
        data = {"reference": self.reference.short, "pullId": self.id, **data}
        for organization_id in self.organizations:
            self._events.publish(kind, "", data, organization_id=organization_id)

    async def keep_telling(self) -> None:
        """Whenever something has changed, until cancelled."""
        told: dict[str, Any] = {}
        while True:
            now = {
                "doneBytes": self.done_bytes,
                "totalBytes": self.total_bytes,
                "layersDone": self.layers_done,
                "layers": self.layers,
            }
            if now != told:
                self.tell("image.progress", **now)
                told = now
            await asyncio.sleep(_TELL_EVERY)


class Puller:
    """Fetches images from registries. A layer that two images have is unpacked once, and fetched once from a registry,
    also at the same time. From two registries each fetches it itself: one that dawdles holds up nobody else."""

    def __init__(
        self,
        layers: Layers,
        parts: Parts,
        settings: NodeSettings,
        make_room: Callable[[], object],
        budget: Callable[[], int],
    ) -> None:
        self._layers = layers
        self._parts = parts
        self._settings = settings
        #: Deletes what nobody needs, of a disk that has no room for a blob.
        self._make_room = make_room
        #: Bytes that all images of creates may take.
        self._budget = budget
        self._busy: WeakValueDictionary[tuple[str, ...], asyncio.Lock] = WeakValueDictionary()

    async def pull(self, pull: Pull, keep: Callable[[Image], Awaitable[Image]]) -> Image:
        """Fetch it, and hand its record to `keep` while its layers cannot be deleted. Returns what `keep` does."""
        wanted, reference = pull.wanted, pull.reference
        what = f"image {reference.short}"
        telling = asyncio.create_task(pull.keep_telling(), name="image progress")
        try:
            async with (
                Registry(reference, self._settings.registries, wanted.credentials, private=wanted.private) as registry,
                AsyncExitStack() as held,
            ):
                digest, manifest = await self._manifest(registry, reference, what)
                config = parse(Config, await registry.config(manifest.config), f"the config of {what}")
                check(manifest, config, what)
                blobs = {layer.digest: layer.size for layer in manifest.layers}
                pull.total_bytes, pull.layers = sum(blobs.values()), len(manifest.layers)
                fits = self._bound(wanted, what)
                fits(pull.total_bytes)
                unknown: list[str | None] = [None] * len(manifest.layers)
                diff_ids = list(config.root_fs.diff_ids) or unknown
                at_once = asyncio.Semaphore(_AT_ONCE)
                free = self.leaves(private=wanted.private)

                async def one(blob: Descriptor, diff_id: str | None) -> Layer:
                    async with at_once:
                        layer = await self._layer(registry, pull, blob, diff_id, held, free)
                    pull.layers_done += 1
                    pull.bytes += layer.bytes
                    fits(pull.bytes)
                    return layer

                pairs = zip(manifest.layers, diff_ids, strict=True)
                layers = await together([one(blob, diff_id) for blob, diff_id in pairs])
                joined = await held.enter_async_context(self._layers.joined(layers, wanted.scope, pull.asker))
                return await keep(
                    image_of(
                        config,
                        reference=reference,
                        scope=wanted.scope,
                        digest=digest,
                        layers=[layer.id for layer in joined],
                        size=pull.bytes,
                        source="registry",
                        by_create=not wanted.private,
                        added_at=now_iso(),
                    )
                )
        finally:
            telling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await telling

    def _bound(self, wanted: Wanted, what: str) -> Callable[[int], None]:
        """A check that raises INVALID_REQUEST or RESOURCE_EXHAUSTED for more bytes than the image may have."""
        most, budget = self._settings.max_image_mb << 20, self._budget()

        def fits(count: int) -> None:
            if count > most:
                raise RunraError("INVALID_REQUEST", f"{what} is larger than the {most >> 20} MB allowed here")
            if count > budget and not wanted.private:
                raise RunraError(
                    "RESOURCE_EXHAUSTED",
                    f"{what} is larger than the {budget >> 20} MB that all images fetched by creates may take here "
                    "(`runra serve --max-images-mb`); an administrator gets it with `runra image pull`",
                    retryable=self._settings.max_images_mb is None,  # then it is what the disk has
                )

        return fits

    def leaves(self, *, private: bool) -> int:
        """MB that a pull leaves free. An administrator's own may take what the sandboxes' disk was to have."""
        return self._settings.min_free_mb + (0 if private else promised_mb(self._settings.sandboxes_dir))

    async def _manifest(self, registry: Registry, reference: Reference, what: str) -> tuple[str, Manifest]:
        """The manifest for this machine, and the digest the reference stands for."""
        data, kind, digest = await registry.manifest(reference.digest or reference.tag, reference.digest or None)
        if kind in INDEXES or b'"manifests"' in data:
            chosen = choose(parse(Index, data, f"the index of {what}"), what)
            data, _, _ = await registry.manifest(chosen.digest, chosen.digest)
        if b'"fsLayers"' in data:
            raise RunraError(
                "INVALID_REQUEST", f"{what} is in Docker's first format, which no engine reads; rebuild it"
            )
        return digest, parse(Manifest, data, f"the manifest of {what}")

    async def _layer(
        self,
        registry: Registry,
        pull: Pull,
        blob: Descriptor,
        diff_id: str | None,
        held: AsyncExitStack,
        free: int,
    ) -> Layer:
        scope, host = pull.wanted.scope, pull.reference.host
        lock = self._busy.setdefault((scope, host, blob.digest), asyncio.Lock())
        async with lock:
            held.enter_context(self._layers.pinned([layer_id(blob.digest)]))
            layer = self._layers.find(blob.digest)
            if layer is not None and layer.open_to(scope):
                pull.have(blob.digest, blob.size)
                return layer
            with self._parts.part(scope, host, blob.digest) as part:
                about = os.statvfs(self._settings.images_dir)
                if about.f_bavail * about.f_frsize - blob.size < free << 20:
                    self._make_room()
                download = Download(part, blob, free, lambda count: pull.have(blob.digest, count))
                file = await download.fetch(registry)
                try:
                    return await self.have(file, blob.digest, diff_id, scope, pull.asker, free)
                finally:
                    file.close()
                    part.unlink(missing_ok=True)

    async def have(
        self,
        file: FileIO,
        digest: str,
        diff_id: str | None,
        scope: str,
        asker: str = EVERYBODY,
        free: int | None = None,
    ) -> Layer:
        """The layer of a blob that has come whole for `scope`; `asker` is the organization whose turn its unpacking
        takes, `free` the MB that it leaves. The caller has pinned it."""
        lock = self._busy.setdefault(("unpack", digest), asyncio.Lock())
        # The turn first: who waits for one, behind slow layers of its own, must keep nobody from this layer.
        async with self._layers.turn(asker), lock:
            layer = self._layers.find(digest)
            if layer is None:
                return await self._layers.unpack(file, digest, diff_id, scope, free)
            self._layers.note(layer, scope)
            return layer


async def together(works: list[Coroutine[Any, Any, Layer]]) -> list[Layer]:
    """All of them at once; the first failure ends the others, and is raised as it is."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
