"""Tests of the node leave no descriptor open."""

from __future__ import annotations

import os
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def no_descriptor_leak() -> Any:
    before = set(os.listdir("/proc/self/fd"))
    yield
    # The event loop of the test is closed by now; what is open beyond it was leaked by us.
    after = set(os.listdir("/proc/self/fd"))
    assert len(after - before) <= 3, f"descriptors left open: {sorted(after - before)}"
