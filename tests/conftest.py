"""Fixtures every folder of tests may use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.hosting import NOTHING, Host, start_host, stop_host, until


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = await start_host(tmp_path / "data")
    yield host
    await stop_host(host)
    await until(lambda: host.left() == NOTHING)
