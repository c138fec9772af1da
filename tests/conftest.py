"""Fixtures every folder of tests may use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from runra.node.isolation import walls
from tests import hosting, postgres
from tests.hosting import NOTHING, WALL, Host, need_wall, start_host, stop_host, until

if walls.NAMES[0] != WALL:
    # The first wall is everybody's who names none: nodes and servers of this process, however a test starts them.
    walls.NAMES = (need_wall(WALL), *(name for name in walls.NAMES if name != WALL))


@pytest.fixture(scope="session", autouse=True)
def host_image(tmp_path_factory: pytest.TempPathFactory) -> None:
    hosting.host_image_folder = tmp_path_factory.mktemp("host-image")


@pytest.fixture
async def host(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Host]:
    """A node on a folder of its own; with `tests.hosting.both_walls` once per wall."""
    host = await start_host(tmp_path / "data", isolation=need_wall(getattr(request, "param", WALL)))
    yield host
    await stop_host(host)
    await until(lambda: host.left() == NOTHING)


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[Path]:
    """The socket's folder of a PostgreSQL of these tests' own."""
    with postgres.cluster() as folder:
        yield folder
