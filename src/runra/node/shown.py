"""A sandbox as the API shows it, made from its record."""

from __future__ import annotations

from typing import Any

from runra.contract import Network, SandboxConfig, SandboxInfo
from runra.node.network.guest import Guest
from runra.node.network.policy import effective_default
from runra.node.record import Record


def shown(record: Record, enforced: dict[str, bool], guest: Guest | None) -> SandboxInfo:
    """`enforced` says of each limit whether it holds; `guest` is the sandbox on its host's network, if it has one."""
    config = record.config
    return SandboxInfo(
        id=record.id,
        organization_id=record.organization_id,
        state=record.state,
        image=config.image,
        resources=config.resources.model_dump(by_alias=True),
        env=config.env,
        workdir=config.workdir,
        timeout_ms=config.timeout_ms,
        idle_timeout_ms=config.idle_timeout_ms,
        metadata=config.metadata,
        network=_network(record, guest),
        auto_resume=config.auto_resume,
        isolation=record.isolation,
        enforced=enforced,
        volumes=[volume.shown() for volume in record.volumes],
        created_at=record.created_at,
        started_at=record.started_at,
        paused_at=record.paused_at,
        terminated_at=record.terminated_at,
        termination_reason=record.termination_reason,
    )


def _network(record: Record, guest: Guest | None) -> dict[str, Any]:
    """The policy in force, defaults included; of secrets everything but their values."""
    network = record.config.network or Network()
    secrets = {name: value for name, value in network.shown().items() if name == "secrets"}
    # Without a network nothing is reachable, whatever was left to the default.
    closed = record.network_index is None or (guest is not None and guest.policy.mode == "none")
    default = "deny" if closed else effective_default(network.egress)
    egress = {"allow": network.egress.allow if network.egress else [], "default": default}
    return {"egress": egress, **_ingress(record.config), **secrets}


def _ingress(config: SandboxConfig) -> dict[str, Any]:
    """The part of the policy about what comes in: only where ports were named."""
    ingress = config.network.ingress if config.network else None
    return {"ingress": {"allowPorts": ingress.allow_ports}} if ingress and ingress.allow_ports is not None else {}
