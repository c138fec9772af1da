"""The images of this node: found by name, pulled when they are not here, deleted when nobody needs them.

Who may use an image: `scope` EVERYBODY for what was pulled without a login (or shared on purpose), else the one
organization that pulled, imported or made it. An organization's own image comes before everybody's of the same name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from runra.contract import Credentials, ImageInfo, ImagePulling, ImagesPruned, Reference
from runra.errors import RunraError
from runra.events import EventLog, now_iso
from runra.node.cgroups import Hierarchies
from runra.node.images import Overlay, RootFilesystem, skeleton
from runra.node.images.cache import Cache
from runra.node.images.layers import EVERYBODY, Layers, write_whole
from runra.node.images.parts import Parts
from runra.node.images.pull import Puller, Wanted
from runra.node.images.pulls import Pulls
from runra.node.images.record import Image
from runra.node.images.unpack import TakeIds, Unpacker
from runra.node.launcher import Launcher
from runra.node.settings import NodeSettings

log = logging.getLogger(__name__)

#: Seconds after which what is left of a broken pull goes when the server starts.
_PART_AGE: Final = 24 * 3600.0


def reference_of(name: str) -> Reference:
    """Raises INVALID_REQUEST for what is no image's name."""
    try:
        return Reference.parse(name)
    except ValueError as error:
        raise RunraError("INVALID_REQUEST", f"image {error}", details={"field": "image", "value": name[:255]}) from None


class Images:
    """Names to images, and the pulls under way. `start` before use."""

    def __init__(self, settings: NodeSettings, launcher: Launcher, events: EventLog, take_ids: TakeIds) -> None:
        self.settings = settings
        self.unpacker = Unpacker(launcher, settings, take_ids)
        self.layers = Layers(settings.images_dir, launcher, self.unpacker)
        self.parts = Parts(settings.images_dir / "parts")
        self.puller = Puller(
            self.layers, self.parts, settings, self.make_room, lambda: self.cache.budget(self._by_creates())
        )
        self.events = events
        self.cache = Cache(settings, self.layers, self.parts, lambda: self.puller.leaves(private=False))
        self._records = self.cache.records
        self._known: dict[tuple[str, str], Image] = {}
        #: Names whose pull a create waits for: what has come stays until it takes it.
        self._awaited: Counter[str] = Counter()
        self.pulls = Pulls(self.puller, events, settings.pull_timeout, self.keep, self._failed)
        self._skeleton: tuple[Path, Path] | None = None

    async def start(self, hierarchies: Hierarchies) -> None:
        self.unpacker.hierarchies = hierarchies
        self._records.mkdir(mode=0o700, exist_ok=True)
        self._skeleton = await asyncio.to_thread(skeleton.prepare, self.settings.images_dir)
        self.layers.floor = (self._skeleton[1],)
        await self.layers.load()
        for path in self._records.glob("*.json"):
            try:
                image = Image.model_validate_json(path.read_text())
            except ValueError as error:
                log.warning("image record %s is removed, it cannot be read: %s", path.name, error)
                path.unlink()
                continue
            if all(self.layers.get(layer) for layer in image.layers):
                self._known[image.scope, image.reference] = image
            else:
                log.warning("image %s is removed: a layer of it is gone", image.reference)
                path.unlink()
        self.parts.drop(age=_PART_AGE)

    async def close(self) -> None:
        """End the pulls; what they fetched is taken up by the next."""
        await self.pulls.close()
        await self.layers.settled()

    # --- finding ---

    def find(self, reference: Reference, organization_id: str) -> Image | None:
        for scope in (organization_id, EVERYBODY):
            image = self._known.get((scope, str(reference)))
            if image is not None:
                return image
        return None

    def info(self, name: str, organization_id: str, *, administrator: bool = False) -> ImageInfo:
        """Raises INVALID_REQUEST (404) for what is not here, or not this organization's to know."""
        reference = reference_of(name)
        image = self.find(reference, organization_id)
        if image is not None and (administrator or image.shown_to(organization_id)):
            return self._info(image)
        for pull in self.pulls:
            if pull.reference == reference and organization_id in pull.organizations:
                return ImageInfo(
                    reference=reference.short,
                    state="pulling",
                    done_bytes=pull.done_bytes,
                    total_bytes=pull.total_bytes,
                )
        raise no_image(reference)

    def listed(self, organization_id: str, *, steps: bool = False, administrator: bool = False) -> list[ImageInfo]:
        """What an organization may use, the newest first; of what other organizations' creates fetched, only an
        administrator is told."""
        found = [image for (scope, _), image in self._known.items() if scope in (organization_id, EVERYBODY)]
        found = [image for image in found if administrator or image.shown_to(organization_id)]
        found.sort(key=lambda image: (image.added_at, image.reference), reverse=True)
        return [self._info(image) for image in found if steps or not image.step]

    def _info(self, image: Image) -> ImageInfo:
        used = datetime.fromtimestamp(self.cache.used_at(image), UTC)
        return image.info(used.isoformat(timespec="milliseconds").replace("+00:00", "Z"))

    @asynccontextmanager
    async def root(self, name: str, organization_id: str) -> AsyncIterator[RootFilesystem]:
        """The root an image's name stands for, pulled first when it is not here. Its layers stay while entered."""
        reference = reference_of(name)
        image = self.find(reference, organization_id) or await self._fetched(reference, organization_id)
        with self.layers.pinned(image.layers):
            if not image.shown_to(organization_id):
                image.asked_by.append(organization_id)
                write_whole(self._records / image.file, image.model_dump_json())
            with contextlib.suppress(OSError):
                os.utime(self._records / image.file)
            yield self.root_of(image)

    async def _fetched(self, reference: Reference, organization_id: str) -> Image:
        """Pull it for a create: a tenant's word, so without a login, and only from where anybody could."""
        if not self.settings.pull_on_create:
            raise RunraError(
                "INVALID_REQUEST",
                f"no image {reference.short} on this server, which fetches none by itself; an administrator gets "
                "it with `runra image pull`",
                details={"field": "image", "value": reference.short},
            )
        name = str(reference)
        self._awaited[name] += 1
        try:
            pull = self.pulls.begin(Wanted(reference, EVERYBODY, None, private=False), organization_id)
            await asyncio.shield(pull.task)
        finally:
            self._awaited[name] -= 1
            self._awaited += Counter()  # forgets what nobody waits for
        image = self.find(reference, organization_id)
        if image is None:  # deleted by name in the same moment
            raise no_image(reference)
        return image

    def root_of(self, image: Image) -> RootFilesystem:
        assert self._skeleton is not None, "start() makes it"
        top, base = self._skeleton
        layers = [self.layers.path(layer) for layer in reversed(image.layers)]
        return RootFilesystem((Overlay("/", (top, *layers, base)),), image.env)

    # --- pulling ---

    def begin(
        self, name: str, organization_id: str, credentials: Credentials | None, shared: bool | None
    ) -> ImagePulling:
        """An administrator's pull, in the background: it may reach any address, and refreshes what is here."""
        reference = reference_of(name)
        everybody = credentials is None if shared is None else shared
        scope = EVERYBODY if everybody else organization_id
        pull = self.pulls.begin(Wanted(reference, scope, credentials, private=True), organization_id)
        return ImagePulling(reference=reference.short, pull_id=pull.id)

    async def import_archive(
        self, chunks: AsyncIterable[bytes], name: str | None, organization_id: str, *, shared: bool
    ) -> ImageInfo:
        """Take an image from a file, as it comes: an OCI layout, `docker save`, or a root file system."""
        # Imported here: an archive keeps its image through this very class.
        from runra.node.images.archive import import_archive

        try:
            image = await import_archive(self, chunks, name, EVERYBODY if shared else organization_id)
        except RunraError as error:
            self._failed(error)
            raise
        info = self._info(image)
        self.events.publish("image.ready", "", {"reference": info.reference}, organization_id=organization_id)
        return info

    async def commit(
        self, sandbox: RootFilesystem, upper: Path, name: str, made_of: str, organization_id: str, **how: bool
    ) -> ImageInfo:
        """An image of a sandbox's files; nothing in it moves meanwhile. `made_of` is the image it was created from."""
        from runra.node.images.commit import commit, in_time

        reference = reference_of(name)
        base = None
        with contextlib.suppress(ValueError):
            base = self.find(Reference.parse(made_of), organization_id)
        if base is not None and self.root_of(base).overlays != sandbox.overlays:
            base = None  # the name means something else by now
        scope = EVERYBODY if how["shared"] else organization_id
        async with in_time(self.settings.pull_timeout):
            image = await commit(self, sandbox, upper, reference, base=base, scope=scope, step=how["step"])
        return self._info(image)

    async def tag(self, image: str, name: str, organization_id: str, *, shared: bool) -> ImageInfo:
        """Give an image that is here another name, of the same layers. Raises INVALID_REQUEST (404)."""
        source, reference = reference_of(image), reference_of(name)
        found = self.find(source, organization_id)
        if found is None:
            raise no_image(source)
        fresh = {"reference": str(reference), "scope": EVERYBODY if shared else organization_id, "added_at": now_iso()}
        named = found.model_copy(update={**fresh, "step": False, "by_create": False})
        with self.layers.pinned(named.layers):
            return self._info(await self.keep(named))

    async def keep(self, image: Image) -> Image:
        """Make a name mean this image from now on, and return it. Its layers are here and held by the caller.

        What a create fetched takes no name from what an administrator brought meanwhile: it returns that one then."""
        await self.layers.flush()
        if image.by_create and (there := self._known.get((image.scope, image.reference))) is not None:
            return there
        write_whole(self._records / image.file, image.model_dump_json())
        self._known[image.scope, image.reference] = image
        if image.by_create:
            self._evict(image)
        self.collect()
        return image

    # --- deleting ---

    async def delete(self, name: str, organization_id: str) -> ImageInfo:
        """Forget a name: the organization's own image, else everybody's. Sandboxes made from it live on."""
        reference = reference_of(name)
        image = self.find(reference, organization_id)
        if image is None:
            raise no_image(reference)
        info = self._info(image)
        self._forget(image)
        self.collect()
        self.events.publish("image.deleted", "", {"reference": info.reference}, organization_id=organization_id)
        return info

    def _forget(self, image: Image) -> None:
        del self._known[image.scope, image.reference]
        (self._records / image.file).unlink(missing_ok=True)

    def _evict(self, fresh: Image | None = None) -> None:
        """What creates brought goes, until it takes what it may: what is left of broken pulls, then images, those
        unused for longest first, but not `fresh`."""
        fetched = self._by_creates()
        left = max(0, self.cache.budget(fetched) - self.cache.taken(fetched))
        if self.layers.unnamed(self._named()) + self.parts.bytes > left:
            self.collect()
            self.parts.drop(keep=left)

        def spared(image: Image) -> bool:
            return image is fresh or image.reference in self._awaited

        for image in self.cache.surplus(fetched, spared, self._busy()):
            log.info("image %s makes room for others", image.reference)
            self._forget(image)

    def _by_creates(self) -> list[Image]:
        return [image for image in self._known.values() if image.by_create]

    def _busy(self) -> set[str]:
        return set().union(*self.layers.roots())

    def collect(self) -> int:
        """Delete layers that no image, no sandbox and nobody else names."""
        return self.layers.collect(self._named())

    def _named(self) -> set[str]:
        return {layer for image in self._known.values() for layer in image.layers}

    def make_room(self) -> int:
        """Delete what nobody needs, what is left of broken pulls as well. Returns how many bytes that frees."""
        return self.collect() + self.parts.drop()

    def _failed(self, error: RunraError) -> None:
        """What a pull or import that failed left is kept for another try, within bounds, and not on a full disk."""
        if error.code == "RESOURCE_EXHAUSTED":
            self.make_room()
        else:
            self._evict()

    def released(self) -> None:
        """Somebody stopped using layers."""
        if self.layers.awaited:
            self.collect()

    async def prune(self, organization_id: str, unused_for_ms: int) -> ImagesPruned:
        """Forget images that no sandbox is made of and none was for so long, and what is left of broken pulls. Layers
        shared with what is used stay."""
        used = self.layers.roots()
        gone = []
        for (scope, _), image in list(self._known.items()):
            if scope not in (organization_id, EVERYBODY) or frozenset(image.layers) in used:
                continue
            if image.reference in self._awaited:
                continue
            if time.time() - self.cache.used_at(image) < unused_for_ms / 1000:
                continue
            self._forget(image)
            gone.append(Reference.parse(image.reference).short)
        return ImagesPruned(references=sorted(gone), freed_bytes=self.make_room())


def no_image(reference: Reference) -> RunraError:
    return RunraError(
        "INVALID_REQUEST",
        f"no image {reference.short} on this server; list them with `runra image ls`",
        details={"reference": reference.short},
        status=404,
    )
