"""`runra image build agents/…`: images with an agent's command line in them, in the pinned version."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from runra.cli.tools import tool
from runra.errors import RunraError
from runra.sdk.failures import CommandFailed

if TYPE_CHECKING:
    from runra import Runra
    from runra.contract import ImageInfo
    from runra.runtime.agents.pins import Pin
    from runra.sdk.output import OutputChunk

#: What an agents' image is made of unless said otherwise: it has npm, and the Node that codex starts with.
BASE: Final = "node:22"
#: Where npm puts what it installs, in the image.
_PREFIX: Final = "/usr/local"
_LONG_MS: Final = 3_600_000
_CHECK_MS: Final = 120_000
#: Give up soon on a registry that is not there: the default waits for minutes.
_PATIENCE: Final = "--fetch-retries=2 --fetch-retry-mintimeout=1000 --fetch-retry-maxtimeout=5000 --fetch-timeout=60000"
_UNREACHABLE: Final = re.compile(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH")
_NO_SUCH: Final = 127

Tell = Callable[["OutputChunk"], Any]
Step = Callable[[str, bool], Any]


def chosen(source: str, file: Path | None) -> dict[str, Pin]:
    """The agents that `agents/…` means. Raises BadParameter for one without a pin."""
    from runra.runtime.agents.pins import pins

    known, name = dict(pins(file)), source.removeprefix("agents/")
    if name == "all":
        return known
    if name not in known:
        there = ", ".join(f"agents/{one}" for one in known)
        raise typer.BadParameter(f"there is no {source}; there are {there} and agents/all", param_hint="SOURCE")
    return {name: known[name]}


def in_sandbox(
    client: Runra, tag: str, base: str, wanted: dict[str, Pin], shared: bool, on_step: Step, on_output: Tell
) -> ImageInfo:
    """By a recipe: npm in a sandbox of `base`, each agent a step that is kept."""
    _no_host(base)
    steps = [_install(pin) for pin in wanted.values()]
    try:
        return client.images.build(tag, base=base, run=steps, shared=shared, on_step=on_step, on_output=on_output)
    except CommandFailed as error:
        raise _explained(error, base) from error


def from_here(client: Runra, tag: str, base: str, wanted: dict[str, Pin], shared: bool, on_step: Step) -> ImageInfo:
    """npm of this machine fetches, and what it made goes into a sandbox of `base`, which may have no network at all.
    What was put together before is taken from there."""
    _no_host(base)
    below = client.images.get(base) if _known(client, base) else client.images.pull(base)
    recipe = json.dumps([below.digest, [pin.model_dump() for pin in wanted.values()]], sort_keys=True)
    step = f"build-steps:{hashlib.sha256(recipe.encode()).hexdigest()[:40]}"
    names = " ".join(f"{pin.package}@{pin.version}" for pin in wanted.values())
    kept = _known(client, step)
    on_step(f"npm install here: {names}", kept)
    if kept:
        return client.images.tag(step, tag, shared=shared)
    # Where temporary files may be large: /tmp is memory on many machines.
    with tempfile.TemporaryDirectory(prefix="runra-agents-", dir="/var/tmp") as scratch:
        for pin in wanted.values():
            _fetch(pin, Path(scratch))
        with client.sandboxes.create(image=base, timeout_ms=_LONG_MS, idle_timeout_ms=_LONG_MS) as box:
            for folder in ("lib", "bin"):
                box.files.upload(Path(scratch, folder), f"{_PREFIX}/{folder}")
            for pin in wanted.values():
                on_step(pin.check, False)
                try:
                    box.exec(pin.check, cwd="/", timeout_ms=_CHECK_MS, check=True)
                except CommandFailed as error:
                    raise _explained(error, base) from error
            client.images.commit(box.id, step, step=True)
    return client.images.tag(step, tag, shared=shared)


def _install(pin: Pin) -> str:
    words = " ".join(shlex.quote(word) for word in pin.words)
    return f"npm install --global --prefix {_PREFIX} {_PATIENCE} {words} && rm -rf ~/.npm && {pin.check}"


def _fetch(pin: Pin, prefix: Path) -> None:
    """Fetch a package into a folder. Only `lib` and `bin` are made below it, with links from one into the other."""
    npm = tool("npm", "npm", "to fetch agents here")
    done = subprocess.run(  # noqa: S603 - words of a checked form
        [npm, "install", "--global", "--prefix", str(prefix), *pin.words],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,  # stdout is for the image's name
        check=False,
    )
    if done.returncode:
        raise RunraError("INVALID_REQUEST", f"npm ended with {done.returncode}; what it said is above")


def _explained(error: CommandFailed, base: str) -> RunraError:
    """What to do about a step that failed."""
    result = error.result
    if _UNREACHABLE.search(result.stdout + result.stderr):
        return RunraError(
            "NETWORK_ERROR",
            "npm in the sandbox cannot reach its registry. Sandboxes reach public addresses only, with the host's "
            "internet: add --local to fetch with this machine's own npm instead",
            details=error.details,
        )
    if result.exit_code == _NO_SUCH:
        return RunraError(
            "INVALID_REQUEST",
            f"the image {base} lacks a program ({result.stderr.strip()[-200:]}): give one with Node and npm, such as "
            f"--from {BASE}, or of your own: `runra image build debian:bookworm --packages nodejs,npm`",
            details=error.details,
        )
    return error


def _no_host(base: str) -> None:
    if base == "host":
        raise RunraError(
            "INVALID_REQUEST",
            "no image can be made of `host`: it is this machine. Install the agents on it (npm install --global …), "
            "and sandboxes of `host` have them; or give another base with --from",
        )


def _known(client: Runra, reference: str) -> bool:
    try:
        return client.images.get(reference).state == "ready"
    except RunraError as error:
        if error.status != 404:
            raise
        return False
