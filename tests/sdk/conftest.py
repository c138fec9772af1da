"""Clients of both forms, a real server in folders of its own, and a wire that fails on purpose."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runra import AsyncRunra, Runra
from tests.sdk.both import Threaded
from tests.sdk.wire import Wire

_SERVE = """
import sys
from pathlib import Path
from runra.server.main import serve
from runra.server.settings import ServerSettings
home = Path(sys.argv[1])
# Images are what is here: a test asks no registry of the world's.
settings = {"data_dir": home / "data", "client_config": home / "config.json", "pull_on_create": False}
serve(ServerSettings(port=int(sys.argv[2]), **settings))
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the developer's own settings."""
    for name in ("RUNRA_API_KEY", "RUNRA_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RUNRA_CONFIG_PATH", str(tmp_path / "no-config.json"))


@pytest.fixture(params=["sync", "async"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


Connect = Callable[..., Any]


@pytest.fixture
async def connect(form: str) -> AsyncIterator[Connect]:
    """Makes clients of the form under test, and closes them."""
    async with contextlib.AsyncExitStack() as stack:

        def make(**options: Any) -> Any:
            client: Any = AsyncRunra(**options) if form == "async" else Threaded(Runra(**options))
            stack.push_async_callback(client.close)
            return client

        yield make


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


@pytest.fixture
def client(connect: Connect, wire: Wire) -> Any:
    """A client of the wire, quick to give up."""
    return connect(api_key="rra_test_0123456789abcdef", api_url=wire.url, timeout_ms=2000)


@dataclass
class RealServer:
    """A server process and where it is. `restart()` kills it the hard way and starts it again."""

    home: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Path:
        return self.home / "config.json"

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        log = (self.home / "server.log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, str(self.home), str(self.port)], env=environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 90
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                self.process.wait(30)
                pytest.fail((self.home / "server.log").read_text())
            time.sleep(0.05)

    def _answers(self) -> bool:
        if not self.config.exists():
            return False
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RUNRA_CONFIG_PATH", str(self.config))
            with Runra(max_retries=0) as client:
                self.port = int(client.api_url.rpartition(":")[2])
                with contextlib.suppress(Exception):
                    return client.health().status == "ok"
        return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(30)


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """A real server with real sandboxes, one for each test process."""
    server = RealServer(tmp_path_factory.mktemp("sdk"))
    server.start()
    yield server
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNRA_CONFIG_PATH", str(server.config))
        with Runra() as client:
            for sandbox in client.sandboxes.iter():
                if sandbox.state != "terminated":
                    sandbox.terminate()
    server.stop()


@pytest.fixture
def runra(real: RealServer, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of the real server, which it finds by its configuration file alone."""
    monkeypatch.setenv("RUNRA_CONFIG_PATH", str(real.config))
    return connect()


@pytest.fixture
async def sandbox(runra: Any) -> AsyncIterator[Any]:
    async with await runra.sandboxes.create(image="host") as sandbox:
        yield sandbox
