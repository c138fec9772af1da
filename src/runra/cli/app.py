"""All commands of `runra`, put together; and how what they raise becomes a message and an exit code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import typer

from runra.cli import (
    configuring,
    copying,
    examination,
    execution,
    images,
    keeping,
    keys,
    lifecycle,
    network,
    ports,
    serving,
    terminal,
    watching,
)
from runra.cli.agent import listing, replaying, running
from runra.cli.output import complain
from runra.errors import RunraError

#: Runra itself failed, where the exit code is otherwise the command's own (as docker has it).
FAILED_ITSELF: Final = 125
_INTERRUPTED: Final = 130

app = typer.Typer(
    name="runra",
    help="Sandboxes for AI agents on your own machine: isolated Linux computers in milliseconds.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"runra {version('runra')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _guarded(command: Callable[..., None], failure: int) -> Callable[..., None]:
    """The command, its errors told on stderr and turned into exit codes."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except RunraError as error:
            complain(error)
            raise typer.Exit(failure) from error
        except KeyboardInterrupt:
            raise typer.Exit(_INTERRUPTED) from None

    return guarded


def _add(to: typer.Typer, name: str, command: Callable[..., None], *, failure: int = 1, **settings: Any) -> None:
    to.command(name, context_settings=settings)(_guarded(command, failure))


def _group(name: str, help: str, commands: Mapping[str, Callable[..., None]], *, hidden: bool = False) -> None:
    group = typer.Typer(help=help, no_args_is_help=True, rich_markup_mode=None)
    for command, does in commands.items():
        _add(group, command, does)
    app.add_typer(group, name=name, hidden=hidden)


_add(app, "serve", serving.serve)
_add(app, "run", execution.run, failure=FAILED_ITSELF)
_add(app, "create", lifecycle.create)
_add(app, "ps", lifecycle.ps)
# Options after the command's first word are the command's own.
_add(app, "exec", execution.execute, failure=FAILED_ITSELF, allow_interspersed_args=False)
_add(app, "shell", terminal.shell, failure=FAILED_ITSELF)
_add(app, "cp", copying.cp)
_add(app, "pause", lifecycle.pause)
_add(app, "resume", lifecycle.resume)
_add(app, "rm", lifecycle.rm)
_add(app, "network", network.network)
_add(app, "logs", execution.logs)
_add(app, "events", watching.events)
_add(app, "doctor", examination.doctor)

_add(app, "fork", keeping.fork)
_add(app, "agents", listing.agents)

_group("agent", "Let a coding agent work, and watch it.", {"run": running.run, "replay": replaying.replay})

_group(
    "snapshot",
    "Keep a sandbox's files, list and delete.",
    {"create": keeping.snapshot_create, "ls": keeping.snapshot_ls, "rm": keeping.snapshot_rm},
)

_group(
    "volume",
    "Make, list and delete volumes.",
    {"create": keeping.volume_create, "ls": keeping.volume_ls, "rm": keeping.volume_rm},
)

_group(
    "config",
    "The runtime's options, and where each comes from.",
    {"show": configuring.show, "check": configuring.check},
)

_group(
    "image",
    "Pull, import, build and delete images.",
    {
        "pull": images.pull,
        "ls": images.ls,
        "inspect": images.inspect,
        "tag": images.tag,
        "rm": images.rm,
        "prune": images.prune,
        "import": images.import_,
        "build": images.build,
    },
)

_group("key", "Make, list and revoke API keys.", {"create": keys.create, "ls": keys.ls, "rm": keys.rm})

_group(
    "port",
    "Servers in a sandbox, seen from outside.",
    {"expose": ports.expose, "ls": ports.ls, "close": ports.close, "url": ports.url, "revoke": ports.revoke},
)

_group("auth", "Another name for `runra key`.", {"create-key": keys.create_key}, hidden=True)
