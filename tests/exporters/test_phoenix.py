"""A run looked at in a collector that others made: Arize Phoenix, by OTLP over HTTP and gRPC. `make phoenix` runs this."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from runra.runtime.exporters import pipeline
from tests.exporters.test_otel import TRACE, run_of_an_agent

#: In an environment of its own: it brings a hundred packages.
_PROGRAM = Path(__file__).parents[2] / ".venv-phoenix/bin/phoenix"
pytestmark = [
    pytest.mark.skipif(not _PROGRAM.exists(), reason="needs Arize Phoenix: make phoenix"),
    pytest.mark.timeout(240),
]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def phoenix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The addresses of a running one: HTTP and gRPC."""
    folder = tmp_path_factory.mktemp("phoenix")
    http, grpc = _free_port(), _free_port()
    environment = {
        **os.environ,
        "HOME": str(folder),
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(http),
        "PHOENIX_GRPC_PORT": str(grpc),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([_PROGRAM, "serve"], env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + 180
        while True:
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", http)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{http}", f"http://127.0.0.1:{grpc}"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_it_shows_the_run_as_we_meant_it(phoenix: tuple[str, str], protocol: str) -> None:
    http, grpc = phoenix
    trace = TRACE[:-1] + ("1" if protocol == "grpc" else "2")
    own = {"endpoint": grpc if protocol == "grpc" else http, "protocol": protocol, "flushIntervalMs": 10}
    # It takes traces alone.
    exporting = pipeline({"provider": "otel", "config": {**own, "signals": ["traces"]}})
    await exporting.start()
    try:
        for one in run_of_an_agent():
            exporting.offer(one.model_copy(update={"trace_id": trace}))
        assert await exporting.flush()
        spans = await _shown(http, trace, 8)
    finally:
        await exporting.close(5)
    names = {span["context"]["span_id"]: span["name"] for span in spans}
    above = {span["name"]: names.get(span["parent_id"]) for span in spans}
    assert above == {
        "invoke_agent": None,
        "turn 1": "invoke_agent",
        "turn 2": "invoke_agent",
        "chat m-1": "turn 1",
        "chat m-2": "turn 1",
        "execute_tool bash": "turn 1",
        "exec ls": "execute_tool bash",
        "file.read": "execute_tool bash",
    }


async def _shown(http: str, trace: str, count: int) -> list[dict[str, Any]]:
    """The trace's spans as Phoenix's own API gives them, once all have come."""
    deadline = time.monotonic() + 60
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{http}/v1/projects/default/spans", params={"limit": "1000"}) as response:
                found = (await response.json())["data"] if response.status == 200 else []
            mine = [span for span in found if span["context"]["trace_id"] == trace]
            if len(mine) >= count:
                return mine
            assert time.monotonic() < deadline, mine
            await asyncio.sleep(0.2)
