"""`runra port expose | ls | close | url | revoke`: servers in a sandbox, seen from outside."""

from __future__ import annotations

from typing import Annotated

import typer

from runra.cli.lifecycle import AsJson
from runra.cli.output import age, say, show_json, show_table

Id = Annotated[str, typer.Argument(metavar="ID", help="A sandbox.")]
PortNumber = Annotated[int, typer.Argument(metavar="PORT", help="1024 to 65535.")]


def expose(
    sandbox_id: Id,
    port: PortNumber,
    private: Annotated[bool, typer.Option("--private", help="Open it with its token or a signed link only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Give a port a URL of its own, and print it. Nothing need listen there yet."""
    from runra import Runra

    with Runra() as client:
        made = client.sandboxes.get(sandbox_id).expose_port(port, private=private)
    if as_json:
        show_json(made.to_wire())
        return
    print(made.url)
    if made.token:
        say(f"token, shown this once: {made.token} (header X-Runra-Preview-Token)")
    if private:
        say(f"a link for a browser: runra port url {sandbox_id} {port}")


def ls(sandbox_id: Id, as_json: AsJson = False) -> None:
    """List exposed ports."""
    from runra import Runra

    with Runra() as client:
        found = client.sandboxes.get(sandbox_id).get_ports()
    if as_json:
        show_json([port.to_wire() for port in found])
        return
    rows = [(str(one.port), one.url, "private" if one.private else "public", age(one.exposed_at)) for one in found]
    show_table(("PORT", "URL", "ACCESS", "AGE"), rows)


def close(
    sandbox_id: Id, ports: Annotated[list[int], typer.Argument(metavar="PORT...", help="One or several.")]
) -> None:
    """Close ports; what is open to them is cut."""
    from runra import Runra

    with Runra() as client:
        sandbox = client.sandboxes.get(sandbox_id)
        for port in ports:
            sandbox.close_port(port)
            print(port)


def url(
    sandbox_id: Id,
    port: PortNumber,
    expires_ms: Annotated[
        int | None, typer.Option("--expires-ms", help="How long a link to a private port lives. [default: 3600000]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the URL of an exposed port: for a private one a signed link that opens it in a browser for a while."""
    from runra import Runra
    from runra.errors import RunraError

    with Runra() as client:
        sandbox = client.sandboxes.get(sandbox_id)
        found = next((one for one in sandbox.get_ports() if one.port == port), None)
        if found is None:
            raise RunraError("INVALID_REQUEST", f"port {port} is not exposed; `runra port expose {sandbox_id} {port}`")
        if not found.private:
            if as_json:
                show_json(found.to_wire())
            else:
                print(found.url)
            return
        link = sandbox.sign_url(port, expires_in_ms=expires_ms)
    if as_json:
        show_json(link.to_wire())
    else:
        print(link.url)
        say(f"until {link.expires_at}; `runra port revoke {sandbox_id} {port}` ends it before")


def revoke(sandbox_id: Id, port: PortNumber) -> None:
    """End every signed link to a private port at once. Its token stays good."""
    from runra import Runra

    with Runra() as client:
        client.sandboxes.get(sandbox_id).revoke_urls(port)
