"""`runra serve`: the server, and what a person wants to know when it starts."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runra.cli.examination import DATA_DIR, server_packages
from runra.cli.output import say
from runra.cli.policy import node_network, node_policy

if TYPE_CHECKING:
    from runra.events import EventLog
    from runra.server.nodeport import Node
    from runra.server.settings import ServerSettings


def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="Port; 0 takes a free one.")] = 7747,
    data_dir: Annotated[Path, typer.Option("--data-dir", help="Folder of everything it keeps.")] = DATA_DIR,
    domain: Annotated[str, typer.Option("--domain", help="Domain of the sandboxes' own addresses.")] = "localhost",
    api_url: Annotated[
        str | None, typer.Option("--api-url", help="The URL clients are told, behind a proxy. [default: host and port]")
    ] = None,
    database_url: Annotated[
        str | None,
        typer.Option("--database-url", envvar="RUNRA_DATABASE_URL", help="SQLAlchemy URL. [default: SQLite]"),
    ] = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option("--range", metavar="NAME=LOW:HIGH", help="Widen what a create may ask for: memoryMb=64:65536."),
    ] = None,
    isolation: Annotated[
        str | None, typer.Option("--isolation", help="The wall of sandboxes that ask for none: bubblewrap, gvisor.")
    ] = None,
    allow_isolation: Annotated[
        str | None,
        typer.Option("--allow-isolation", metavar="NAMES", help="Walls a create may ask for. [default: all that work]"),
    ] = None,
    require_isolation: Annotated[
        str | None, typer.Option("--require-isolation", metavar="NAME", help="This wall for every sandbox, or none.")
    ] = None,
    allow_unenforced: Annotated[
        str | None,
        typer.Option(
            "--allow-unenforced",
            metavar="LIMITS",
            help="Make sandboxes although these limits cannot be held here: cpu, memory, pids, disk, or all. "
            "[default: none as root, all as an ordinary user]",
        ),
    ] = None,
    network: Annotated[bool, typer.Option("--network/--no-network", help="Whether sandboxes have a network.")] = True,
    dns: Annotated[
        list[str] | None, typer.Option("--dns", metavar="ADDRESS", help="Name server to ask. [default: the system's]")
    ] = None,
    open_range: Annotated[
        list[str] | None,
        typer.Option(
            "--open-range",
            metavar="RANGE[@ORGANIZATION]",
            help="A private range that sandboxes may reach, or those of one organization; again for each.",
        ),
    ] = None,
    network_range: Annotated[
        str | None, typer.Option("--network-range", help="Sandboxes' own addresses. [default: a /20 of 10.192.0.0/11]")
    ] = None,
    bandwidth_mbit: Annotated[
        int | None,
        typer.Option(
            "--bandwidth-mbit", min=1, help="Most of one sandbox, each way, previews apart. [default: no limit]"
        ),
    ] = None,
    connections: Annotated[
        int | None, typer.Option("--connections", min=1, help="Most of one sandbox at once. [default: 1024]")
    ] = None,
    registries: Annotated[
        Path | None, typer.Option("--registries", help="JSON file about registries: mirrors, logins (docs/images.md).")
    ] = None,
    pull_on_create: Annotated[
        bool, typer.Option("--pull-on-create/--no-pull-on-create", help="Pull images that a create names.")
    ] = True,
    max_images_mb: Annotated[
        int | None,
        typer.Option("--max-images-mb", min=1, help="MB for images that creates pull. [default: half of the room]"),
    ] = None,
    pull_timeout: Annotated[float, typer.Option("--pull-timeout", min=1, help="Seconds a pull may take.")] = 900.0,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log every call.")] = False,
) -> None:
    """Run the server until Ctrl-C or SIGTERM. Its sandboxes live on; the next server finds them."""
    import asyncio

    with server_packages():
        from runra.node import doctor
        from runra.server.app import real_node
        from runra.server.main import serve as run_server
        from runra.server.settings import ServerSettings

    _log_to_stderr(access_log)
    settings = ServerSettings(
        host=host,
        port=port,
        data_dir=data_dir.expanduser(),
        domain=domain,
        api_url=api_url,
        database_url=database_url,
        ranges=_ranges(ranges or []),
        registries=registries,
        pull_on_create=pull_on_create,
        max_images_mb=max_images_mb,
        pull_timeout_s=pull_timeout,
        access_log=access_log,
        preview_mbit=bandwidth_mbit,
        node={
            **node_policy(isolation, allow_isolation, require_isolation, allow_unenforced),
            **node_network(network, dns, open_range, network_range, bandwidth_mbit, connections),
        },
    )
    findings = asyncio.run(doctor.examine(settings.data_dir, trial=False))

    def announced(bound: ServerSettings, events: EventLog) -> Node:
        # The first moment at which the port is known to be ours.
        _announce(bound)
        if lacks := doctor.in_one_line(findings):
            say(f"  doctor   {lacks} (`runra doctor` has the cures)")
        return real_node(bound, events)

    # The server stops by itself on both signals, and raises the one it got again when it has: nobody needs to know.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        run_server(settings, announced)


def _announce(settings: ServerSettings) -> None:
    from runra.server.bootstrap import KEY_FILE

    say(f"Runra at {settings.url}")
    say(f"  data     {settings.data_dir}")
    say(f"  key      {settings.data_dir / KEY_FILE}")
    if settings.client_config is not None:
        say(f"  clients  {settings.client_config} (on this machine nothing else is needed)")


def _ranges(words: list[str]) -> dict[str, tuple[int, int]]:
    found = {}
    for word in words:
        name, _, span = word.partition("=")
        low, _, high = span.partition(":")
        if not name or not low.isdigit() or not high.isdigit():
            raise typer.BadParameter(f"{word!r} is not NAME=LOW:HIGH, such as memoryMb=64:65536", param_hint="--range")
        found[name] = (int(low), int(high))
    return found


def _log_to_stderr(access_log: bool) -> None:
    """Log lines with UTC times; RUNRA_LOG_LEVEL chooses how many."""
    import logging
    import time

    level = os.environ.get("RUNRA_LOG_LEVEL", "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        raise typer.BadParameter(f"{level!r} is none; DEBUG, INFO, WARNING or ERROR", param_hint="RUNRA_LOG_LEVEL")
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("runra").setLevel(level)
    if not access_log:
        logging.getLogger("runra.server.access").setLevel(logging.WARNING)
