"""Events in a file of JSON lines, rotated at 10 MB, only those of commands and agents.

Start a server first: `runra serve`.
"""

import asyncio
from typing import Any

from runra.runtime import Runra

OBSERVABILITY: dict[str, Any] = {
    "exporters": [
        {
            "provider": "jsonl",
            "config": {"path": "runra-events.jsonl", "maxBytes": 10_000_000, "keep": 3},
            "filter": {"types": ["exec.*", "agent.*"]},
        }
    ]
}


async def main() -> None:
    async with Runra(sandbox={"provider": "runra-sandbox"}, observability=OBSERVABILITY) as runra:
        sandbox = await runra.create_sandbox(image="host")
        print((await sandbox.exec("echo hello from $(hostname)")).stdout, end="")
        await sandbox.terminate()


asyncio.run(main())
