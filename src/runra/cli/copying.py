"""`runra cp`: files and folders between this machine and a sandbox."""

from __future__ import annotations

import os
import posixpath
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from runra.cli.output import is_terminal, say, size
from runra.cli.words import Remote, place
from runra.errors import RunraError

if TYPE_CHECKING:
    from runra import Files

_CHUNK: Final = 256 << 10

Progress = Callable[[int, int | None], None]


def cp(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A path here, ID:PATH in a sandbox, or - for stdin.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="ID:PATH in a sandbox, a path here, or - for stdout.")],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no summary.")] = False,
) -> None:
    """Copy a file or a folder into a sandbox or out of it.

    Into a folder that is there, or a DST that ends with /, it goes under its own name; otherwise DST is its new name.
    A relative path in a sandbox starts at its workdir.
    """
    from runra import Runra

    origin, goal = place(source), place(target)
    if isinstance(origin, Remote) == isinstance(goal, Remote):
        raise typer.BadParameter("exactly one side is in a sandbox, written as ID:PATH", param_hint="SRC DST")
    with Runra() as client:
        if isinstance(goal, Remote):
            files = client.sandboxes.get(goal.id).files
            if origin is None:
                files.write(goal.path, _stdin())
            else:
                assert isinstance(origin, Path)
                _up(files, origin, goal, quiet)
        else:
            assert isinstance(origin, Remote)
            files = client.sandboxes.get(origin.id).files
            if goal is None:
                _to_stdout(files, origin.path)
            else:
                assert isinstance(goal, Path)
                _down(files, origin, goal, target, quiet)


def _up(files: Files, origin: Path, goal: Remote, quiet: bool) -> None:
    if not origin.exists():
        raise typer.BadParameter(f"there is no {origin}", param_hint="SRC")
    remote = goal.path
    if remote.endswith("/") or _is_folder(files, remote):
        # resolve(): the name of `.` and of `..` is that of the folder they are.
        remote = posixpath.join(remote, origin.resolve().name)
    total = None if quiet else _bytes_in(origin)
    with _bar(origin.name, total, quiet) as progress:
        moved = files.upload(origin, remote, progress=progress)
    _summary(moved.files, moved.bytes, moved.skipped, f"{goal.id}:{remote}", quiet)


def _down(files: Files, origin: Remote, goal: Path, written: str, quiet: bool) -> None:
    if written.endswith("/"):
        goal.mkdir(parents=True, exist_ok=True)
    with _bar(posixpath.basename(origin.path.rstrip("/")), None, quiet) as progress:
        moved = files.download(origin.path, goal, progress=progress)
    _summary(moved.files, moved.bytes, moved.skipped, str(goal), quiet)


def _is_folder(files: Files, path: str) -> bool:
    try:
        return files.stat(path).is_directory
    except RunraError as error:
        if error.code != "INVALID_REQUEST":
            raise
        return False


def _stdin() -> Iterator[bytes]:
    while chunk := os.read(sys.stdin.fileno(), _CHUNK):
        yield chunk


def _to_stdout(files: Files, path: str) -> None:
    with files.read(path, format="stream") as stream:
        for chunk in stream:
            sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def _bytes_in(path: Path) -> int:
    """How much there is to send; what cannot be looked at counts nothing here, and is told of when it is sent."""
    if not path.is_dir():
        return path.stat().st_size
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 - a Path for each would double this
            except OSError:
                continue
    return total


def _summary(files: int, count: int, skipped: tuple[str, ...], where: str, quiet: bool) -> None:
    for reason in skipped:
        say(f"left out: {reason}")
    if not quiet:
        say(f"{files} file{'' if files == 1 else 's'}, {size(count)} → {where}")


@contextmanager
def _bar(name: str, total: int | None, quiet: bool) -> Iterator[Progress | None]:
    """A progress bar on a terminal; nothing elsewhere."""
    if quiet or not is_terminal(sys.stderr):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=total)

        def progress(done: int, whole: int | None) -> None:
            bar.update(task, completed=done, total=total if whole is None else whole)

        yield progress
