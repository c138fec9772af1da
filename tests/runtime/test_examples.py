"""Every example runs as it stands: against the real thing, or what speaks its protocol where that cannot run here."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from runra.webhooks import verify
from tests.exporters.backends import backend, otlp_http
from tests.postgres import cluster
from tests.providers.conftest import docker_url
from tests.providers.engine import IMAGE
from tests.runtime.fakes.cube_service import CubeService
from tests.runtime.fakes.e2b_service import E2BService
from tests.scripted import ScriptedModel, agent_loop
from tests.sdk.conftest import RealServer

__all__ = ["docker_url"]
pytestmark = pytest.mark.timeout(120)
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def ran(name: str, *words: str, typed: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *words],
        input=typed,
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, done.stderr
    return done


def test_none_is_left_out() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    names = [path.stem for path in EXAMPLES.glob("*.py")]
    assert [name for name in names if f'"{name}"' not in tests and f"examples/{name}.py" not in tests] == []


# --- the SDK ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("first_sandbox", r"exit code 0 after \d+ ms; sum: .*\n(.*\n)*now it is terminated\n"),
        ("async_many", r"0 \*\* 10 = 0\n(.*\n)*9 \*\* 10 = 3486784401\nten sandboxes in "),
        ("background_process", r"paused after (.*\n)*(.*\n)*and a word from outside\nexit code 0\nkilled by SIGKILL\n"),
        ("preview", r"the page: <h1>Hello from inside</h1>\n(.*\n)*without its token: 40\d\nwith its token: 200\n"),
        ("snapshots_and_volumes", r"fork 2 says 12\n(.*\n)*the volume still holds 42\n"),
        ("runtime_agent", r"agent\.message .*\n(.*\n)*How many programs are there\? \d+\n"),
    ],
)
def test_what_needs_a_server_alone(real: RealServer, name: str, said: str) -> None:
    told = ran(name, RUNRA_CONFIG_PATH=str(real.config)).stdout
    assert re.search(said, told), told


def test_the_demonstration() -> None:
    """It starts a server of its own, and ends it."""
    told = ran("demo").stdout
    assert "stdout  line 5 of 5" in told
    assert "stderr  and this one went to stderr" in told
    assert told.rstrip().endswith("server stopped")


@pytest.mark.skipif(shutil.which("opencode") is None, reason="npm install -g opencode-ai")
async def test_an_acp_agent_that_asks(real: RealServer) -> None:
    async with ScriptedModel(agent_loop()) as model:
        key = {"OPENAI_API_KEY": model.key, "OPENAI_BASE_URL": f"{model.url}/v1"}
        done = await asyncio.to_thread(
            ran, "agent_acp", "host", typed="y\n" * 9, RUNRA_CONFIG_PATH=str(real.config), **key
        )
    assert "May it use bash with" in done.stdout
    assert "True Done: wrote hello.txt" in done.stdout


# --- providers -------------------------------------------------------------------------------------------------------


def test_a_server(real: RealServer) -> None:
    told = ran("provider_runra_sandbox", RUNRA_CONFIG_PATH=str(real.config)).stdout
    assert "runra-sandbox can: " in told
    assert "  > hello from Linux" in told
    assert "exit code 0 after" in told


def test_an_engine(docker_url: str) -> None:
    told = ran("provider_docker", IMAGE, DOCKER_HOST=docker_url).stdout
    assert "  > hello from Linux" in told
    assert "exit code 0 after" in told


@pytest.fixture
def e2b() -> Iterator[E2BService]:
    service = E2BService()
    yield service
    service.close()


def test_e2b(e2b: E2BService) -> None:
    told = ran("provider_e2b", E2B_API_KEY="e2b_key", E2B_API_URL=e2b.url, E2B_SANDBOX_URL=e2b.url).stdout
    assert "  > hello from Linux" in told
    assert "exit code 0 after" in told
    assert not e2b.sandboxes


@pytest.fixture
def cube() -> Iterator[CubeService]:
    service = CubeService()
    yield service
    service.close()


def test_a_cubesandbox(cube: CubeService) -> None:
    told = ran("provider_cubesandbox", "tpl-1", CUBE_URL=cube.url, CUBE_PROXY_URL=cube.url).stdout
    assert "  > hello from Linux" in told
    assert "exit code 0 after" in told
    assert not cube.sandboxes


# --- exporters -------------------------------------------------------------------------------------------------------


async def running(name: str, real: RealServer, **env: str) -> str:
    """Its stdout; beside a back end in this process."""
    done = await asyncio.to_thread(ran, name, RUNRA_CONFIG_PATH=str(real.config), **env)
    return done.stdout


def test_events_on_the_terminal(real: RealServer) -> None:
    done = ran("observability_console", RUNRA_CONFIG_PATH=str(real.config))
    assert "hello from " in done.stdout
    assert "exec.completed" in done.stdout + done.stderr


def test_events_in_a_file(real: RealServer) -> None:
    ran("observability_jsonl", RUNRA_CONFIG_PATH=str(real.config))
    told = [json.loads(line)["type"] for line in Path("runra-events.jsonl").read_text().splitlines()]
    assert told == ["exec.started", "exec.completed"]


def test_events_for_code_of_ones_own(real: RealServer) -> None:
    told = ran("observability_custom", RUNRA_CONFIG_PATH=str(real.config)).stdout
    assert re.search(r"slowest: sleep 0\.3 [3-9]\d\d ms|slowest: sleep 0\.\d \d{4,} ms", told), told
    assert "'exec.completed': 2" in told


async def test_events_in_axiom(real: RealServer) -> None:
    async with backend() as server:
        await running("observability_axiom", real, AXIOM_TOKEN="xaat-of-the-test", AXIOM_URL=server.url)
        rows: list[Any] = [row for got in server.got for row in got.json]
    assert {got.path for got in server.got} == {"/v1/datasets/runra-events/ingest"}
    assert server.got[0].headers["authorization"] == "Bearer xaat-of-the-test"
    assert [row["type"] for row in rows][-2:] == ["exec.completed", "sandbox.terminated"]


async def test_a_trace_by_otlp(real: RealServer) -> None:
    async with otlp_http() as receiver:
        await running("observability_otel", real, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url)
    assert receiver.resource["service.name"] == "my-agents"
    assert receiver.span("exec echo").end_time_unix_nano > receiver.span("exec echo").start_time_unix_nano


async def test_a_trace_in_langfuse(real: RealServer) -> None:
    async with otlp_http() as receiver:
        keys = {"LANGFUSE_PUBLIC_KEY": "pk-lf-1", "LANGFUSE_SECRET_KEY": "sk-lf-1"}
        await running("observability_langfuse", real, LANGFUSE_HOST=receiver.url, **keys)
    assert receiver.headers("traces")["authorization"].startswith("Basic ")
    assert receiver.span("exec echo")


async def test_events_in_postgresql(real: RealServer) -> None:
    with cluster() as folder:
        env = {"PGHOST": str(folder), "PGUSER": "runra", "PGDATABASE": "postgres"}
        await running("observability_postgres", real, **env)
        connection = await asyncpg.connect(host=str(folder), user="runra", database="postgres")
        rows = await connection.fetch("SELECT type FROM runra_events ORDER BY id")
        await connection.close()
    assert [row[0] for row in rows][-2:] == ["exec.completed", "sandbox.terminated"]


def test_metrics_for_prometheus(real: RealServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = ran("observability_prometheus", RUNRA_CONFIG_PATH=str(real.config), METRICS_PORT=str(port)).stdout
    assert re.search(r'^runra_events_total\{.*type="exec\.completed".*\} 1\.0$', told, re.M), told


async def test_signed_batches(real: RealServer) -> None:
    async with backend() as server:
        await running("observability_webhook", real, WEBHOOK_URL=f"{server.url}/events")
        types = [event["type"] for got in server.got for event in got.json["events"]]
    for got in server.got:
        verify("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", got.headers, got.body)
    assert types[-2:] == ["exec.completed", "sandbox.terminated"]
