"""The images that creates fetched are a cache: how much they may take, and which of them go when they take more."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from runra.node.images.layers import Layers
from runra.node.images.parts import Parts
from runra.node.images.record import Image
from runra.node.settings import NodeSettings

#: Images in the cache, and bytes of their records, all of which are in memory as well.
MOST_IMAGES = 1000
MOST_RECORDS = 64 << 20


class Cache:
    """`leaves` says how many MB a create leaves free on the disk."""

    def __init__(self, settings: NodeSettings, layers: Layers, parts: Parts, leaves: Callable[[], int]) -> None:
        self._settings = settings
        self._layers = layers
        self._parts = parts
        self._leaves = leaves
        self.records = settings.images_dir / "names"

    def budget(self, images: Iterable[Image]) -> int:
        """Bytes that the cache, which `images` are, may take."""
        if self._settings.max_images_mb is not None:
            return self._settings.max_images_mb << 20
        about = os.statvfs(self.records)
        room = about.f_bavail * about.f_frsize - (self._leaves() << 20)
        return (self.taken(images) + self._parts.bytes + max(0, room)) // 2

    def taken(self, images: Iterable[Image]) -> int:
        """Bytes of their records and layers, a layer that several have counted once."""
        layers: set[str] = set()
        records = 0
        for image in images:
            layers.update(image.layers)
            records += image.record_bytes
        return records + sum(found.bytes for layer in layers if (found := self._layers.get(layer)) is not None)

    def surplus(self, images: Iterable[Image], spared: Callable[[Image], bool], busy: set[str]) -> list[Image]:
        """Those that must go, unused for longest first. `busy` are layers that would stay all the same."""
        left = {image.file: image for image in images}
        budget, going = self.budget(left.values()), []
        for image in sorted(left.values(), key=self.used_at):
            crowded = len(left) > MOST_IMAGES or sum(one.record_bytes for one in left.values()) > MOST_RECORDS
            if not crowded and self.taken(left.values()) <= budget:
                break
            if spared(image) or (not crowded and image.layers and set(image.layers) <= busy):
                continue
            going.append(left.pop(image.file))
        return going

    def used_at(self, image: Image) -> float:
        """When a sandbox was last made of it, in seconds since the epoch."""
        try:
            return (self.records / image.file).stat().st_mtime
        except OSError:
            return 0.0
