"""A PostgreSQL cluster of the tests' own (Debian: postgresql): a socket in a folder, no port, no fsync."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def _programs() -> Path | None:
    """The folder of initdb and postgres: Debian keeps them off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    on_path = shutil.which("postgres")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def _user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@contextlib.contextmanager
def cluster() -> Iterator[Path]:
    """Run one; gives the folder of its socket, user `runra`, database `postgres`, trusted without a password.

    Skips the test where PostgreSQL is not installed.
    """
    programs = _programs()
    if programs is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    user = _user()
    folder = Path(tempfile.mkdtemp(prefix="runra-pg-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        data = folder / "data"
        create = [programs / "initdb", "-D", data, "-U", "runra", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
        subprocess.run(create, user=user, cwd=folder, check=True, capture_output=True, timeout=60)
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, "-k", folder, "-h", "", "-F"],
                user=user, cwd=folder, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            ready = [programs / "pg_isready", "-q", "-h", folder, "-U", "runra"]
            deadline = time.monotonic() + 30
            while subprocess.run(ready, check=False).returncode != 0:
                assert server.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
            yield folder
        finally:
            server.send_signal(signal.SIGINT)  # ends its connections first
            server.wait(timeout=30)
    finally:
        shutil.rmtree(folder)


def new_database(folder: Path, name: str) -> str:
    """Make an empty database; its SQLAlchemy URL."""
    programs = _programs()
    assert programs is not None
    command = [programs / "createdb", "-h", folder, "-U", "runra", name]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return f"postgresql+asyncpg://runra@/{name}?host={folder}"
