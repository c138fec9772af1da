"""What is written on the command line in a form of its own: `NAME=value`, `local:remote`, `ID:/path`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import typer

from runra.ids import SANDBOX_ID


def pairs(words: list[str], option: str) -> dict[str, str]:
    """`NAME=value` words as a mapping. For --env a bare NAME takes the value it has here."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals and option == "--env":
            present = os.environ.get(name)
            if present is None:
                raise typer.BadParameter(f"{name} is not set here; write {name}=value", param_hint=option)
            value = present
        elif not equals or not name:
            raise typer.BadParameter(f"{word!r} is not NAME=value", param_hint=option)
        found[name] = value
    return found


def uploads(words: list[str]) -> list[tuple[Path, str]]:
    """`local:remote` words; the local side must exist."""
    found = []
    for word in words:
        local, colon, remote = word.rpartition(":")
        if not colon or not local or not remote:
            raise typer.BadParameter(f"{word!r} is not LOCAL:REMOTE, such as app.py:/tmp/app.py", param_hint="--file")
        path = Path(local).expanduser()
        if not path.exists():
            raise typer.BadParameter(f"there is no {local}", param_hint="--file")
        found.append((path, remote))
    return found


def mounts(words: list[str]) -> list[dict[str, object]]:
    """`name:/path` and `name:/path:ro` words as a create takes them."""
    found: list[dict[str, object]] = []
    for word in words:
        name, colon, rest = word.partition(":")
        path, mode, how = rest.partition(":")
        if not colon or not name or not path.startswith("/") or (mode and how not in ("ro", "rw")):
            raise typer.BadParameter(f"{word!r} is not NAME:/PATH or NAME:/PATH:ro", param_hint="--volume")
        found.append({"name": name, "path": path, "readOnly": how == "ro"})
    return found


def milliseconds(word: str, option: str) -> int:
    """A span of time such as 90s, 30m, 12h or 7d."""
    units = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
    if len(word) < 2 or word[-1] not in units or not word[:-1].isdecimal():
        raise typer.BadParameter(f"{word!r} is no time such as 90s, 30m, 12h or 7d", param_hint=option)
    return int(word[:-1]) * units[word[-1]]


class Remote(NamedTuple):
    """A path in a sandbox. A relative one starts at the sandbox's workdir."""

    id: str
    path: str


def place(word: str) -> Remote | Path | None:
    """One side of a copy: `ID:path` in a sandbox, a local path, or None for `-` (stdin, stdout)."""
    if word == "-":
        return None
    sandbox_id, colon, path = word.partition(":")
    if colon and SANDBOX_ID.fullmatch(sandbox_id):
        return Remote(sandbox_id, path or ".")
    return Path(word).expanduser()
