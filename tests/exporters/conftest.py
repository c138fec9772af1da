"""Fixtures of the exporters' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres import cluster


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a database of a PostgreSQL of these tests' own."""
    with cluster() as folder:
        yield f"postgresql://runra@/postgres?host={folder}"
