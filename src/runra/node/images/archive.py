"""Images that come as a file: OCI image layouts, `docker save`, and tars of a whole root file system.

The file is hostile like a layer: it is unpacked behind the same wall, into plain files and folders, and every content
is checked against the digest that names it before it counts for anything.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import stat
from collections.abc import AsyncIterable
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Any, Final

from runra.contract import Reference
from runra.contract.images import ImageSource
from runra.errors import RunraError
from runra.events import now_iso
from runra.node.images.layers import EVERYBODY, Layer, layer_id
from runra.node.images.manifest import (
    INDEXES,
    MOST_CONFIG,
    MOST_MANIFEST,
    Config,
    Descriptor,
    Index,
    Manifest,
    SavedImages,
    check,
    choose,
    digest_of,
    fitting,
    parse,
)
from runra.node.images.record import Image, image_of
from runra.node.images.store import Images, reference_of
from runra.node.images.unpack import disk_full

_SOURCE: Final[ImageSource] = "archive"
#: What OCI layouts and `docker save` call an image.
_NAMES: Final = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


async def import_archive(images: Images, chunks: AsyncIterable[bytes], name: str | None, scope: str) -> Image:
    """Take an archive as it comes and keep the one image in it, under `name` or the name it brings.

    Raises INVALID_REQUEST for what is no image, RESOURCE_EXHAUSTED when the disk is full.
    """
    reference = reference_of(name) if name else None
    async with images.layers.scratch() as scratch:
        file = FileIO(os.open(scratch / "upload", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "r+")
        with file:
            digest = await _receive(images, file, chunks)
            try:
                async with asyncio.timeout(images.settings.pull_timeout):
                    kind = await images.unpacker.kind(file, scratch)
                    if kind == "rootfs":
                        return await _root_fs(images, file, digest, reference, scope)
                    folder = scratch / "archive"
                    folder.mkdir()
                    await images.unpacker.archive(file, folder)
                    opened = _Opened(folder)
                    if kind == "oci":
                        return await _layout(images, opened, reference, scope)
                    return await _saved(images, opened, reference, scope)
            except TimeoutError:
                raise RunraError(
                    "INTERNAL_ERROR", f"the archive was not unpacked within {images.settings.pull_timeout:.0f} s"
                ) from None


async def _receive(images: Images, file: FileIO, chunks: AsyncIterable[bytes]) -> str:
    settings = images.settings
    hashed, size, looked = hashlib.sha256(), 0, 0

    def take(data: bytes) -> None:
        hashed.update(data)
        left = memoryview(data)
        while left:
            left = left[file.write(left) or 0 :]

    try:
        async for chunk in chunks:
            size += len(chunk)
            if size > settings.max_image_mb << 20:
                raise RunraError(
                    "INVALID_REQUEST", f"the archive is larger than the {settings.max_image_mb} MB allowed"
                )
            if size - looked > 32 << 20:
                looked = size
                about = os.fstatvfs(file.fileno())
                if about.f_bavail * about.f_frsize < settings.min_free_mb << 20:
                    raise disk_full(settings.min_free_mb)
            await asyncio.to_thread(take, chunk)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(settings.min_free_mb) from None
        raise
    if not size:
        raise RunraError("INVALID_REQUEST", "the archive is empty; send a tar file as the body")
    return f"sha256:{hashed.hexdigest()}"


class _Opened:
    """The files of an unpacked archive. Names come from the archive: no link is followed, nothing lies outside."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def file(self, name: str) -> FileIO:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if not parts or ".." in parts:
            raise RunraError("INVALID_REQUEST", f"the archive names {name[:200]!r}, which is no file of it")
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for number, part in enumerate(parts):
                last = number == len(parts) - 1
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_NONBLOCK if last else os.O_DIRECTORY)
                inner = os.open(part, flags, dir_fd=fd)
                os.close(fd)
                fd = inner
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "no regular file")
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            os.close(fd)
            why = error.strerror if isinstance(error, OSError) else error
            raise RunraError("INVALID_REQUEST", f"the archive lacks the file {name[:200]!r} it names: {why}") from None
        return FileIO(fd, "r")

    def read(self, name: str, most: int) -> bytes:
        with self.file(name) as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise RunraError("INVALID_REQUEST", f"{name[:200]!r} in the archive has more than {most} bytes")
        return data

    def content(self, digest: str, most: int) -> bytes:
        data = self.read(f"blobs/{digest.replace(':', '/', 1)}", most)
        if digest_of(data) != digest:
            raise _false(digest)
        return data


async def _layout(images: Images, archive: _Opened, reference: Reference | None, scope: str) -> Image:
    what = "the archive's image"
    listed = parse(Index, archive.read("index.json", MOST_MANIFEST), "the archive's index.json")
    chosen = choose(listed, what)
    _only(1 + len({one.digest for one in fitting(listed) if _another(one, chosen)}))
    reference = reference or _named(_names(chosen))
    data = archive.content(chosen.digest, MOST_MANIFEST)
    if chosen.media_type in INDEXES or b'"manifests"' in data:
        data = archive.content(choose(parse(Index, data, what), what).digest, MOST_MANIFEST)
    manifest = parse(Manifest, data, f"the manifest of {what}")
    config = parse(Config, archive.content(manifest.config.digest, MOST_CONFIG), f"the config of {what}")
    check(manifest, config, what)
    return await _keep(
        images,
        archive,
        [f"blobs/{layer.digest.replace(':', '/', 1)}" for layer in manifest.layers],
        [layer.digest for layer in manifest.layers],
        config,
        reference=reference,
        scope=scope,
        digest=chosen.digest,
    )


async def _saved(images: Images, archive: _Opened, reference: Reference | None, scope: str) -> Image:
    what = "the archive's manifest.json"
    listed = parse(SavedImages, archive.read("manifest.json", MOST_MANIFEST), what).root
    _only(len(listed))
    saved = listed[0]
    data = archive.read(saved.config, MOST_CONFIG)
    config = parse(Config, data, "the archive's config")
    stand_in = Descriptor(digest=digest_of(data), size=len(data))
    check(Manifest(config=stand_in, layers=[stand_in for _ in saved.layers]), config, "the archive's image")
    return await _keep(
        images,
        archive,
        saved.layers,
        [None] * len(saved.layers),
        config,
        reference=reference or _named(saved.tags or []),
        scope=scope,
        digest=digest_of(data),
    )


async def _keep(
    images: Images,
    archive: _Opened,
    files: list[str],
    digests: list[Any],
    config: Config,
    *,
    reference: Reference,
    scope: str,
    digest: str,
) -> Image:
    """Unpack the layers' files, each checked first (`docker save` names no digests: then the file's own it is)."""
    layers: list[Layer] = []
    unknown: list[str | None] = [None] * len(files)
    diff_ids = list(config.root_fs.diff_ids) or unknown
    with ExitStack() as held:
        for name, said, diff_id in zip(files, digests, diff_ids, strict=True):
            with archive.file(name) as file:
                real = await asyncio.to_thread(_digest, file)
                if said is not None and real != said:
                    raise _false(said)
                held.enter_context(images.layers.pinned([layer_id(real)]))
                layers.append(await images.puller.have(file, real, diff_id, scope))
        return await _done(images, config, layers, reference, scope, digest)


async def _root_fs(images: Images, file: FileIO, digest: str, reference: Reference | None, scope: str) -> Image:
    if reference is None:
        raise RunraError(
            "INVALID_REQUEST",
            "this is a root file system, which has no name of its own; give one",
            details={"field": "name"},
        )
    with images.layers.pinned([layer_id(digest)]):
        layer = await images.puller.have(file, digest, None, scope)
        return await _done(images, Config(), [layer], reference, scope, digest)


async def _done(
    images: Images, config: Config, layers: list[Layer], reference: Reference, scope: str, digest: str
) -> Image:
    async with images.layers.joined(layers, scope, EVERYBODY) as joined:
        image = image_of(
            config,
            reference=reference,
            scope=scope,
            digest=digest,
            layers=[layer.id for layer in joined],
            size=sum(layer.bytes for layer in layers),
            source=_SOURCE,
            added_at=now_iso(),
        )
        await images.keep(image)
        return image


def _names(entry: Descriptor) -> list[str]:
    return [entry.annotations[key] for key in _NAMES if key in entry.annotations]


def _another(one: Descriptor, chosen: Descriptor) -> bool:
    """Whether it is an image beside the chosen one: not the same for other machines, nor what is said of an image."""
    if one.digest == chosen.digest or one.artifact_type:
        return False
    return one.platform == chosen.platform or _names(one) != _names(chosen)


def _only(images: int) -> None:
    if images != 1:
        raise RunraError("INVALID_REQUEST", f"the archive holds {images} images; save and import them one at a time")


def _named(names: list[str]) -> Reference:
    for name in names:
        try:
            return Reference.parse(name)
        except ValueError:
            continue
    raise RunraError("INVALID_REQUEST", "the archive does not name its image; give a name", details={"field": "name"})


def _digest(file: FileIO) -> str:
    hashed = hashlib.sha256()
    while data := file.read(1 << 20):
        hashed.update(data)
    return f"sha256:{hashed.hexdigest()}"


def _false(digest: str) -> RunraError:
    return RunraError("INVALID_REQUEST", f"the archive's {digest[:19]}… is not what its digest says")
