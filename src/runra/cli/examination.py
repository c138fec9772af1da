"""`runra doctor`: what this machine can enforce, and the cure for what it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from runra.cli.output import say, show_json, show_table
from runra.errors import RunraError

#: Where the server keeps everything, unless told otherwise.
DATA_DIR = Path("~/.runra/server")


@contextmanager
def server_packages() -> Iterator[None]:
    """Turns the lack of the server's packages (the plain SDK comes without) into INVALID_CONFIG with the cure."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "runra":
            raise
        message = f"this needs the server's packages ({error.name} is missing): pip install 'runra[server]'"
        raise RunraError("INVALID_CONFIG", message) from None


def doctor(
    data_dir: Annotated[Path, typer.Option("--data-dir", help="The folder the server uses or will use.")] = DATA_DIR,
    trial: Annotated[bool, typer.Option(help="Start a real sandbox, run `true` in it, and end it.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine can enforce and how to get the rest. Exit code 0 when a sandbox can run here."""
    import asyncio

    with server_packages():
        from runra.node import doctor as node_doctor

    findings = asyncio.run(node_doctor.examine(data_dir.expanduser(), trial=trial))
    can_run = node_doctor.runs(findings)
    if as_json:
        show_json({"sandboxesRun": can_run, "findings": [finding.to_wire() for finding in findings]})
    else:
        show_table(
            ("WHAT", "STATE", "MEANING", "CURE"),
            [(finding.name, finding.state, finding.meaning, finding.cure) for finding in findings],
        )
        say("Sandboxes run here." if can_run else "No sandbox can run here: begin with what is missing.")
    raise typer.Exit(0 if can_run else 1)
