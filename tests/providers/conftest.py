"""The providers under test, each with a back end of its own."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest

from runra import Runra as Client
from runra.runtime.registry import SANDBOX_PROVIDERS
from runra.runtime.testing.plugin import reach
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


@pytest.fixture(scope="module")
def runra_volume(runra_provider: tuple[Any, dict[str, Any], str]) -> Iterator[str]:
    """A volume at the provider that has such."""
    _, config, _ = runra_provider
    if set(config) != {"apiKey", "apiUrl"}:
        pytest.skip("only a Runra server has volumes")
    with Client(api_key=config["apiKey"], api_url=config["apiUrl"]) as client:
        volume = client.volumes.create(f"conformance-{uuid.uuid4().hex[:8]}", size_mb=16)
        yield volume.name
        client.volumes.delete(volume.id)


@pytest.fixture(scope="module")
def runra_reach(runra_provider: tuple[Any, dict[str, Any], str]) -> Callable[[str], bytes]:
    """The names that the fakes give lead nowhere: their port is dialled, as a proxy of theirs would be."""
    _, config, _ = runra_provider
    near = config.get("sandboxUrl") or config.get("proxyUrl")
    if near is None:
        return reach

    def routed(url: str) -> bytes:
        host = urlsplit(url).netloc
        port, _, rest = host.partition("-")
        headers = {"Host": host, "E2b-Sandbox-Id": rest.partition(".")[0], "E2b-Sandbox-Port": port}
        with urlopen(Request(f"{near}/", headers=headers if "sandboxUrl" in config else {"Host": host})) as answer:
            return bytes(answer.read())

    return routed


def _noted(config: Path) -> dict[str, Any]:
    import json

    noted = json.loads(config.read_text())
    return {"apiKey": noted["apiKey"], "apiUrl": noted["apiUrl"]}
