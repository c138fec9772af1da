"""An image made of a sandbox's files: what it wrote becomes one more layer on those it was made of."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from runra.contract import Reference
from runra.errors import RunraError
from runra.events import now_iso
from runra.node.images import RootFilesystem
from runra.node.images.manifest import MOST_LAYERS, host_platform
from runra.node.images.record import Image
from runra.node.images.store import Images
from runra.node.images.unpack import disk_full

#: What a sandbox got of its own, and no other may have: its names and its machine id.
_IDENTITY: Final = ("hostname", "hosts", "machine-id")


@contextlib.asynccontextmanager
async def in_time(seconds: float) -> AsyncIterator[None]:
    """Ends a commit that takes longer, with INTERNAL_ERROR (504)."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise RunraError(
            "INTERNAL_ERROR",
            f"the sandbox's files were not copied within {seconds:.0f} s; try again, or raise --pull-timeout",
            status=504,
            retryable=True,
        ) from None


async def commit(
    images: Images,
    root: RootFilesystem,
    upper: Path,
    reference: Reference,
    *,
    base: Image | None,
    scope: str,
    step: bool,
) -> Image:
    """Keep `upper` (nothing writes to it meanwhile) over the layers of `root` as an image. `base` is the image of
    that root, if it still is one: then its settings go on."""
    lower = root.overlays[0].lower if len(root.overlays) == 1 else ()
    layers = [path.name for path in reversed(lower) if path.parent == images.layers.path("x").parent]
    if not layers or len(layers) != len(lower) - 2:
        raise RunraError(
            "INVALID_STATE",
            "this sandbox is not made of an image, so its files alone make none; create it from an image (not `host`)",
        )
    if len(layers) >= MOST_LAYERS:
        raise RunraError("INVALID_REQUEST", f"an image has at most {MOST_LAYERS} layers; build from an earlier step")
    size = await asyncio.to_thread(bytes_below, upper)
    about = os.statvfs(images.settings.images_dir)
    if about.f_bavail * about.f_frsize - size < images.settings.min_free_mb << 20:
        raise disk_full(images.settings.min_free_mb)
    name = secrets.token_hex(32)
    with images.layers.pinned([*layers, name[:32]]):
        async with images.layers.scratch() as scratch:
            fresh = scratch / "layer"
            fresh.mkdir()
            fresh.chmod(0o755)
            await images.unpacker.copy(upper, fresh)
            _anonymous(fresh)
            layer = images.layers.keep(fresh, name[:32], f"sha256:{name}", size, scope)
        before = [found.bytes for one in layers if (found := images.layers.get(one)) is not None]
        settings = base.model_dump(include={"user", "workdir", "entrypoint", "cmd", "labels"}) if base else {}
        image = Image(
            **settings,
            reference=str(reference),
            scope=scope,
            digest=layer.digest,
            platform=base.platform if base else str(host_platform()),
            env=dict(root.env),
            layers=[*layers, layer.id],
            bytes=sum(before) + size,
            source="commit",
            step=step,
            created_at=now_iso(),
            added_at=now_iso(),
        )
        await images.keep(image)
        return image


def _anonymous(layer: Path) -> None:
    """Take the sandbox's identity out. Its /etc may be a link to ours: it is not followed."""
    with contextlib.suppress(OSError):
        fd = os.open(layer / "etc", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for name in _IDENTITY:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=fd)
        finally:
            os.close(fd)


def bytes_below(folder: Path) -> int:
    """What a folder's files take on disk, whatever links lie in it."""
    total = 0
    for _, folders, files, fd in os.fwalk(folder, follow_symlinks=False):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):
                total += os.stat(name, dir_fd=fd, follow_symlinks=False).st_blocks * 512
    return total
