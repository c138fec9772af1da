"""`runra image pull | ls | inspect | rm | prune | import | build`: images."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from runra.cli.agent import building
from runra.cli.lifecycle import AsJson
from runra.cli.output import age, is_terminal, say, show_json, show_line, show_table, size
from runra.cli.tools import tool
from runra.cli.words import milliseconds
from runra.errors import RunraError

if TYPE_CHECKING:
    from runra import Runra
    from runra.runtime.agents.pins import Pin
    from runra.sdk.output import OutputChunk
    from runra.sdk.types import ImageProgress

_CHUNK: Final = 1 << 20
_DEBIAN: Final = re.compile(r"(?:debian|ubuntu):([a-z][a-z0-9-]*)")
_PACKAGE: Final = re.compile(r"[a-z0-9][a-z0-9.+-]*")

Reference = Annotated[str, typer.Argument(metavar="IMAGE", help="python:3.12, host:5000/team/app:tag, name@sha256:…")]
Shared = Annotated[bool, typer.Option("--shared", help="Let every organization of the server use it.")]


def pull(
    reference: Reference,
    username: Annotated[str | None, typer.Option("--username", "-u", help="Login for a private image.")] = None,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")] = False,
    shared: Shared = False,
    as_json: AsJson = False,
) -> None:
    """Pull an image, or refresh one that is here. The login is used once and kept nowhere."""
    from runra import Runra

    password = None
    if password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    elif username is not None:
        password = typer.prompt("Password", hide_input=True, err=True)
    with Runra() as client, _bar(reference, as_json) as progress:
        made = client.images.pull(
            reference, username=username, password=password, shared=shared or None, on_progress=progress
        )
    if as_json:
        show_line(made.to_wire())
    else:
        print(made.reference)
        say(f"{size(made.size_bytes)} in {made.layers} layers, {made.digest}")


def ls(
    steps: Annotated[bool, typer.Option("--all", "-a", help="Also the steps that builds left on their way.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the images you may use. `host` is always there and not among them."""
    from runra import Runra

    with Runra() as client:
        found = client.images.list(steps=steps)
    if as_json:
        show_json([image.to_wire() for image in found])
        return
    show_table(
        ("IMAGE", "DIGEST", "SIZE", "LAYERS", "FROM", "SHARED", "AGE", "LAST USED"),
        [
            (
                *(image.reference, image.digest.removeprefix("sha256:")[:12], size(image.size_bytes)),
                *(str(image.layers), image.source, "yes" if image.shared else "no"),
                *(age(image.added_at), age(image.last_used_at)),
            )
            for image in found
        ],
    )


def inspect(reference: Reference) -> None:
    """Print all that is known of an image, as JSON."""
    from runra import Runra

    with Runra() as client:
        show_json(client.images.get(reference).to_wire())


def rm(references: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Images by name.")]) -> None:
    """Forget images. Sandboxes made from them live on."""
    from runra import Runra

    with Runra() as client:
        for reference in references:
            print(client.images.delete(reference).reference)


def tag(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image that is here.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its other name.")],
    shared: Shared = False,
    as_json: AsJson = False,
) -> None:
    """Give an image another name; it takes no more room."""
    from runra import Runra

    with Runra() as client:
        _told(client.images.tag(image, name, shared=shared), as_json)


def prune(
    unused: Annotated[
        str | None,
        typer.Option("--unused", metavar="AGE", help="Only those unused for so long: 12h, 7d. [default: any]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Delete the images that no sandbox uses, the steps of builds among them."""
    from runra import Runra

    with Runra() as client:
        done = client.images.prune(unused_for_ms=milliseconds(unused, "--unused") if unused else 0)
    if as_json:
        show_json(done.to_wire())
        return
    for reference in done.references:
        print(reference)
    say(f"{len(done.references)} images, {size(done.freed_bytes)} freed")


def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A tar, or - for stdin.")],
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Its name. [default: what the file says]")
    ] = None,
    shared: Shared = False,
    as_json: AsJson = False,
) -> None:
    """Import an image: an OCI image layout, what `docker save` writes, or a root file system's tar (give a NAME)."""
    from runra import Runra

    with Runra() as client:
        if file == "-":
            _told(_send(client, sys.stdin.buffer, name, shared, None, "stdin"), as_json)
            return
        path = Path(file).expanduser()
        if not path.is_file():
            raise typer.BadParameter(f"there is no file {file}", param_hint="FILE")
        with path.open("rb") as opened:
            _told(_send(client, opened, name, shared, path.stat().st_size, path.name), as_json)


def build(
    source: Annotated[
        str, typer.Argument(metavar="[SOURCE]", help="A folder with a Dockerfile, debian:SUITE, or agents/NAME.")
    ] = "",
    tag: Annotated[str | None, typer.Option("--tag", "-t", help="Name of the image that is made.")] = None,
    base: Annotated[str | None, typer.Option("--from", metavar="IMAGE", help="Run commands on this image.")] = None,
    run: Annotated[list[str] | None, typer.Option("--run", help="With --from: a command. Again for each.")] = None,
    packages: Annotated[str | None, typer.Option("--packages", help="With debian:SUITE: python3,git,…")] = None,
    bare: Annotated[
        bool, typer.Option("--bare", help="With debian:SUITE: the packages' files alone, nothing set up, no apt.")
    ] = False,
    dockerfile: Annotated[
        Path | None, typer.Option("--file", "-f", help="The Dockerfile. [default: in SOURCE]")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="With agents/NAME: fetched by npm on this machine.")] = False,
    pins: Annotated[
        Path | None, typer.Option("--pins", metavar="FILE", help="With agents/NAME: versions of your own.")
    ] = None,
    shared: Shared = False,
    as_json: AsJson = False,
) -> None:
    """Make an image.

    --from BASE --run COMMAND…: run commands in a sandbox of BASE; steps that were run before are taken from there.

    debian:bookworm --packages python3,git: a fresh Debian, by mmdebstrap on this machine.

    FOLDER: from its Dockerfile, by buildah on this machine.

    agents/claude-code, agents/codex, agents/opencode, agents/all: a coding agent's command line, in the version Runra
    is tested with (`runra agents`), on node:22 or what --from names, by npm in a sandbox; with --local here.
    """
    from runra import Runra

    if source.startswith("agents/"):
        wanted = building.chosen(source, pins)
        with Runra() as client:
            _agents(client, tag or source, base or building.BASE, wanted, local, shared, as_json)
        return
    if local or pins is not None:
        raise typer.BadParameter("--local and --pins go with agents/NAME", param_hint="SOURCE")
    if (base is None) == (source == ""):
        raise typer.BadParameter(
            "give either --from IMAGE with --run, or a folder, or debian:SUITE", param_hint="SOURCE"
        )
    debian = _DEBIAN.fullmatch(source)
    if tag is None and not debian:
        raise typer.BadParameter("name the image that is made", param_hint="--tag")
    with Runra() as client:
        if base is not None:
            _recipe(client, tag or "", base, run or [], shared, as_json)
        elif debian:
            made = _debian(client, debian.group(1), packages or "", bare, tag or source, shared)
            _told(made, as_json)
        else:
            _told(_dockerfile(client, Path(source), dockerfile, tag or "", shared), as_json)


def _recipe(client: Runra, tag: str, base: str, run: list[str], shared: bool, as_json: bool) -> None:
    if not run:
        raise typer.BadParameter("give at least one command", param_hint="--run")
    _told(client.images.build(tag, base=base, run=run, shared=shared, on_step=_step, on_output=_output), as_json)


def _agents(
    client: Runra, tag: str, base: str, wanted: dict[str, Pin], local: bool, shared: bool, as_json: bool
) -> None:
    if local:
        made = building.from_here(client, tag, base, wanted, shared, _step)
    else:
        made = building.in_sandbox(client, tag, base, wanted, shared, _step, _output)
    _told(made, as_json)


def _step(command: str, kept: bool) -> None:
    say(f"{'kept' if kept else 'run '}  {command}")


def _output(chunk: OutputChunk) -> None:
    sys.stderr.write(chunk.text)
    sys.stderr.flush()


def _debian(client: Runra, suite: str, packages: str, bare: bool, tag: str, shared: bool) -> Any:
    """mmdebstrap, in the mode that fits who runs it: as an ordinary user it works in a user namespace."""
    program = tool("mmdebstrap", "mmdebstrap", "to build Debian images")
    names = [name for name in packages.split(",") if name]
    for name in names:
        if not _PACKAGE.fullmatch(name):
            raise typer.BadParameter(f"{name!r} is no package", param_hint="--packages")
    if bare and not names:
        raise typer.BadParameter("name the packages it is made of", param_hint="--packages")
    kind, always = ("extract", []) if bare else ("apt", ["ca-certificates"])
    include = [f"--variant={kind}", "--include=" + ",".join([*always, *names])]
    trim = ["--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*"]
    # The machine's own sources, keys and proxies: what `apt` trusts here.
    command = [program, "--quiet", "--format=tar", *include, *trim, suite, "-", *_sources(suite)]
    return _piped(client, command, tag, shared, f"debian:{suite}")


def _sources(suite: str) -> list[str]:
    """The machine's own package sources when they have the suite; mmdebstrap's defaults otherwise."""
    found = []
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        if path.suffix in (".list", ".sources") and path.is_file():
            text = path.read_text(errors="replace")
            if re.search(rf"(?m)^(deb\b.*|Suites:.*)\b{re.escape(suite)}\b", text):
                found.append(str(path))
    return found


def _dockerfile(client: Runra, folder: Path, dockerfile: Path | None, tag: str, shared: bool) -> Any:
    """buildah builds where its user is; what it made goes to the server as an archive."""
    program = tool("buildah", "buildah", "to build a Dockerfile")
    if not folder.is_dir():
        raise typer.BadParameter(f"there is no folder {folder}", param_hint="SOURCE")
    with tempfile.TemporaryDirectory(prefix="runra-build-") as scratch:
        archive = Path(scratch, "image.tar")
        local = f"localhost/runra-build-{secrets.token_hex(8)}"  # not the folder's name: that may begin with a _
        words = [
            program,
            "bud",
            "--format",
            "oci",
            "--tag",
            local,
            *(["--file", str(dockerfile)] if dockerfile else []),
        ]
        try:
            _checked([*words, str(folder)], sys.stderr)
            _checked([program, "push", "--quiet", local, f"oci-archive:{archive}"], sys.stderr)
        finally:
            # The layers it kept for the next build stay; only this name goes.
            subprocess.run([program, "rmi", local], capture_output=True, check=False)  # noqa: S603 - our own words
        with archive.open("rb") as opened:
            return _send(client, opened, tag, shared, archive.stat().st_size, tag)


def _checked(command: list[str], to: Any) -> None:
    done = subprocess.run(command, stdout=to, check=False)  # noqa: S603 - a program of this machine's own
    if done.returncode:
        raise RunraError(
            "INVALID_REQUEST", f"{Path(command[0]).name} ended with {done.returncode}; what it said is above"
        )


def _piped(client: Runra, command: list[str], tag: str, shared: bool, what: str) -> Any:
    """Import what a program writes. If it fails, nothing of it becomes an image: its tar breaks off."""
    with tempfile.TemporaryFile() as archive:
        done = subprocess.run(command, stdout=archive, check=False)  # noqa: S603 - checked words
        if done.returncode:
            raise RunraError(
                "INVALID_REQUEST", f"{Path(command[0]).name} ended with {done.returncode}; what it said is above"
            )
        total = archive.tell()
        archive.seek(0)
        return _send(client, archive, tag, shared, total, what)


def _send(client: Runra, file: Any, name: str | None, shared: bool, total: int | None, what: str) -> Any:
    with _bytes_bar(what, total) as advance:

        def pieces() -> Iterator[bytes]:
            while data := file.read(_CHUNK):
                yield data
                advance(len(data))

        return client.images.import_(pieces(), name=name, shared=shared)


def _told(made: Any, as_json: bool) -> None:
    if as_json:
        show_json(made.to_wire())
    else:
        print(made.reference)
        say(f"{size(made.size_bytes)} in {made.layers} layers")


@contextmanager
def _bytes_bar(name: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar that counts bytes on a terminal; nothing elsewhere."""
    if not is_terminal(sys.stderr):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _bar(name: str, as_json: bool) -> Iterator[Callable[[ImageProgress], None]]:
    """A pull's bar on a terminal, a JSON object a line with --json, and elsewhere a line for each layer."""
    if as_json or not is_terminal(sys.stderr):
        told = -1

        def plain(progress: ImageProgress) -> None:
            nonlocal told
            if as_json:
                show_line(asdict(progress))
            elif progress.layers and progress.layers_done != told:  # before that the registry is only being asked
                told = progress.layers_done
                say(f"{name}: {told} of {progress.layers} layers, {size(progress.done_bytes)}")

        yield plain
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    layers = TextColumn("{task.fields[layers]}")
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), layers)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None, layers="")

        def moved(progress: ImageProgress) -> None:
            bar.update(
                task,
                completed=progress.done_bytes,
                total=progress.total_bytes or None,
                layers=f"{progress.layers_done}/{progress.layers} layers",
            )

        yield moved
