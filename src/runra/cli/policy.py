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


def _names(text: str, option: str) -> frozenset[str]:
    names = frozenset(name.strip() for name in text.split(","))
    if not all(names):
        raise typer.BadParameter(f"{text!r} is no list of names with commas", param_hint=option)
    return names
