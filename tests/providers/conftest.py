"""The providers under test, each with a back end of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runra.runtime.registry import SANDBOX_PROVIDERS
from tests.providers.engine import IMAGE, engine
from tests.runtime.conftest import clean_environment, real
from tests.runtime.fakes.cube_service import CubeService
from tests.runtime.fakes.e2b_service import E2BService
from tests.sdk.conftest import RealServer

__all__ = ["clean_environment", "real"]


@pytest.fixture(scope="session")
def docker_url() -> Iterator[str]:
    with engine() as url:
        yield url


@pytest.fixture(scope="session")
def e2b_service() -> Iterator[E2BService]:
    service = E2BService()
    yield service
    service.close()


@pytest.fixture(scope="session")
def cube_service() -> Iterator[CubeService]:
    service = CubeService()
    yield service
    service.close()


PROVIDERS = ["runra-sandbox", "docker", "e2b", "cubesandbox"]


@pytest.fixture(scope="module", params=PROVIDERS)
def runra_provider(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, dict[str, Any], str]:
    """Overrides the plugin's own: every built-in provider in turn."""
    factory = SANDBOX_PROVIDERS.factory(request.param)
    state = str(tmp_path_factory.mktemp("state"))
    if request.param == "docker":
        url: str = request.getfixturevalue("docker_url")
        return factory, {"url": url, "pull": "never", "stateDir": state}, IMAGE
    if request.param == "e2b":
        fake: E2BService = request.getfixturevalue("e2b_service")
        return factory, {"apiKey": "e2b_key", "apiUrl": fake.url, "sandboxUrl": fake.url}, "base"
    if request.param == "cubesandbox":
        cube: CubeService = request.getfixturevalue("cube_service")
        return (
            factory,
            {"masterUrl": cube.url, "proxyUrl": cube.url, "stateDir": state, "templates": {"std": "tpl-1"}},
            "std",
        )
    server: RealServer = request.getfixturevalue("real")
    return factory, _noted(server.config), "host"


def _noted(config: Path) -> dict[str, Any]:
    import json

    noted = json.loads(config.read_text())
    return {"apiKey": noted["apiKey"], "apiUrl": noted["apiUrl"]}
