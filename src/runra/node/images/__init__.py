"""Images: what a sandbox's root file system is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Overlay:
    """A writable place in the sandbox: `lower` folders (topmost first), read-only, under a private upper layer."""

    target: str
    lower: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class RootFilesystem:
    """Overlays in mount order (the first is "/"), and the environment the image brings."""

    overlays: tuple[Overlay, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    #: A folder with upper layers (`upper0`, …) that the sandbox's own begin as copies of, and the bytes they hold; of
    #: snapshots and forks.
    start_from: Path | None = None
    start_bytes: int = 0
    #: A folder with what ran when they were copied, and runs on in the copy (isolation/checkpoint.py).
    memory: Path | None = None

    @property
    def layers(self) -> set[Path]:
        """Every folder it is made of: as long as a sandbox's record names them, nobody deletes them."""
        return {layer for overlay in self.overlays for layer in overlay.lower}


#: Turns an image's name, asked for by an organization, into a root. What it is made of stays while it is entered;
#: by then a record names it. Raises RunraError for what cannot be had.
Resolver = Callable[[str, str], AbstractAsyncContextManager[RootFilesystem]]
