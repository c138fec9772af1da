"""The pytest plugin behind `pytest --runra-provider module:Class`."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest

pytest.register_assert_rewrite("runra.runtime.testing.bench", "runra.runtime.testing.suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("runra", "conformance of a Runra sandbox provider")
    group.addoption(
        "--runra-provider", metavar="MODULE:CLASS", help="the provider to run the conformance suite against"
    )
    group.addoption("--runra-provider-config", metavar="JSON", default="{}", help="its configuration")
    group.addoption("--runra-volume", metavar="NAME", help="a volume that is there, of a provider that has such")
    group.addoption("--runra-image", metavar="NAME", default="base", help="the image its sandboxes are made of")


def pytest_configure(config: pytest.Config) -> None:
    """With a provider named and no tests, the suite is what runs."""
    named = config.args_source is config.ArgsSource.ARGS
    if config.getoption("--runra-provider") and not named:
        config.args[:] = [str(Path(__file__).with_name("conformance.py"))]


@pytest.fixture(scope="module")
def runra_provider(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any], str]:
    """The provider under test: what makes it, its configuration, and an image it has. Override it to test several."""
    where = request.config.getoption("--runra-provider")
    if not where:
        pytest.skip("name a provider with --runra-provider MODULE:CLASS")
    module, _, name = str(where).partition(":")
    factory = getattr(import_module(module), name)
    given = json.loads(str(request.config.getoption("--runra-provider-config")))
    return factory, given, str(request.config.getoption("--runra-image"))


@pytest.fixture(scope="module")
def runra_volume(request: pytest.FixtureRequest) -> str:
    """A volume that is there. Override it to make one."""
    name = request.config.getoption("--runra-volume")
    if not name:
        pytest.skip("name a volume with --runra-volume NAME")
    return str(name)


def reach(url: str) -> bytes:
    """The page at a port's URL. Raises OSError."""
    parts = urlsplit(url)
    if not (parts.hostname or "").endswith(".localhost"):
        asked = Request(url)
    else:  # browsers know that these are this machine; not every resolver does
        asked = Request(f"{parts.scheme}://127.0.0.1:{parts.port or 80}/", headers={"Host": parts.netloc})
    with urlopen(asked, timeout=10) as answer:
        return bytes(answer.read())


@pytest.fixture(scope="module")
def runra_reach() -> Callable[[str], bytes]:
    """Gets the page at a port's URL. Override it where the name leads nowhere from here."""
    return reach
