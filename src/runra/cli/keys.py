"""`runra key create | ls | rm`: API keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from runra.cli.lifecycle import AsJson
from runra.cli.output import age, say, show_json, show_table

if TYPE_CHECKING:
    from runra import Runra

Scopes = Annotated[
    list[str] | None, typer.Option("--scope", metavar="SCOPE", help="What it may do: sandbox:read. Again for each.")
]
Profile = Annotated[
    str | None, typer.Option("--profile", help="Or a set: read-only, sandbox-user or full. [default: sandbox-user]")
]
Organization = Annotated[
    str | None, typer.Option("--organization", help="Its organization, by id or name; made if the name is new.")
]
ExpiresAt = Annotated[str | None, typer.Option("--expires-at", metavar="TIME", help="ISO 8601. [default: never]")]


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What you call it.")],
    scope: Scopes = None,
    profile: Profile = None,
    organization: Organization = None,
    expires_at: ExpiresAt = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it. It is shown this once: the server keeps only its hash."""
    from runra import Runra

    with Runra() as client:
        made = client.api_keys.create(
            name,
            scopes=scope or None,
            # A key for use unless said otherwise; the server has no default for what a key may do.
            profile=profile or (None if scope else "sandbox-user"),
            organization_id=_organization(client, organization) if organization else None,
            expires_at=expires_at,
        )
    if as_json:
        show_json(made.to_wire())
    else:
        print(made.key)
        say(f"{made.id} of {made.organization_id}: {', '.join(made.scopes)}")


def create_key(
    name: Annotated[str, typer.Option("--name", help="What you call it.")],
    scope: Scopes = None,
    profile: Profile = None,
    organization: Organization = None,
    expires_at: ExpiresAt = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, like `runra key create`."""
    create(name, scope, profile, organization, expires_at, as_json)


def ls(as_json: AsJson = False) -> None:
    """List keys, without their secrets."""
    from runra import Runra

    with Runra() as client:
        found = client.api_keys.list()
    if as_json:
        show_json([key.to_wire() for key in found])
        return
    show_table(
        ("ID", "NAME", "KEY", "ORGANIZATION", "SCOPES", "AGE", "LAST USED", "EXPIRES"),
        [
            (
                *(key.id, key.name, f"{key.prefix}…", key.organization_id, " ".join(key.scopes), age(key.created_at)),
                *(age(key.last_used_at) or "never", key.expires_at or "never"),
            )
            for key in found
        ],
    )


def rm(ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Keys, by the id of `runra key ls`.")]) -> None:
    """Revoke keys, at once and for ever. Sandboxes made with them stay."""
    from runra import Runra

    with Runra() as client:
        for key_id in ids:
            client.api_keys.revoke(key_id)
            print(key_id)


def _organization(client: Runra, wanted: str) -> str:
    """The id of an organization given by id or name; a new name makes one."""
    for one in client.organizations.list():
        if wanted in (one.id, one.name):
            return one.id
    made = client.organizations.create(wanted)
    say(f"made the organization {made.id} ({made.name})")
    return made.id
