"""What gVisor's checkpoints can and cannot do here, which docs/snapshots.md builds on: forks have no processes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.hosting import need_wall

SCRIPT = Path(__file__).parents[2] / "scripts/gvisor_checkpoint.py"


@pytest.fixture
def asked() -> ModuleType:
    need_wall("gvisor")
    spec = importlib.util.spec_from_file_location("gvisor_checkpoint", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)

    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    if not module.BUSYBOX.exists():
        pytest.skip("no static busybox: apt-get install busybox-static")
    return module


def test_a_process_alone_goes_on_in_copies(asked: ModuleType) -> None:
    answer = asked.goes_on()
    assert answer.can, answer.said


def test_the_agent_does_not_come_back_with_its_socket(asked: ModuleType) -> None:
    """The reason why forks have no processes. Where this is skipped, they could: build them, and mend the document."""
    answer = asked.with_the_socket()
    if answer.can:
        pytest.skip(
            "this runsc restores the agent with the host's socket: forks could have processes (docs/snapshots.md)"
        )
    assert "HostConnectedEndpoint" in answer.said or "host.inode" in answer.said, answer.said
