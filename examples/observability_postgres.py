"""Events into a table of PostgreSQL, one partition a day. Set PGHOST, PGUSER and their like, or give `url`.

Start a server first: `runra serve`.
"""

import asyncio
from typing import Any

from runra.runtime import Runra

OBSERVABILITY: dict[str, Any] = {
    "provider": "postgres",
    "table": "runra_events",
    "partitionByDay": True,
    "retentionDays": 30,
}


async def main() -> None:
    async with Runra(sandbox={"provider": "runra-sandbox"}, observability=OBSERVABILITY) as runra:
        sandbox = await runra.create_sandbox(image="host")
        print((await sandbox.exec("echo hello from $(hostname)")).stdout, end="")
        await sandbox.terminate()


asyncio.run(main())
