"""Ranges of user ids: one for each sandbox, so that outside none of its ids is anybody else's."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from runra.errors import RunraError
from runra.node.settings import IDS_PER_SANDBOX

#: Attempts to find a free range before all are called taken.
_TRIES: Final = 1000


class IdRanges:
    """`count` ranges from `first_id` on, each given by its first id. An ordinary user has none to give: then it is
    None."""

    def __init__(self, first_id: int, count: int) -> None:
        self._first_id = first_id
        self._count = count
        self._root = os.geteuid() == 0
        self._taken: set[int] = set()

    def __len__(self) -> int:
        """How many are taken."""
        return len(self._taken)

    def take(self) -> int | None:
        """A range nobody has; RESOURCE_EXHAUSTED when there is none."""
        if not self._root:
            return None
        # Anywhere in the range: two servers on one machine then hardly ever hand out the same ids.
        for _ in range(_TRIES):
            first = self._first_id + random.randrange(self._count) * IDS_PER_SANDBOX  # noqa: S311 - no secret
            if first not in self._taken:
                self._taken.add(first)
                return first
        raise RunraError("RESOURCE_EXHAUSTED", "no free range of user ids; terminate some sandboxes")

    def claim(self, first: int | None) -> None:
        """An adopted sandbox has this one."""
        if first is not None:
            self._taken.add(first)

    def release(self, first: int | None) -> None:
        if first is not None:
            self._taken.discard(first)

    @contextmanager
    def lent(self) -> Iterator[int | None]:
        """A range for work behind a wall of its own."""
        first = self.take()
        try:
            yield first
        finally:
            self.release(first)


def shift_owners(top: Path, by: int) -> None:
    """Move the owners of a tree, `top` included, by so many ids. Its owner may be hostile: no link is followed, and a
    file of several names is moved once."""
    seen: set[tuple[int, int]] = set()
    for path, folders, files, fd in os.fwalk(top, follow_symlinks=False):
        for name in (*(["."] if Path(path) == top else []), *folders, *files):
            about = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if about.st_nlink > 1 and not stat.S_ISDIR(about.st_mode):
                if (about.st_dev, about.st_ino) in seen:
                    continue
                seen.add((about.st_dev, about.st_ino))
            os.chown(name, about.st_uid + by, about.st_gid + by, dir_fd=fd, follow_symlinks=False)
            if not stat.S_ISLNK(about.st_mode):
                os.chmod(name, stat.S_IMODE(about.st_mode), dir_fd=fd)  # chown took set-id bits away
