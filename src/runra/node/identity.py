"""A sandbox's identity: its host name, machine id and name server, in its own layer; nothing of the host's, of a
neighbour's or, in a copy, of the sandbox it was copied from."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def give_identity(upper: Path, sandbox_id: str, name_server: str | None) -> None:
    """Write /etc/hostname, /etc/hosts and /etc/machine-id into the layer `upper` of "/", and /etc/resolv.conf where
    there is a name server.

    The layer may be a copy of one that hostile code wrote: no link in it is followed. Where there is no folder /etc
    in it any more, there is nothing to name either.
    """
    name = sandbox_id.removeprefix("sb_")
    top = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir("etc", dir_fd=top)
            os.chmod("etc", 0o755, dir_fd=top)  # noqa: S103 - it is the sandbox's own /etc
        try:
            etc = os.open("etc", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        except OSError:  # a link, a file, or the mark that it was deleted
            return
        try:
            _replace(etc, "hostname", f"{name}\n")
            _replace(etc, "hosts", f"127.0.0.1 localhost {name}\n::1 localhost ip6-localhost\n")
            _replace(etc, "machine-id", f"{secrets.token_hex(16)}\n")
            if name_server is not None:
                _replace(etc, "resolv.conf", f"nameserver {name_server}\n")
        finally:
            os.close(etc)
    finally:
        os.close(top)


def _replace(folder: int, name: str, text: str) -> None:
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=folder)
    except IsADirectoryError:  # whoever made it one has a sandbox without that file
        return
    with os.fdopen(fd, "w") as file:
        file.write(text)
        os.fchmod(fd, 0o644)
