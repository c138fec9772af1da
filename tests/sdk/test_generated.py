"""The sync form is what the script makes of the async one."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from runra import AsyncRunra, Runra
from runra.sdk._async import api as api_async
from runra.sdk._async import files, processes, sandbox, sandboxes, terminal

ROOT = Path(__file__).parent.parent.parent


def test_nothing_is_stale() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/generate_sync.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", [api_async, files, processes, sandbox, sandboxes, terminal])
def test_both_forms_have_the_same_surface(module: object) -> None:
    name = module.__name__.replace("_async", "_sync")
    __import__(name)
    for kind, value in vars(module).items():
        if not (inspect.isclass(value) and value.__module__ == module.__name__ and kind.startswith("Async")):
            continue
        twin = getattr(sys.modules[name], kind.removeprefix("Async"))
        mine = {item for item in dir(value) if not item.startswith("_")}
        assert mine == {item for item in dir(twin) if not item.startswith("_")}
        for item in mine:
            one, other = getattr(value, item), getattr(twin, item)
            if inspect.isfunction(one):
                assert list(inspect.signature(one).parameters) == list(inspect.signature(other).parameters)


def test_the_clients_take_the_same() -> None:
    assert str(inspect.signature(AsyncRunra.__init__)) == str(inspect.signature(Runra.__init__))
