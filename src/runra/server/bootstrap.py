"""The first key of an empty store, and the note that lets clients on this machine find it."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any, Final

from runra.server.access import Access, new_secret
from runra.server.settings import ServerSettings

_log = logging.getLogger("runra.server")

KEY_FILE: Final = "bootstrap-key"


def write_private(path: Path, text: str) -> None:
    """Replace a file whole, readable by its owner alone."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None


def _holds(data_dir: Path, secret: object) -> bool:
    try:
        return _read(data_dir / KEY_FILE) == secret
    except PermissionError:
        # Another user's server: its key is not ours to replace.
        return True


async def bootstrap(settings: ServerSettings, access: Access) -> None:
    """Give an empty store its first organization and key; note URL and key for clients while that key is valid."""
    path = settings.data_dir / KEY_FILE
    if access.empty:
        secret = new_secret()
        # The file comes first: a crash in between leaves a store that is still empty and starts over.
        write_private(path, secret + "\n")
        await access.create_first(secret)
        _log.info("made the first API key; it is kept in %s", path)
    else:
        found = _read(path)
        if found is None or access.known(found) is None:
            return
        secret = found
    if settings.client_config is not None:
        note(settings.client_config, settings.data_dir, settings.url, secret)


def note(config: Path, data_dir: Path, url: str, secret: str) -> None:
    """Write apiUrl and apiKey into the clients' configuration, keeping everything else in it.

    A key that is there already stays, unless a bootstrap wrote it (`bootstrap.dataDir` says whose): this server's,
    or that of a data folder which no longer holds it.
    """
    text = _read(config)
    content: dict[str, Any] = {}
    if text is not None:
        try:
            content = json.loads(text)
        except json.JSONDecodeError:
            content = {"apiKey": "unreadable"}
        if not isinstance(content, dict):
            content = {"apiKey": "unreadable"}
    present = content.get("apiKey")
    if present is not None and present != secret:
        origin = content.get("bootstrap")
        owner = origin.get("dataDir") if isinstance(origin, dict) else None
        ours = isinstance(owner, str) and (owner == str(data_dir.resolve()) or not _holds(Path(owner), present))
        if not ours:
            _log.warning(
                "%s already names another server's key and stays as it is; to use this server, set "
                "RUNRA_API_URL=%s and RUNRA_API_KEY to what is in %s",
                config,
                url,
                data_dir / KEY_FILE,
            )
            return
    wanted = {"apiUrl": url, "apiKey": secret, "bootstrap": {"dataDir": str(data_dir.resolve())}}
    if all(content.get(name) == value for name, value in wanted.items()):
        return
    if not config.parent.exists():
        config.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(config, json.dumps(content | wanted, indent=2) + "\n")
