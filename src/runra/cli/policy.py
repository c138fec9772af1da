"""What an operator says of walls and limits on the command line, as settings of the node."""

from __future__ import annotations

from typing import Any

import typer


def node_policy(
    isolation: str | None, allow_isolation: str | None, require_isolation: str | None, allow_unenforced: str | None
) -> dict[str, Any]:
    """Settings by name (`runra.node.NodeSettings`). Raises BadParameter for words that contradict each other."""
    found: dict[str, Any] = {}
    if require_isolation is not None:
        if allow_isolation is not None or isolation not in (None, require_isolation):
            raise typer.BadParameter("it leaves nothing to choose", param_hint="--require-isolation")
        found["allowed_isolation"] = frozenset([require_isolation])
    elif allow_isolation is not None:
        found["allowed_isolation"] = _names(allow_isolation, "--allow-isolation")
    if isolation is not None:
        found["isolation"] = isolation
    if allow_unenforced is not None:
        from runra.node.enforcement import CURES

        names = _names(allow_unenforced, "--allow-unenforced")
        found["allow_unenforced"] = frozenset(CURES) if names == {"all"} else names
    return found


def node_network(
    enabled: bool, dns: list[str] | None, open_ranges: list[str] | None, network_range: str | None,
    bandwidth_mbit: int | None, connections: int | None,
) -> dict[str, Any]:  # fmt: skip
    """Settings of the sandboxes' network (`runra.node.network.settings`), under the node's name for them."""
    from runra.node.network.settings import NetworkSettings

    organizations: dict[str, tuple[str, ...]] = {}
    for word in open_ranges or ():
        range_, _, organization = word.partition("@")
        organizations[organization] = (*organizations.get(organization, ()), range_)
    given: dict[str, Any] = {
        "mode": None if enabled else "none",
        "dns": tuple(dns) if dns else None,
        "open_ranges": organizations.pop("", None),
        "organization_ranges": organizations or None,
        "range": network_range,
        "bandwidth_mbit": bandwidth_mbit,
        "connections": connections,
    }
    return {"network": NetworkSettings(**{name: value for name, value in given.items() if value is not None})}


def _names(text: str, option: str) -> frozenset[str]:
    names = frozenset(name.strip() for name in text.split(","))
    if not all(names):
        raise typer.BadParameter(f"{text!r} is no list of names with commas", param_hint=option)
    return names
