"""Ranges of user ids: one for each sandbox, so that outside none of its ids is anybody else's."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
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
