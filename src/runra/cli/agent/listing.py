"""`runra agents`: which agents there are, where each comes from, and what each can do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from runra.cli.lifecycle import AsJson
from runra.cli.output import harmless, show_json, show_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runra.runtime.agents.pins import Pin


@dataclass(frozen=True)
class _Agent:
    """`problem` says why it cannot be used; its abilities are not known then."""

    id: str
    origin: str
    abilities: list[str]
    package: str | None = None
    version: str | None = None
    image: str | None = None
    problem: str | None = None


def agents(as_json: AsJson = False) -> None:
    """List the agents: built in, and those that installed packages bring."""
    from runra.runtime.agents.options import MEANING
    from runra.runtime.agents.pins import pins
    from runra.runtime.registry import AGENTS

    pinned = pins()
    found = [_look(name, pinned) for name in AGENTS.names()]
    if as_json:
        show_json({"agents": [asdict(agent) for agent in found], "abilities": dict(MEANING)})
        return
    show_table(("AGENT", "FROM", "CAN"), [_row(agent) for agent in found])
    print()
    for ability, meaning in MEANING.items():
        print(f"{ability:<14} {meaning}")


def _row(agent: _Agent) -> tuple[str, str, str]:
    origin = f"{agent.origin}: npm {agent.package}@{agent.version}" if agent.package else agent.origin
    can = f"cannot be used: {agent.problem}" if agent.problem else " ".join(agent.abilities) or "-"
    return harmless(agent.id), harmless(origin), harmless(" ".join(can.split()))


def _look(name: str, pinned: Mapping[str, Pin]) -> _Agent:
    from runra.runtime.registry import AGENTS

    origin, pin = AGENTS.origin(name), pinned.get(name)
    package, version = (pin.package, pin.version) if pin else (None, None)
    try:
        made = AGENTS.create(name)
        abilities, image = sorted(getattr(made, "abilities", ())), getattr(made, "image", None)
    except Exception as error:  # noqa: BLE001 - other people's code: shown with its reason, and breaks nothing
        return _Agent(name, origin, [], package, version, problem=str(error) or type(error).__name__)
    return _Agent(name, origin, abilities, package, version, image)
