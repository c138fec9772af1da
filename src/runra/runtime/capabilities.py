"""What a provider can do, declared by itself and checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, get_args

from runra.errors import RunraError

if TYPE_CHECKING:
    from runra.contract.network import Network
    from runra.runtime.types import ExecuteOptions
    from runra.sdk.types import ListOptions, SandboxConfig

Ability = Literal[
    "streaming",
    "stdin",
    "background",
    "stdin_end",
    "pty",
    "user",
    "ports",
    "pause",
    "auto_resume",
    "timeout",
    "idle_timeout",
    "cpu_limit",
    "memory_limit",
    "disk_limit",
    "network_deny",
    "network_allow_list",
    "network_change",
    "secrets",
    "volumes",
    "metadata",
    "metadata_filter",
    "snapshots",
    "isolation",
    "resources",
    "events",
]

#: What each means, as `docs/providers.md` shows it.
MEANING: Final[dict[Ability, str]] = {
    "streaming": "output line by line while a command runs",
    "stdin": "text or bytes piped into a command",
    "background": "processes that outlive the call, with output, stdin and kill",
    "stdin_end": "ending the stdin of a process in the background",
    "pty": "terminals",
    "user": "commands as another user than the provider's own",
    "ports": "a URL for a port inside",
    "pause": "pause and resume, processes kept",
    "auto_resume": "a paused sandbox resumes by itself when used",
    "timeout": "a longest time running, after which it is terminated",
    "idle_timeout": "paused when nothing has used it for a while",
    "cpu_limit": "cores, chosen per sandbox",
    "memory_limit": "memory, chosen per sandbox",
    "disk_limit": "disk, chosen per sandbox",
    "network_deny": "no network at all",
    "network_allow_list": "only the destinations that are named",
    "network_change": "another network policy while it runs",
    "secrets": "keys put into requests outside, which the sandbox never sees",
    "volumes": "folders that outlive the sandbox",
    "metadata": "tags of your own",
    "metadata_filter": "listing by tags",
    "snapshots": "its files kept at a moment, to make others from",
    "isolation": "a choice of walls",
    "resources": "what it uses, told in `resource.*` events",
    "events": "events told by the provider's own server, those of other clients and timers included",
}


@dataclass(frozen=True)
class Capabilities:
    """The abilities a provider has. `notes` says of one what a user should know of it."""

    abilities: frozenset[Ability]
    notes: dict[Ability, str] = field(default_factory=dict)

    @classmethod
    def of(cls, *abilities: Ability, **notes: str) -> Capabilities:
        """Declare them by name. Raises ValueError for a name there is none of."""
        known = get_args(Ability)
        unknown = [name for name in (*abilities, *notes) if name not in known]
        if unknown:
            raise ValueError(f"unknown abilities: {', '.join(unknown)}; known: {', '.join(known)}")
        return cls(frozenset(abilities), {name: notes[name] for name in known if name in notes})

    def __contains__(self, ability: object) -> bool:
        return ability in self.abilities

    def __iter__(self) -> Iterator[Ability]:
        return iter(name for name in get_args(Ability) if name in self.abilities)


def require(provider: str, capabilities: Capabilities, wanted: Iterable[tuple[Ability, str]]) -> None:
    """Check abilities, each with the option that asks for it. Raises INVALID_CONFIG naming provider and abilities."""
    lacking = [(ability, option) for ability, option in wanted if ability not in capabilities]
    if not lacking:
        return
    said = "; ".join(f"{option} needs {ability} ({MEANING[ability]})" for ability, option in lacking)
    raise RunraError(
        "INVALID_CONFIG",
        f"the provider {provider!r} cannot do this: {said}. Leave it out, or choose another provider",
        details={"provider": provider, "abilities": [a for a, _ in lacking], "options": [o for _, o in lacking]},
    )


def needs_of_create(config: SandboxConfig) -> list[tuple[Ability, str]]:
    """What a create asks for beyond a plain sandbox. Only what the caller has set counts: a default is no wish."""
    needs: list[tuple[Ability, str]] = []
    given = config.model_fields_set
    if "resources" in given:
        by_field: dict[str, Ability] = {"cpu": "cpu_limit", "memory_mb": "memory_limit", "disk_mb": "disk_limit"}
        needs += [
            (by_field[name], f"resources.{name}") for name in by_field if name in config.resources.model_fields_set
        ]
    if "timeout_ms" in given:
        needs.append(("timeout", "timeout_ms"))
    if "idle_timeout_ms" in given:
        needs.append(("idle_timeout", "idle_timeout_ms"))
    if config.auto_resume:
        needs.append(("auto_resume", "auto_resume"))
    if config.isolation is not None:
        needs.append(("isolation", "isolation"))
    if config.metadata:
        needs.append(("metadata", "metadata"))
    if config.volumes:
        needs.append(("volumes", "volumes"))
    return needs + (needs_of_network(config.network) if config.network is not None else [])


def needs_of_network(network: Network) -> list[tuple[Ability, str]]:
    """What a network policy asks for."""
    needs: list[tuple[Ability, str]] = []
    if network.egress is not None:
        if network.egress.allow and network.egress.default != "allow":
            needs.append(("network_allow_list", "network.egress.allow"))
        elif network.egress.default == "deny":
            needs.append(("network_deny", "network.egress.default"))
    if network.secrets:
        needs.append(("secrets", "network.secrets"))
    if network.ingress is not None and network.ingress.allow_ports:
        needs.append(("ports", "network.ingress.allow_ports"))
    return needs


def needs_of_execute(options: ExecuteOptions) -> list[tuple[Ability, str]]:
    """What running a command asks for."""
    needs: list[tuple[Ability, str]] = []
    if options.on_stdout is not None or options.on_stderr is not None:
        needs.append(("streaming", "on_stdout, on_stderr"))
    if options.stdin is not None:
        needs.append(("stdin", "stdin"))
    if options.user is not None:
        needs.append(("user", "user"))
    return needs


def needs_of_list(options: ListOptions) -> list[tuple[Ability, str]]:
    """What a filter asks for."""
    return [("metadata_filter", "metadata")] if options.metadata else []
