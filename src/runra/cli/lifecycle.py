"""Commands about a sandbox's life: create, ps, pause, resume, rm."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from runra.cli import network
from runra.cli.output import age, complain, say, show_json, show_table
from runra.cli.words import mounts, pairs
from runra.errors import RunraError

if TYPE_CHECKING:
    from runra import Sandbox

#: States of a sandbox that still is one.
_ALIVE: Final = ("creating", "running", "paused")
State = Literal["creating", "running", "paused", "terminated"]

Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="One sandbox or several.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Image = Annotated[str, typer.Option("--image", help="What it is made of.", envvar="RUNRA_DEFAULT_IMAGE")]
Cpu = Annotated[int | None, typer.Option("--cpu", help="Cores: 2, 4 or 8.", envvar="RUNRA_DEFAULT_CPU")]
MemoryMb = Annotated[int | None, typer.Option("--memory-mb", help="Memory in MB.", envvar="RUNRA_DEFAULT_MEMORY_MB")]
Env = Annotated[list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE", help="Again for each variable.")]
Workdir = Annotated[str | None, typer.Option("--workdir", "-w", help="Where commands start. [default: /workspace]")]
Isolation = Annotated[
    str | None, typer.Option("--isolation", help="The wall: bubblewrap or gvisor. [default: the server's]")
]
Lifetime = Annotated[
    int | None,
    typer.Option(
        "--timeout-ms",
        help="End the sandbox after so long running, in ms. [default: 300000]",
        envvar="RUNRA_DEFAULT_TIMEOUT_MS",
    ),
]


def config(
    image: str,
    cpu: int | None,
    memory_mb: int | None,
    env: list[str] | None,
    workdir: str | None,
    timeout_ms: int | None,
    isolation: str | None,
) -> dict[str, Any]:
    """The options of a create that were given; what was not stays with the server."""
    given: dict[str, Any] = {"image": image, "workdir": workdir, "timeout_ms": timeout_ms, "isolation": isolation}
    resources = {name: value for name, value in (("cpu", cpu), ("memory_mb", memory_mb)) if value is not None}
    if resources:
        given["resources"] = resources
    if env:
        given["env"] = pairs(env, "--env")
    return {name: value for name, value in given.items() if value is not None}


def create(
    image: Image = "host",
    cpu: Cpu = None,
    memory_mb: MemoryMb = None,
    disk_mb: Annotated[int | None, typer.Option("--disk-mb", help="Disk in MB.")] = None,
    timeout_ms: Lifetime = None,
    idle_timeout_ms: Annotated[
        int | None, typer.Option("--idle-timeout-ms", help="Pause it after so long unused, in ms. [default: 120000]")
    ] = None,
    env: Env = None,
    workdir: Workdir = None,
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", "-m", metavar="NAME=VALUE", help="Again for each tag.")
    ] = None,
    auto_resume: Annotated[bool, typer.Option("--auto-resume", help="A call on it resumes it when paused.")] = False,
    volume: Annotated[
        list[str] | None, typer.Option("--volume", metavar="NAME:/PATH[:ro]", help="Mount a volume. Again for each.")
    ] = None,
    isolation: Isolation = None,
    allow: network.Allow = None,
    egress: network.Default = None,
    secret: network.Secrets = None,
    as_json: AsJson = False,
) -> None:
    """Create a sandbox and print its id."""
    from runra import Runra

    given = config(image, cpu, memory_mb, env, workdir, timeout_ms, isolation)
    if disk_mb is not None:
        given.setdefault("resources", {})["disk_mb"] = disk_mb
    if idle_timeout_ms is not None:
        given["idle_timeout_ms"] = idle_timeout_ms
    if metadata:
        given["metadata"] = pairs(metadata, "--metadata")
    if auto_resume:
        given["auto_resume"] = True
    if volume:
        given["volumes"] = mounts(volume)
    if wanted := network.policy(allow, egress, secret):
        given["network"] = wanted
    with Runra() as client:
        sandbox = client.sandboxes.create(**given)
        if as_json:
            show_json(sandbox.info.to_wire())
        else:
            print(sandbox.id)


def ps(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Terminated ones as well.")] = False,
    state: Annotated[State | None, typer.Option("--state", help="Only those in this state.")] = None,
    image: Annotated[str | None, typer.Option("--image", help="Only those of this image.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", "-m", metavar="NAME=VALUE", help="Only those with this tag.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only.")] = False,
    as_json: AsJson = False,
) -> None:
    """List sandboxes, newest first."""
    from runra import Runra

    wanted = pairs(metadata or [], "--metadata")
    states: list[State | None] = [state] if state else [None] if everything else [*_ALIVE]
    with Runra() as client:
        found = [one for each in states for one in client.sandboxes.iter(state=each, image=image, metadata=wanted)]
    # A sandbox may have changed its state between two questions; newest first, each once.
    found = sorted({sandbox.id: sandbox for sandbox in found}.values(), key=lambda it: it.created_at, reverse=True)
    if as_json:
        show_json([sandbox.info.to_wire() for sandbox in found])
    elif quiet:
        for sandbox in found:
            print(sandbox.id)
    else:
        show_table(("ID", "IMAGE", "STATE", "CPU", "MEMORY", "AGE", "METADATA"), [_row(one) for one in found])


def _row(sandbox: Sandbox) -> tuple[str, ...]:
    state = sandbox.state + (f" ({sandbox.termination_reason})" if sandbox.termination_reason else "")
    tags = " ".join(f"{name}={value}" for name, value in sandbox.metadata.items())
    limits = sandbox.resources
    return sandbox.id, sandbox.image, state, str(limits.cpu), f"{limits.memory_mb} MB", age(sandbox.created_at), tags


def pause(ids: Ids) -> None:
    """Pause sandboxes: files, memory and processes stay, nothing runs."""
    _each(ids, lambda sandbox: sandbox.pause())


def resume(ids: Ids) -> None:
    """Resume paused sandboxes: their processes go on where they stood."""
    _each(ids, lambda sandbox: sandbox.resume())


def rm(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help="One sandbox or several.")] = None,
    everything: Annotated[bool, typer.Option("--all", "-a", help="All of yours.")] = False,
) -> None:
    """Terminate sandboxes; their files are gone with them."""
    if bool(ids) == everything:
        raise typer.BadParameter("give the ids of sandboxes, or --all", param_hint="ID")
    _each(ids or [], lambda sandbox: sandbox.terminate(), everything=everything)


def _each(ids: list[str], deed: Callable[[Sandbox], Any], *, everything: bool = False) -> None:
    """Do it to each, or to all that live."""
    from runra import Runra

    with Runra() as client:
        if everything:
            ids = [sandbox.id for state in _ALIVE for sandbox in client.sandboxes.iter(state=state)]
        each(ids, lambda sandbox_id: deed(client.sandboxes.get(sandbox_id)))


def each(names: list[str], deed: Callable[[str], object]) -> None:
    """Do it to each and print its name when done; one that fails does not keep the others from their turn."""
    failed = 0
    for name in names:
        try:
            deed(name)
            print(name, flush=True)
        except RunraError as error:
            if error.code in ("NETWORK_ERROR", "UNAUTHORIZED", "INVALID_CONFIG"):
                raise
            complain(error)
            failed += 1
    if failed:
        say(f"{failed} of {len(names)} failed")
        raise typer.Exit(1)
