"""Makes an image's seam: the folders whose owner and mode a layer does not say. Runs alone behind a wall, like
`unpacker.py`, with the image's layers read-only (`/source0` the topmost) and an empty `/target`.

A layer may hold `tmp/x` without `tmp` (Bazel, ko and other tools write such). What is unpacked alone then gets a `tmp`
of root's with mode 0755, marked; and since overlays show a folder as its topmost layer has it, that would be what /tmp
is, whatever a lower layer says. No layer can know what lies below it, as many images share it. So for each image that
has such folders this program makes one more layer, to lie on top of its own: the marked folders, and those on the way
to them, as the nearest lower layer that names them has them.

Layers are hostile: this program follows no link of theirs, and what it says of its work is a claim.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

#: Attributes of a layer's folders: `unpacker.py` sets them, overlays show neither.
_OPAQUE, _IMPLIED = "user.overlay.opaque", "user.overlay.runra.implied"
#: Bytes of memory, where there is no cgroup to bound it.
_MEMORY = 1 << 30


@dataclass(slots=True)
class Folder:
    """A folder of the image: where its files come from, the topmost layer first; what says its owner and mode."""

    above: Folder | None
    path: str
    content: list[str]
    looks: str


def has(folder: str, attribute: str) -> bool:
    try:
        os.getxattr(folder, attribute)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise
    return True


def inner(folder: Folder) -> Iterator[Folder]:
    """The folders in one that more than one layer has."""
    names: Counter[str] = Counter()
    for place in folder.content:
        with os.scandir(place) as entries:
            names.update(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    for name, count in names.items():
        if count < 2:
            continue
        places = []
        for path in (f"{place}/{name}" for place in folder.content):
            if not os.path.lexists(path):
                continue
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                break  # a file, a link or a whiteout: what lies below it is not seen
            places.append(path)
        if len(places) < 2:
            continue
        # An opaque folder hides what others have in it, and is still the folder they have: only one that was deleted
        # and made anew has no mark.
        named = next((path for path in places if not has(path, _IMPLIED)), places[0])
        ends = next((number for number, path in enumerate(places, 1) if has(path, _OPAQUE)), len(places))
        yield Folder(folder, f"{folder.path}/{name}", places[:ends], named)


def seam(sources: list[str], target: str, *, own: bool) -> int:
    """Make the layer; returns how many folders it has."""
    made: dict[str, str] = {}
    waiting = [Folder(None, "", sources, sources[0])]
    while waiting:
        for one in inner(waiting.pop()):
            if one.looks != one.content[0]:
                way: Folder | None = one
                missing = []
                while way is not None and way.path and way.path not in made:
                    missing.append(way)
                    way = way.above
                for step in reversed(missing):
                    os.mkdir(target + step.path, 0o700)
                    made[step.path] = step.looks
            if len(one.content) > 1:
                waiting.append(one)
    for path in reversed(made):  # what is put into a folder changes its time
        dress(made[path], target + path, own=own)
    return len(made)


def dress(source: str, path: str, *, own: bool) -> None:
    about = os.lstat(source)
    if own:
        os.chown(path, about.st_uid, about.st_gid, follow_symlinks=False)
    os.chmod(path, stat.S_IMODE(about.st_mode))
    for name in os.listxattr(source, follow_symlinks=False):
        if name.startswith("user.") and not name.startswith("user.overlay."):
            os.setxattr(path, name, os.getxattr(source, name, follow_symlinks=False))
    os.utime(path, ns=(about.st_mtime_ns, about.st_mtime_ns))


def _run(own: str, *sources: str) -> dict[str, object]:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    os.umask(0)
    try:
        return {"folders": seam(list(sources), "/target", own=own == "own")}
    except MemoryError:
        return {"refused": "its folders need more memory than any honest image's do"}
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return {"full": True}
        return {"refused": f"{error.strerror or error}: {str(error.filename or '')[:200]!r}"}


if __name__ == "__main__":
    os.write(1, json.dumps(_run(*sys.argv[1:])).encode())
