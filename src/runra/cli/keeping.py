"""`runra snapshot …`, `runra fork`, `runra volume …`: what outlives sandboxes, and copies of them."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from runra.cli.lifecycle import AsJson, each
from runra.cli.output import age, say, show_json, show_table, size

References = Annotated[list[str], typer.Argument(metavar="NAME...", help="By name or id.")]


def snapshot_create(
    sandbox_id: Annotated[str, typer.Argument(metavar="ID", help="The sandbox.")],
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="What you call it; else it has its id.")] = None,
    as_json: AsJson = False,
) -> None:
    """Keep a sandbox's files as they are now, and print the snapshot's id; the sandbox goes on."""
    from runra import Runra

    with Runra() as client:
        made = client.sandboxes.get(sandbox_id).snapshot(name)
    if as_json:
        show_json(made.to_wire())
    else:
        print(made.id)
        say(f"runra create --image snapshot:{made.name or made.id}")


def snapshot_ls(as_json: AsJson = False) -> None:
    """List snapshots, newest first."""
    from runra import Runra

    with Runra() as client:
        found = client.snapshots.list()
    if as_json:
        show_json([one.to_wire() for one in found])
        return
    rows = [
        (one.id, one.name or "", one.image, one.sandbox_id, size(one.size_bytes), age(one.created_at)) for one in found
    ]
    show_table(("ID", "NAME", "IMAGE", "SANDBOX", "SIZE", "AGE"), rows)


def snapshot_rm(references: References) -> None:
    """Delete snapshots. Sandboxes made from them lose nothing."""
    from runra import Runra

    with Runra() as client:
        each(references, client.snapshots.delete)


def fork(
    sandbox_id: Annotated[str, typer.Argument(metavar="ID", help="The sandbox.")],
    count: Annotated[int, typer.Option("--count", "-n", help="How many copies.")] = 1,
    processes: Annotated[
        bool, typer.Option("--processes", help="What runs in it goes on in each copy (isolation gvisor).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make running copies of a sandbox's files, and of what runs in it if you like, under identities of their own, and
    print their ids."""
    from runra import Runra

    with Runra() as client:
        made = client.sandboxes.get(sandbox_id).fork(count, processes=processes)
        if as_json:
            show_json([one.info.to_wire() for one in made])
        else:
            for one in made:
                print(one.id)


def volume_create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What you call it.")],
    size_mb: Annotated[int | None, typer.Option("--size-mb", help="What it may hold, in MB. [default: 10240]")] = None,
    access: Annotated[
        Literal["single-writer", "many-writers"] | None,
        typer.Option("--access", help="How many sandboxes may write to it at once. [default: single-writer]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an empty volume and print its id."""
    from runra import Runra

    with Runra() as client:
        made = client.volumes.create(name, size_mb=size_mb, access=access)
    if as_json:
        show_json(made.to_wire())
    else:
        print(made.id)
        say(f"runra create --volume {made.name}:/data")


def volume_ls(as_json: AsJson = False) -> None:
    """List volumes, newest first, with what they hold and which sandboxes have them."""
    from runra import Runra

    with Runra() as client:
        found = client.volumes.list()
    if as_json:
        show_json([one.to_wire() for one in found])
        return
    show_table(
        ("ID", "NAME", "ACCESS", "USED", "SIZE", "AGE", "USED BY"),
        [
            (
                *(one.id, one.name, one.access, size(one.used_bytes), size(one.size_mb << 20), age(one.created_at)),
                " ".join(it["sandboxId"] + (" (ro)" if it["readOnly"] else "") for it in one.used_by),
            )
            for one in found
        ],
    )


def volume_rm(references: References) -> None:
    """Delete volumes and all in them. One that a sandbox has is not deleted."""
    from runra import Runra

    with Runra() as client:
        each(references, client.volumes.delete)
