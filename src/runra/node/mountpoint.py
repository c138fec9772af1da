"""Where a volume may be mounted: never through a symbolic link of the image, which would lead the mount elsewhere."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from runra.contract.volumes import lies_in
from runra.errors import RunraError
from runra.node.images import RootFilesystem

#: How overlayfs marks a folder that hides all below it (Documentation/filesystems/overlayfs.rst).
_OPAQUE: Final = ("user.overlay.opaque", "trusted.overlay.opaque")


def check_mount_point(root: RootFilesystem, folder: Path, path: str) -> None:
    """Make sure that each part of `path` is a folder in a sandbox's root, or is not there yet.

    `folder` is the sandbox's own, with its upper layers; nothing runs in it yet, so what is seen here is what the wall
    will mount on. Raises INVALID_REQUEST naming the part that is something else.
    """
    matches = [(len(one.target), number) for number, one in enumerate(root.overlays) if lies_in(path, one.target)]
    _, number = max(matches)
    overlay = root.overlays[number]
    parts = [part for part in path[len(overlay.target) :].split("/") if part]
    with ExitStack() as held:
        layers = [_open(held, layer) for layer in (folder / f"upper{number}", *overlay.lower)]
        for depth, part in enumerate(parts):
            layers = _below(held, layers, part, f"{overlay.target.rstrip('/')}/{'/'.join(parts[: depth + 1])}")
            if not layers:
                return


def _below(held: ExitStack, layers: list[int], part: str, path: str) -> list[int]:
    """The folders `part` of each layer that show through, topmost first, as overlayfs merges them."""
    found: list[int] = []
    for layer in layers:
        try:
            about = os.stat(part, dir_fd=layer, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(about.st_mode):
            found.append(_open(held, part, layer))
            if _is_opaque(found[-1]):
                break
        elif found or (stat.S_ISCHR(about.st_mode) and about.st_rdev == 0):
            break  # hidden by the folder above it; or the mark that nothing is here
        else:
            kind = "a symbolic link" if stat.S_ISLNK(about.st_mode) else "no folder"
            raise RunraError(
                "INVALID_REQUEST",
                f"volumes: {path} is {kind} in this image; mount the volume at a path made of folders",
                details={"field": "volumes", "value": path},
            )
    return found


def _open(held: ExitStack, path: Path | str, layer: int | None = None) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=layer)
    held.callback(os.close, fd)
    return fd


def _is_opaque(folder: int) -> bool:
    for name in _OPAQUE:
        try:
            if os.getxattr(folder, name) == b"y":
                return True
        except OSError:  # not there, or not for us to see
            continue
    return False
