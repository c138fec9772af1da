"""What a provider must remember of its sandboxes over a restart of the caller, and its back end does not keep."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Final

from runra.errors import RunraError
from runra.runtime.sandboxes.inuse import InUse

_log = logging.getLogger("runra.runtime")

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def state_dir(configured: str | None, *parts: str) -> Path:
    """Where it lies: `configured`, else `$XDG_STATE_HOME/runra`, else `~/.local/state/runra`."""
    if configured:
        return Path(configured, *parts)
    home = os.environ.get("XDG_STATE_HOME")
    return Path(home or Path.home() / ".local" / "state", "runra", *parts)


class Ledger:
    """One small JSON file for each sandbox, readable by its owner alone, replaced whole. Several processes may
    share it: the last word counts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.in_use = InUse(folder)

    def open(self) -> None:
        """Make the folder. Raises INVALID_CONFIG when that cannot be."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise RunraError(
                "INVALID_CONFIG",
                f"cannot keep notes in {self._folder}: {error.strerror}; name another in sandbox.config.stateDir",
                details={"field": "sandbox.config.stateDir", "path": str(self._folder)},
            ) from None

    def save(self, id: str, note: dict[str, Any]) -> None:
        """Write a note down. One that cannot be written is logged: the sandbox itself is not worse for it."""
        try:
            descriptor, name = tempfile.mkstemp(prefix=".", dir=self._folder)
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(note, file)
            Path(name).replace(self._path(id))
        except OSError as error:
            _log.warning("sandbox %s: its notes cannot be written: %s", id, error)

    def load(self, id: str) -> dict[str, Any] | None:
        """The note of a sandbox, None where there is none that can be read."""
        try:
            note = json.loads(self._path(id).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return note if isinstance(note, dict) else None

    def remove(self, id: str) -> None:
        self._path(id).unlink(missing_ok=True)
        self.in_use.remove(id)

    def ids(self) -> list[str]:
        """The sandboxes there are notes of."""
        return [path.stem for path in self._folder.glob("*.json") if _NAME.fullmatch(path.stem)]

    def _path(self, id: str) -> Path:
        if not _NAME.fullmatch(id):
            raise RunraError("SANDBOX_NOT_FOUND", f"no sandbox {id[:80]!r}", details={"sandboxId": id[:80]})
        return self._folder / f"{id}.json"
