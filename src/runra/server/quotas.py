"""What an organization may have in all: sandboxes, cores, memory, disk, creates a minute. Set by the operator.

Counted in memory: what lives on the node and what is being made. One process serves a store, so the count is whole;
of creates within the last minute it knows those since its own start.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from runra.contract import OrganizationQuotas, Resources
from runra.errors import RunraError
from runra.server.nodeport import Node
from runra.server.store import Store
from runra.server.store.kept import kept_mb
from runra.server.store.keys import all_quotas, set_quotas

_WINDOW_S: Final = 60.0


class Quotas:
    """The quotas of all organizations, and the one place that holds a create against them."""

    def __init__(self, store: Store, node: Node) -> None:
        self._store = store
        self._node = node
        self._quotas: dict[str, OrganizationQuotas] = {}
        #: Sandboxes being made, by id: whose they are, and what they may use.
        self._coming: dict[str, tuple[str, Resources]] = {}
        #: Disk of volumes being made, in MB.
        self._coming_mb: defaultdict[str, int] = defaultdict(int)
        self._created: defaultdict[str, deque[float]] = defaultdict(deque)
        self._turn = asyncio.Lock()

    async def load(self) -> None:
        self._quotas = await all_quotas(self._store)

    async def change(self, organization_id: str, patch: OrganizationQuotas) -> OrganizationQuotas | None:
        """Change the quotas named in `patch` (null lifts one); None when there is no such organization. What is over a
        new quota stays; nothing is added until it is below."""
        given = {name: getattr(patch, name) for name in patch.model_fields_set}
        changed = self._quotas.get(organization_id, OrganizationQuotas()).model_copy(update=given)
        if not await set_quotas(self._store, organization_id, changed):
            return None
        self._quotas[organization_id] = changed
        return changed

    def bound_disk(self, organization_id: str) -> bool:
        """Whether its disk is bounded: looking what a sandbox holds takes a while."""
        quotas = self._quotas.get(organization_id)
        return quotas is not None and quotas.disk_mb is not None

    @asynccontextmanager
    async def room(
        self, organization_id: str, ids: Sequence[str], asked: Resources, inherited_mb: int
    ) -> AsyncIterator[None]:
        """Hold room for sandboxes while they are made: for all of them, or for none. `inherited_mb` is what each begins
        with, as a copy, beside the disk it may fill.

        Raises RESOURCE_EXHAUSTED or RATE_LIMITED, with the quota that is in the way.
        """
        quotas = self._quotas.get(organization_id)
        asked = asked.model_copy(update={"disk_mb": asked.disk_mb + inherited_mb})
        if quotas is not None:
            async with self._turn:
                await self._check(organization_id, quotas, len(ids), asked)
                self._coming.update((each, (organization_id, asked)) for each in ids)
        try:
            yield
        finally:
            for each in ids:
                self._coming.pop(each, None)

    @asynccontextmanager
    async def disk(self, organization_id: str, size_mb: int) -> AsyncIterator[None]:
        """Hold disk for a volume or a snapshot while it is made. Raises RESOURCE_EXHAUSTED."""
        quotas = self._quotas.get(organization_id)
        if quotas is not None and quotas.disk_mb is not None:
            async with self._turn:
                await self._check_disk(organization_id, quotas.disk_mb, size_mb)
                self._coming_mb[organization_id] += size_mb
        else:
            size_mb = 0
        try:
            yield
        finally:
            if size_mb:
                self._coming_mb[organization_id] -= size_mb

    async def _check(self, organization_id: str, quotas: OrganizationQuotas, count: int, asked: Resources) -> None:
        held = self._held(organization_id)
        for name, most, have, more in (
            ("maxSandboxes", quotas.max_sandboxes, len(held), count),
            ("cpu", quotas.cpu, sum(one.cpu for one in held), asked.cpu * count),
            ("memoryMb", quotas.memory_mb, sum(one.memory_mb for one in held), asked.memory_mb * count),
        ):
            if most is not None and have + more > most:
                raise _exhausted(name, most, have, more)
        if quotas.disk_mb is not None:
            await self._check_disk(organization_id, quotas.disk_mb, asked.disk_mb * count)
        if quotas.creates_per_minute is not None:
            self._check_rate(organization_id, quotas.creates_per_minute, count)

    def _held(self, organization_id: str) -> list[Resources]:
        """What the organization's sandboxes may use, those that live and those that are being made."""
        held = [what for whose, what in self._coming.values() if whose == organization_id]
        for one in self._node.sandboxes.values():
            if one.organization_id == organization_id and one.id not in self._coming:
                asked = one.config.resources
                held.append(asked.model_copy(update={"disk_mb": asked.disk_mb + one.inherited_mb}))
        return held

    async def _check_disk(self, organization_id: str, most: int, more: int) -> None:
        have = sum(one.disk_mb for one in self._held(organization_id)) + self._coming_mb[organization_id]
        have += await kept_mb(self._store, organization_id)
        if have + more > most:
            raise _exhausted("diskMb", most, have, more)

    def _check_rate(self, organization_id: str, most: int, count: int) -> None:
        now, created = time.monotonic(), self._created[organization_id]
        while created and created[0] <= now - _WINDOW_S:
            created.popleft()
        if len(created) + count > most:
            over = len(created) + count - most
            wait = math.ceil(created[over - 1] + _WINDOW_S - now) if over <= len(created) else math.ceil(_WINDOW_S)
            raise RunraError(
                "RATE_LIMITED",
                f"your organization may create {most} sandboxes a minute, and did; wait {wait} s",
                details={"quota": "createsPerMinute", "limit": most, "retryAfter": wait},
            )
        created.extend([now] * count)


def _exhausted(name: str, most: int, have: int, more: int) -> RunraError:
    return RunraError(
        "RESOURCE_EXHAUSTED",
        f"quota {name}: your organization may have {most}, has {have}, and this takes {more} more; give something back "
        "(terminate sandboxes, delete snapshots or volumes), or ask for a higher quota",
        details={"quota": name, "limit": most, "used": have, "asked": more},
    )
