"""Fixtures every folder of tests may use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests import postgres
from tests.hosting import NOTHING, Host, start_host, stop_host, until


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = await start_host(tmp_path / "data")
    yield host
    await stop_host(host)
    await until(lambda: host.left() == NOTHING)


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[Path]:
    """The socket's folder of a PostgreSQL of these tests' own."""
    with postgres.cluster() as folder:
        yield folder
