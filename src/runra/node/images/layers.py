"""Layers on disk: each once, by its digest, whoever uses it; complete or not there at all.

A layer's name is the digest of the blob it came as, which this process has checked itself. (The diff id, of the tar
inside, is what the unpacker says, and an unpacker that a hostile layer took over could say that of another's layer.)

`scopes` names the organizations that have shown they can have a layer's content, by fetching it themselves: a
manifest that merely names the digest of somebody else's private layer gets nobody that layer.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import logging
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from pydantic import BaseModel

from runra.errors import RunraError
from runra.node.images.unpack import Unpacker
from runra.node.launcher import Launcher

log = logging.getLogger(__name__)

#: The scope of what everybody may use.
EVERYBODY: Final = ""


class Layer(BaseModel):
    """One layer. `id` is its folder's name, `bytes` what its files hold."""

    id: str
    digest: str
    bytes: int
    scopes: set[str]
    #: Folders that it has things in and says nothing of.
    implied: int = 0

    def open_to(self, scope: str) -> bool:
        return EVERYBODY in self.scopes or scope in self.scopes


class Layers:
    """The layers below `root`. All of it runs on one event loop; `users` are asked what else is in use."""

    def __init__(self, root: Path, launcher: Launcher, unpacker: Unpacker, unpacks: int = 3) -> None:
        self._home = root / "layers"
        self._scratch = root / "tmp"
        self._launcher = launcher
        self._unpacker = unpacker
        self._unpacks = asyncio.Semaphore(unpacks)
        #: By organization: one turn always stays for the others.
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._most_turns = unpacks - 1
        self._known: dict[str, Layer] = {}
        self._pins: Counter[str] = Counter()
        self._deleting: set[asyncio.Task[None]] = set()
        #: Each gives layers that must stay: the paths of each root that is made of some.
        self.users: list[Callable[[], Iterable[set[Path]]]] = []
        #: What lies below every image.
        self.floor: tuple[Path, ...] = ()
        #: Whether a layer that no image names any more is only kept for who uses it.
        self.awaited = False

    async def load(self) -> None:
        """Find what earlier servers made; half-made things go."""
        for folder in (self._home, self._scratch):
            folder.mkdir(mode=0o700, exist_ok=True)
        for left in self._scratch.iterdir():
            self._delete(left)
        for path in self._home.glob("*.json"):
            try:
                layer = Layer.model_validate_json(path.read_text())
            except ValueError:
                path.unlink()  # never flushed: its folder goes below
                continue
            if self.path(layer.id).is_dir():
                self._known[layer.id] = layer
            else:
                path.unlink()
        for folder in self._home.iterdir():
            if folder.suffix != ".json" and folder.name not in self._known:
                self._delete(self._aside(folder))

    def path(self, layer_id: str) -> Path:
        return self._home / layer_id

    def get(self, layer_id: str) -> Layer | None:
        return self._known.get(layer_id)

    def find(self, digest: str) -> Layer | None:
        return self._known.get(layer_id(digest))

    @contextlib.contextmanager
    def pinned(self, ids: Iterable[str]) -> Iterator[None]:
        """As long as this is entered these layers stay, whether or not anything else names them."""
        held = list(ids)
        self._pins.update(held)
        try:
            yield
        finally:
            self._pins.subtract(held)

    @contextlib.asynccontextmanager
    async def scratch(self) -> AsyncIterator[Path]:
        """A folder for work in progress, deleted at the end."""
        folder = self._scratch / secrets.token_hex(8)
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            self._delete(folder)

    @contextlib.asynccontextmanager
    async def turn(self, asker: str) -> AsyncIterator[None]:
        """One of an organization's turns at unpacking: they are fewer than all there are."""
        async with self._turns.setdefault(asker, asyncio.Semaphore(self._most_turns)):
            yield

    async def unpack(
        self, blob: FileIO, digest: str, diff_id: str | None, scope: str, min_free_mb: int | None = None
    ) -> Layer:
        """A layer from its blob, whose digest the caller has checked, in a turn of the caller's. Raises INVALID_REQUEST
        for one that is hostile or not what the image's config says."""
        async with self._unpacks, self.scratch() as scratch:
            fresh = scratch / "layer"
            fresh.mkdir()
            fresh.chmod(0o755)
            told = await self._unpacker.layer(blob, fresh, min_free_mb)
            if diff_id is not None and told.diff_id != diff_id:
                raise RunraError(
                    "INVALID_REQUEST",
                    f"layer {digest[:19]}… holds {told.diff_id}, and the image's config says {diff_id}",
                    details={"digest": digest},
                )
            return self.keep(fresh, layer_id(digest), digest, told.bytes, scope, told.implied)

    @contextlib.asynccontextmanager
    async def joined(self, layers: Sequence[Layer], scope: str, asker: str) -> AsyncIterator[Sequence[Layer]]:
        """An image's layers, the lowest first, with its seam (`seams.py`) on top where it needs one, which stays while
        this is entered. The caller has pinned the others."""
        if not any(layer.implied for layer in layers):
            yield layers
            return
        # By another hash than blobs are: no blob anybody sends has a seam's digest, so none gets it by that.
        below = " ".join(layer.id for layer in layers).encode()
        name = hashlib.blake2b(below, digest_size=16, person=b"seam").hexdigest()
        with self.pinned([name]):
            seam = self._known.get(name) or await self._seam(layers, name, scope, asker)
            if seam is not None:
                self.note(seam, scope)
            yield [*layers, seam] if seam is not None else layers

    async def _seam(self, layers: Sequence[Layer], name: str, scope: str, asker: str) -> Layer | None:
        async with self.turn(asker), self._unpacks, self.scratch() as scratch:
            fresh = scratch / "layer"
            fresh.mkdir()
            fresh.chmod(0o755)
            below = [self.path(layer.id) for layer in reversed(layers)]
            count = await self._unpacker.seam([*below, *self.floor], fresh)
            if not count:
                return None
            # Whoever else made it meanwhile, of the same layers, made the same.
            return self._known.get(name) or self.keep(fresh, name, f"seam:{name}", count << 12, scope)

    def keep(self, fresh: Path, name: str, digest: str, count: int, scope: str, implied: int = 0) -> Layer:
        """Make a complete folder a layer. Until `flush` it may be lost with the machine, and then nothing names it: the
        next start deletes layers that no image has."""
        layer = Layer(id=name, digest=digest, bytes=count, scopes={scope}, implied=implied)
        self._save(layer)
        fresh.rename(self.path(name))
        self._known[name] = layer
        return layer

    def note(self, layer: Layer, scope: str) -> None:
        """Remember that a scope has had the content."""
        if scope not in layer.scopes:
            layer.scopes.add(scope)
            self._save(layer)

    async def flush(self) -> None:
        """Every layer is on the disk when this returns, so that a name may be given to them."""
        await asyncio.to_thread(_flush, self._home)

    def _save(self, layer: Layer) -> None:
        path = self._home / f"{layer.id}.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(layer.model_dump_json())
        fresh.rename(path)

    # --- deleting ---

    def unnamed(self, named: Iterable[str]) -> int:
        """Bytes of the layers that `collect` would delete."""
        return sum(self._known[name].bytes for name in self._known.keys() - set(named) - self._used())

    def roots(self) -> set[frozenset[str]]:
        """The layers of each root in use that has some."""
        roots = (root for user in self.users for root in user())
        return {frozenset(path.name for path in root if path.parent == self._home) for root in roots} - {frozenset()}

    def _used(self) -> set[str]:
        return {name for name, count in self._pins.items() if count > 0}.union(*self.roots())

    def collect(self, named: Iterable[str]) -> int:
        """Delete layers that nothing names. Returns how many bytes that frees. Deciding takes one step."""
        unnamed, used = self._known.keys() - set(named), self._used()
        self.awaited = bool(unnamed & used)
        freed = 0
        for name in unnamed - used:
            freed += self._known.pop(name).bytes
            # The note first: a folder without one is deleted at the next start.
            (self._home / f"{name}.json").unlink(missing_ok=True)
            self._delete(self._aside(self.path(name)))
        return freed

    def _aside(self, folder: Path) -> Path:
        aside = self._scratch / secrets.token_hex(8)
        folder.rename(aside)
        return aside

    def _delete(self, path: Path) -> None:
        task = asyncio.create_task(self._remove(path), name="image clean-up")
        self._deleting.add(task)
        task.add_done_callback(self._deleting.discard)

    async def _remove(self, path: Path) -> None:
        try:
            await self._launcher.remove(path)
        except (RunraError, TimeoutError, asyncio.CancelledError) as error:
            log.warning("left for the next start: %s: %s", path, error)

    async def settled(self, timeout: float = 60.0) -> None:
        """Wait until what is being deleted is gone."""
        if self._deleting:
            await asyncio.wait(self._deleting, timeout=timeout)


def layer_id(digest: str) -> str:
    """The name of a digest's layer, whether or not it is here."""
    # 128 bits of SHA-256 name a layer well enough.
    return digest.removeprefix("sha256:")[:32]


def write_whole(path: Path, text: str) -> None:
    """Replace a small file in one step, which a crash of the machine leaves done or not done."""
    fresh = path.with_suffix(".new")
    with fresh.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _flush(folder: Path) -> None:
    """All of the folder's file system to the disk: a layer may have a hundred thousand files."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)
