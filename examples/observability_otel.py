"""A trace of the run to an OpenTelemetry collector, Jaeger, Phoenix or whatever else takes OTLP: on this machine's port
4318, or where OTEL_EXPORTER_OTLP_ENDPOINT says.

Start a server first: `runra serve`.
"""

import asyncio
import os
from typing import Any

from runra.runtime import Runra

OBSERVABILITY: dict[str, Any] = {
    "provider": "otel",
    "endpoint": os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318"),
    "protocol": "http/protobuf",
    "serviceName": "my-agents",
}


async def main() -> None:
    async with Runra(sandbox={"provider": "runra-sandbox"}, observability=OBSERVABILITY) as runra:
        sandbox = await runra.create_sandbox(image="host")
        print((await sandbox.exec("echo hello from $(hostname)")).stdout, end="")
        await sandbox.terminate()


asyncio.run(main())
