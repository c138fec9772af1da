"""A real server started by the real command line, in folders of its own, and `runra` as a subprocess."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_PYTHON = [sys.executable, "-m", "runra.cli"]


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str


class Cli:
    """`runra` with a home of its own: nothing of the user's is read or written."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("RUNRA_")}
        self.env |= {"HOME": str(home), "RUNRA_CONFIG_PATH": str(home / "config.json"), "TERM": "xterm"}
        self.env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)

    def command(self, *words: str | Path) -> list[str]:
        return [*_PYTHON, *map(str, words)]

    def start(self, *words: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command(*words), env=self.env, cwd=self.home, **options)

    def raw(
        self, *words: str | Path, stdin: bytes = b"", env: Mapping[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(*words),
            input=stdin,
            env=self.env | dict(env or {}),
            cwd=self.home,
            capture_output=True,
            timeout=timeout,
            check=False,
        )

    def __call__(self, *words: str | Path, **options: Any) -> Ran:
        """Run it, whatever its exit code."""
        done = self.raw(*words, **options)
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    def ok(self, *words: str | Path, **options: Any) -> str:
        """Run what must succeed; its stdout."""
        ran = self(*words, **options)
        assert ran.code == 0, f"runra {' '.join(map(str, words))}: {ran.code}\n{ran.out}{ran.err}"
        return ran.out

    def json(self, *words: str | Path) -> Any:
        return json.loads(self.ok(*words, "--json"))


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The command line with a server behind it."""
    home = tmp_path_factory.mktemp("cli")
    cli = Cli(home)
    log = home / "server.log"
    with log.open("wb") as output:
        server = cli.start("serve", "--port", "0", "--data-dir", home / "data", stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 90
        while cli("ps").code != 0:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield cli
        cli.ok("rm", "--all")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)
    assert server.returncode == 0, log.read_text()


@pytest.fixture
def sandbox(cli: Cli) -> Iterator[str]:
    """The id of a running sandbox."""
    sandbox_id = cli.ok("create").strip()
    yield sandbox_id
    cli.ok("rm", sandbox_id)
