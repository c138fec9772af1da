"""The examples run as they stand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.providers.conftest import docker_url
from tests.providers.engine import IMAGE
from tests.sdk.conftest import RealServer

__all__ = ["docker_url"]
pytestmark = pytest.mark.timeout(120)
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def ran(name: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_server(real: RealServer) -> None:
    told = ran("provider_runra_sandbox", RUNRA_CONFIG_PATH=str(real.config)).stdout
    assert "runra-sandbox can: " in told
    assert "  > hello from Linux" in told
    assert "exit code 0 after" in told


def test_an_engine(docker_url: str) -> None:
    told = ran("provider_docker", IMAGE, DOCKER_HOST=docker_url).stdout
    assert "  > hello from Linux" in told
    assert "exit code 0 after" in told


def test_events_on_the_terminal(real: RealServer) -> None:
    done = ran("observability_console", RUNRA_CONFIG_PATH=str(real.config))
    assert "hello from " in done.stdout
    assert "exec.completed" in done.stdout + done.stderr


def test_events_in_a_file(real: RealServer) -> None:
    ran("observability_jsonl", RUNRA_CONFIG_PATH=str(real.config))
    told = [json.loads(line)["type"] for line in Path("runra-events.jsonl").read_text().splitlines()]
    assert told == ["exec.started", "exec.completed"]
