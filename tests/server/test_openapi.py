"""The document against the server it describes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import negative_data_rejection

from runra.server.app import create_app
from runra.server.settings import ServerSettings

from .conftest import Client, Running, started


@schemathesis.serializer("application/x-tar")
def as_it_is(context: schemathesis.SerializationContext, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


# Left out is the one check that a schema cannot satisfy: that every request it allows is accepted. Whether a path is
# there, or exactly one of two fields was given, is no matter of types.
config = schemathesis.Config.from_dict({"checks": {"positive_data_acceptance": {"enabled": False}}})
schema = schemathesis.openapi.from_dict(create_app(ServerSettings()).openapi(), config=config)
# Streams have no end to wait for; their errors are those of every route, and other tests read them.
STREAMS = ("sandbox_events", "all_events", "follow_output", "watch_files")


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Running, str]]:
    """A server on a loop of its own thread, since schemathesis is synchronous; and a sandbox in it."""
    ready, stop = threading.Event(), asyncio.Event()
    found: list[Any] = []
    loop = asyncio.new_event_loop()

    async def main() -> None:
        with TemporaryDirectory() as folder:
            options = ServerSettings(data_dir=Path(folder), client_config=None)
            async with started(options) as run:
                box = await run.client.sandbox(timeoutMs=86_400_000)
                found.append((run, box["id"]))
                ready.set()
                await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    assert ready.wait(20)
    yield found[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(30)
    loop.close()


@schema.exclude(operation_id=list(STREAMS)).parametrize()
@settings(
    max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
)
def test_every_operation_keeps_the_document(case: schemathesis.Case, server: tuple[Running, str]) -> None:
    run, sandbox_id = server
    operation_id = case.operation.definition.raw["operationId"]
    if "id" in case.path_parameters:
        # Half of the time a sandbox that is there: otherwise every answer were a 404.
        there = len(str(case.path_parameters["id"])) % 2 and operation_id != "terminate_sandbox"
        case.path_parameters["id"] = sandbox_id if there else "sb_0000000000000000"
    meant_well = case.meta is not None and case.meta.generation.mode.is_positive
    if meant_well and isinstance(case.body, dict) and isinstance(case.body.get("command"), str):
        case.body["command"] = "true"
    # The key below mends whatever was made wrong about the headers: then there may be nothing left to refuse.
    spoilt = None if case.meta is None else case.meta.components.get(ParameterLocation.HEADER)
    mended = [negative_data_rejection] if spoilt is not None and spoilt.mode.is_negative else []
    case.call_and_validate(
        base_url=run.client.url,
        headers={"Authorization": f"Bearer {run.client.key}"},
        timeout=20,
        excluded_checks=mended,
    )


async def test_the_document_names_everything(client: Client) -> None:
    document = (await client.call("GET", "/openapi.json")).json
    operations = [it for path in document["paths"].values() for it in path.values()]
    assert len({it["operationId"] for it in operations}) == len(operations)
    for operation in operations:
        assert operation["description"]
        if operation["operationId"] == "health":
            continue
        assert operation["security"] == [{"key": []}]
        assert operation["x-runra-scope"]
        assert operation["responses"]["default"]["content"]["application/json"]["schema"]["$ref"].endswith(
            "ErrorAnswer"
        )
    wire = document["components"]["schemas"]["SandboxConfig"]["properties"]
    assert "idleTimeoutMs" in wire
    assert "text/event-stream" in document["paths"]["/v1/sandboxes/{id}/execute"]["post"]["responses"]["200"]["content"]
