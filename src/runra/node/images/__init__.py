"""Images: what a sandbox's root file system is made of."""

from __future__ import annotations

from collections.abc import Mapping
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
