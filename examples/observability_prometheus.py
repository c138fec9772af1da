"""Metrics for Prometheus at http://127.0.0.1:9464/metrics (METRICS_PORT: another port), read here as it would.

Start a server first: `runra serve`.
"""

import asyncio
import os
from typing import Any
from urllib.request import urlopen

from runra.runtime import Runra

PORT = int(os.environ.get("METRICS_PORT", "9464"))
OBSERVABILITY: dict[str, Any] = {"provider": "prometheus", "port": PORT, "flushIntervalMs": 100}


def page() -> str:
    with urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


async def main() -> None:
    async with Runra(sandbox={"provider": "runra-sandbox"}, observability=OBSERVABILITY) as runra:
        sandbox = await runra.create_sandbox(image="host")
        print((await sandbox.exec("echo hello from $(hostname)")).stdout, end="")
        for _ in range(100):  # the last events come a moment later
            text = await asyncio.to_thread(page)
            if 'type="exec.completed"' in text:
                break
            await asyncio.sleep(0.1)
        print(*(line for line in text.splitlines() if line.startswith("runra_events")), sep="\n")
        await sandbox.terminate()


asyncio.run(main())
