"""What a sandbox may reach, on the command line: options of create and run, and `runra network`."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

import typer

from runra.cli.output import show_json
from runra.ids import SANDBOX_ID

Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow", metavar="HOST", help="It may reach only this: a name, *.name, address or range, :port if wanted. "
        "Again for each."
    ),
]  # fmt: skip
Default = Annotated[
    Literal["allow", "deny"] | None,
    typer.Option("--egress", help="Without --allow: the internet, or nothing. [default: allow]"),
]
Secrets = Annotated[
    list[str] | None,
    typer.Option(
        "--secret",
        metavar="ALIAS=HOST,HEADER,VARIABLE",
        help="Inside, http://ALIAS.gateway.runra.internal/ is HOST with this header, whose value stays outside; it is "
        "taken from this environment variable, after words such as Bearer. Again for each.",
    ),
]


def policy(allow: list[str] | None, default: str | None, secrets: list[str] | None) -> dict[str, Any]:
    """The `network` of a create from its options; empty when none was given."""
    found: dict[str, Any] = {}
    if allow or default:
        found["egress"] = {**({"allow": allow} if allow else {}), **({"default": default} if default else {})}
    if secrets:
        found["secrets"] = [_secret(word) for word in secrets]
    return found


def _secret(word: str) -> dict[str, str]:
    alias, _, rest = word.partition("=")
    host, _, rest = rest.partition(",")
    header, _, value = rest.partition(",")
    prefix, space, variable = value.rpartition(" ")
    if not (alias and host and header and variable):
        # What was written is not repeated: it may be the secret itself.
        raise typer.BadParameter("write ALIAS=HOST,HEADER,VARIABLE, such as openai=api.openai.com,"
                                 "Authorization,'Bearer OPENAI_API_KEY'", param_hint="--secret")  # fmt: skip
    known = os.environ.get(variable)
    if not known:
        raise typer.BadParameter(
            "the last word is the name of an environment variable, and none of that name is set here",
            param_hint="--secret",
        )
    return {"alias": alias, "host": host, "header": header, "value": f"{prefix}{space}{known}"}


def network(
    sandbox_id: Annotated[str, typer.Argument(metavar="ID", help="The sandbox.")],
    allow: Allow = None,
    default: Default = None,
    secret: Secrets = None,
) -> None:
    """Show what a sandbox may reach; with options, replace it at once: connections it forbids are cut."""
    from runra import Runra

    if not SANDBOX_ID.fullmatch(sandbox_id):
        raise typer.BadParameter(f"{sandbox_id!r} is no sandbox's id", param_hint="ID")
    wanted = policy(allow, default, secret)
    with Runra() as client:
        sandbox = client.sandboxes.get(sandbox_id)
        if wanted:
            sandbox.update_network(wanted)
        show_json(sandbox.info.network)
