"""A node's network: opened where this machine has what it takes, and given to each sandbox before it starts."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from runra.contract import Network
from runra.errors import RunraError
from runra.events import EventLog
from runra.node.isolation import Isolation
from runra.node.network.host import HostNetwork, Place, obstacle
from runra.node.network.policy import NOTHING, policy_of
from runra.node.sandbox import Sandbox
from runra.node.settings import NodeSettings

log = logging.getLogger(__name__)


async def open_network(settings: NodeSettings, events: EventLog) -> tuple[HostNetwork | None, str]:
    """The network of this node's sandboxes; where they get none, None and the reason."""
    if settings.network.mode == "none":
        return None, "this server was told to give sandboxes none"
    reason = await asyncio.to_thread(obstacle)
    if reason is not None:
        log.warning("sandboxes get no network: %s", reason)
        return None, reason

    def publish(sandbox_id: str, organization_id: str, data: dict[str, Any]) -> None:
        events.publish("network.egress", sandbox_id, data, organization_id=organization_id)

    network = HostNetwork(settings.network, settings.data_dir, settings.instance, publish)
    await network.open()
    return network, ""


def check_egress(asked: Network | None, isolation: Isolation, network: HostNetwork | None, no_network: str) -> None:
    """Raise INVALID_CONFIG for a policy that cannot be put in force here; `no_network` says why there is none."""
    if network is not None and isolation.networked:
        network.policy_of(asked)
    elif asked is not None and (asked.secrets or (asked.egress and policy_of(asked.egress) != NOTHING)):
        why = no_network if network is None else f"not behind {isolation.name}"
        raise RunraError(
            "INVALID_CONFIG",
            f"this server gives the sandbox no network ({why}): leave network.egress out, or ask for "
            '{"default": "deny"} with nothing allowed',
            details={"field": "network.egress"},
        )


@asynccontextmanager
async def placed(sandbox: Sandbox, isolation: Isolation, network: HostNetwork | None) -> AsyncIterator[Place | None]:
    """The network a sandbox starts in, its policy in force already; None where there is none."""
    if network is None or not isolation.networked:
        yield None
        return
    record = sandbox.record
    place = await network.take()
    try:
        guest = await network.admit(record.id, record.organization_id, place, record.config.network)
        record.network_index = place.index
        sandbox.connect(network, guest)
        yield place
    finally:
        os.close(place.netns)
