"""Metrics for Prometheus at http://127.0.0.1:9464/metrics. Start a server first: `runra serve`."""

import asyncio
from typing import Any

from runra.runtime import Runra

OBSERVABILITY: dict[str, Any] = {"provider": "prometheus", "port": 9464}


async def main() -> None:
    async with Runra(sandbox={"provider": "runra-sandbox"}, observability=OBSERVABILITY) as runra:
        sandbox = await runra.create_sandbox(image="host")
        print((await sandbox.exec("echo hello from $(hostname)")).stdout, end="")
        await sandbox.terminate()


asyncio.run(main())
