"""All commands of `runra`, put together; and how what they raise becomes a message and an exit code."""

from __future__ import annotations

import functools
from collections.abc import Callable
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

snapshot = typer.Typer(help="Keep a sandbox's files, list and delete.", no_args_is_help=True, rich_markup_mode=None)
_add(snapshot, "create", keeping.snapshot_create)
_add(snapshot, "ls", keeping.snapshot_ls)
_add(snapshot, "rm", keeping.snapshot_rm)
app.add_typer(snapshot, name="snapshot")

volume = typer.Typer(help="Make, list and delete volumes.", no_args_is_help=True, rich_markup_mode=None)
_add(volume, "create", keeping.volume_create)
_add(volume, "ls", keeping.volume_ls)
_add(volume, "rm", keeping.volume_rm)
app.add_typer(volume, name="volume")
config = typer.Typer(
    help="The runtime's options, and where each comes from.", no_args_is_help=True, rich_markup_mode=None
)
_add(config, "show", configuring.show)
_add(config, "check", configuring.check)
app.add_typer(config, name="config")

image = typer.Typer(help="Pull, import, build and delete images.", no_args_is_help=True, rich_markup_mode=None)
_add(image, "pull", images.pull)
_add(image, "ls", images.ls)
_add(image, "inspect", images.inspect)
_add(image, "rm", images.rm)
_add(image, "prune", images.prune)
_add(image, "import", images.import_)
_add(image, "build", images.build)
app.add_typer(image, name="image")

key = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True, rich_markup_mode=None)
_add(key, "create", keys.create)
_add(key, "ls", keys.ls)
_add(key, "rm", keys.rm)
app.add_typer(key, name="key")

port = typer.Typer(help="Servers in a sandbox, seen from outside.", no_args_is_help=True, rich_markup_mode=None)
_add(port, "expose", ports.expose)
_add(port, "ls", ports.ls)
_add(port, "close", ports.close)
_add(port, "url", ports.url)
_add(port, "revoke", ports.revoke)
app.add_typer(port, name="port")

auth = typer.Typer(help="Another name for `runra key`.", no_args_is_help=True, rich_markup_mode=None)
_add(auth, "create-key", keys.create_key)
app.add_typer(auth, name="auth", hidden=True)
