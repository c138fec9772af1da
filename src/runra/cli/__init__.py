"""The command line, `runra …`. It needs the extra `cli`; without it, `main` says what to install."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """The program `runra`: run the command of this process's arguments and exit with its code."""
    try:
        from runra.cli.app import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("typer", "click", "rich"):
            raise
        sys.exit("The command line needs Typer and Rich: pip install 'runra[cli]', or 'runra[server]' with the server.")
    app()
    raise AssertionError("the application exits by itself")
