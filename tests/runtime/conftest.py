"""A real server for the runtime, and nothing of the developer's own settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from runra import Runra as Client
from runra.runtime import Runra
from tests.sdk.conftest import RealServer


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty project, and no variables or files of the developer's."""
    for name in (
        "API_KEY",
        "API_URL",
        "DEFAULT_IMAGE",
        "DEFAULT_CPU",
        "DEFAULT_MEMORY_MB",
        "DEFAULT_TIMEOUT_MS",
        "LOG_LEVEL",
    ):
        monkeypatch.delenv(f"RUNRA_{name}", raising=False)
    monkeypatch.setenv("RUNRA_CONFIG_PATH", str(tmp_path / "no-config.json"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """A real server with real sandboxes, one for each test process."""
    server = RealServer(tmp_path_factory.mktemp("runtime"))
    server.start()
    yield server
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNRA_CONFIG_PATH", str(server.config))
        with Client() as client:
            for sandbox in client.sandboxes.iter():
                if sandbox.state != "terminated":
                    sandbox.terminate()
    server.stop()


Make = Callable[..., Runra]


@pytest.fixture
async def make(real: RealServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Makes runtimes on the real server, which they find by its configuration file alone, and disposes of them."""
    monkeypatch.setenv("RUNRA_CONFIG_PATH", str(real.config))
    monkeypatch.setenv("RUNRA_DEFAULT_IMAGE", "host")
    async with AsyncExitStack() as stack:

        def one(**options: Any) -> Runra:
            runra = Runra(**options)
            stack.push_async_callback(runra.dispose)
            return runra

        yield one


def alive(real: RealServer) -> list[str]:
    """The server's sandboxes that have not ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNRA_CONFIG_PATH", str(real.config))
        with Client() as client:
            return [sandbox.id for sandbox in client.sandboxes.iter() if sandbox.state != "terminated"]
