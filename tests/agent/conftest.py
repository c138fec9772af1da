"""Fixtures: a compiled agent, a running one, and a link to it."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from runra.node.agent.link import AgentLink

from .harness import Agent, compile_agent


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-") else base  # one folder for all of xdist's workers
    return compile_agent(shared)


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path: socket addresses hold 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ra-") as folder:
        yield Path(folder)


@pytest.fixture
def agent(binary: Path, home: Path) -> Iterator[Agent]:
    agent = Agent(binary, home)
    yield agent
    agent.stop()


@pytest.fixture
async def link(agent: Agent) -> AsyncIterator[AgentLink]:
    link = await agent.connect()
    yield link
    await link.close()
