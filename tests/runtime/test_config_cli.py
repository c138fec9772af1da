"""`runra config`: what it shows and never shows, and what it finds wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runra import Runra as Client
from tests.sdk.conftest import RealServer

pytestmark = pytest.mark.timeout(60)

KEY = "rra_live_0123456789abcdefghij"


def runra(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runra.cli", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **env},
    )


def project(**values: Any) -> None:
    Path("runra.config.json").write_text(json.dumps(values))


def test_show_names_sources_and_masks() -> None:
    project(
        sandbox={"provider": "docker", "config": {"url": "unix:///x", "token": KEY}, "defaults": {"env": {"S": KEY}}}
    )
    shown = runra("config", "show", RUNRA_DEFAULT_IMAGE="debian")
    assert shown.returncode == 0, shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert ["sandbox.defaults.image", "debian", "environment"] in rows
    assert ["sandbox.config.token", "****ghij", str(Path("runra.config.json").absolute())] in rows
    assert KEY not in shown.stdout
    as_json = json.loads(runra("config", "show", "--json").stdout)
    assert as_json["values"]["sandbox"]["defaults"]["env"] == {"S": "****ghij"}


def test_check_finds_what_is_wrong() -> None:
    assert runra("config", "check").stdout == "ok: sandboxes of 'runra-sandbox'\n"
    for values, said in (
        ({"sandbox": {"provider": "dokcer"}}, "no sandbox provider 'dokcer'"),
        ({"sandbox": {"provider": "docker", "apiKei": KEY}}, "sandbox.apiKei"),
        ({"observability": {"provider": "consol"}}, "consol"),
        ({"llm": {"provider": "opnai"}}, "opnai"),
    ):
        project(**values)
        checked = runra("config", "check")
        assert checked.returncode == 1
        assert said in checked.stderr
        assert KEY not in checked.stdout + checked.stderr


def test_check_connects(real: RealServer) -> None:
    checked = runra("config", "check", "--connect", RUNRA_CONFIG_PATH=str(real.config))
    assert "ok: sandboxes of 'runra-sandbox', " in checked.stdout, checked.stderr
    refused = runra("config", "check", "--connect", RUNRA_API_URL="http://127.0.0.1:9", RUNRA_API_KEY=KEY)
    assert refused.returncode == 1
    assert "NETWORK_ERROR" in refused.stderr


def test_events_by_type(real: RealServer) -> None:
    wrong = runra("events", "--type", "exec.complete", RUNRA_CONFIG_PATH=str(real.config))
    assert wrong.returncode == 1
    assert "'exec.complete' is none" in wrong.stderr
    env = {**os.environ, "RUNRA_CONFIG_PATH": str(real.config)}
    command = [sys.executable, "-m", "runra.cli", "events", "--type", "exec.*", "--json", "--after", "evt_"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as tail:
        done = runra("run", "--image", "host", "--", "echo", "hi", RUNRA_CONFIG_PATH=str(real.config))
        assert done.returncode == 0, done.stderr
        assert tail.stdout is not None
        types = {json.loads(tail.stdout.readline())["type"] for _ in range(2)}
        tail.terminate()
    assert types <= {"exec.started", "exec.completed"}


def test_events_of_one_sandbox(real: RealServer) -> None:
    env = {"RUNRA_CONFIG_PATH": str(real.config)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNRA_CONFIG_PATH", str(real.config))
        client = Client()
    with client, client.sandboxes.create(image="host") as one, client.sandboxes.create(image="host") as other:
        command = [sys.executable, "-m", "runra.cli", "events", "--sandbox", one.id, "--json", "--after", "evt_"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **env}) as tail:
            try:
                other.exec("echo other")
                one.exec("echo one")
                assert tail.stdout is not None
                told = []
                while not told or told[-1]["type"] != "exec.completed":
                    told.append(json.loads(tail.stdout.readline()))
            finally:
                tail.terminate()
        assert {event["sandboxId"] for event in told} == {one.id}
        assert told[-1]["data"]["command"] == "echo one"
