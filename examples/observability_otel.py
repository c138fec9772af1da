"""A trace of the run to an OpenTelemetry collector, Jaeger, Phoenix or whatever else takes OTLP on port 4318.

Start a server first: `runra serve`.
"""

import asyncio
from typing import Any

from runra.runtime import Runra

OBSERVABILITY: dict[str, Any] = {
    "provider": "otel",
    "endpoint": "http://127.0.0.1:4318",
    "protocol": "http/protobuf",
    "serviceName": "my-agents",
}


async def main() -> None:
    async with Runra(sandbox={"provider": "runra-sandbox"}, observability=OBSERVABILITY) as runra:
        sandbox = await runra.create_sandbox(image="host")
        print((await sandbox.exec("echo hello from $(hostname)")).stdout, end="")
        await sandbox.terminate()


asyncio.run(main())
